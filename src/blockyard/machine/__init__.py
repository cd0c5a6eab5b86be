"""The machine: its memory, its processor, and what torchrun tells a process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.machine.memory import available_bytes as available_bytes
    from blockyard.machine.memory import forcing as forcing
else:
    __all__ = exports(
        __name__,
        {
            "memory": "available_bytes forcing",
        },
    )
