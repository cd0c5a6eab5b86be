"""Running a function as it was written where the code around it is compiled.

A module of its own, because naming `torch.compiler.disable` imports the compiler, a second that only those who compile
shall pay: import it where compiling is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable
def uncompiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), not traced: what depends on lengths known only when it runs would be compiled for
    each."""
    return function(*arguments)
