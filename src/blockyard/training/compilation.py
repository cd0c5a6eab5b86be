"""Compiling a model block by block, and whether that pays within one run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# Measured on two cores (torch 2.13): seconds to compile one kind of block forward and backward in a fresh process,
# and the part of an eager step that the compiled one saves (19.0 -> 12.6 ms at 0.8M parameters, 306 -> 225 at 10.7M).
SECONDS_PER_BLOCK_KIND = 12.0
SAVED = 0.28


def compiler_missing() -> str | None:
    """Why compiling cannot work here, or None."""
    if torch.cuda.is_available():
        return None
    compiler = os.environ.get("CXX") or "g++"
    if not any(shutil.which(name) for name in (compiler, "clang++", "c++")):
        return "there is no C++ compiler on this machine"
    return None


def block_kinds(blocks: Sequence[nn.Module]) -> int:
    """How many blocks differ in a way that takes a compilation of its own."""
    return len({_structure(block) for block in blocks})


def _structure(block: nn.Module) -> str:
    """What the compiled code depends on: classes, plain attributes, parameter shapes."""
    parts = []
    for name, module in block.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | type(None))}
        shapes = [tuple(p.shape) for p in module.parameters(recurse=False)]
        parts.append(f"{name} {type(module).__qualname__} {plain} {shapes}")
    return "\n".join(parts)


def compiling_pays(eager_seconds: float, steps: int, kinds: int) -> tuple[bool, str]:
    """Whether compiling saves more than it costs within `steps` steps, and the sum in words."""
    saved, cost = SAVED * eager_seconds * steps, SECONDS_PER_BLOCK_KIND * kinds
    sign = ">" if saved > cost else "<="
    words = f"predicted saving {saved:.0f} s {sign} cost {cost:.0f} s ({eager_seconds * 1e3:.1f} ms a step, eager)"
    return saved > cost, words


def compile_blocks(blocks: Sequence[nn.Module]) -> None:
    """Compile every block in place; blocks of one kind share one compilation."""
    import torch._dynamo

    # One entry per kind of block and mode; above the limit torch would silently fall back to eager.
    limit = 4 * block_kinds(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile(dynamic=False)


def eager(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """A context in which compiled blocks run as they were written: for evaluation, whose few passes do not repay a
    compilation of their own, and for finding out where a number went wrong."""
    # Asking torch.compiler anything imports the compiler, seconds that an eager run must not pay.
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
