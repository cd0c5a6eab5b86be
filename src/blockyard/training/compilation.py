"""Compiling a model, block by block or whole, and whether that pays within one run."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import nn

from blockyard.errors import InputError

Extent = Literal["no", "blocks", "model"]

# Measured on two cores (torch 2.13, 0.8M parameters, four layers, bf16), wall seconds of a first compilation forward
# and backward, most of them the C++ compiler's, and of one whose kernels the machine has built before; and the part
# of an eager step that compiled code saves. Compiling the model whole also fuses across blocks and leaves fewer calls.
SECONDS_PER_KIND, WARM_SECONDS_PER_KIND, SAVED_BY_BLOCKS = 20.0, 3.5, 0.40
SECONDS_PER_LAYER, WARM_SECONDS_PER_LAYER, SAVED_BY_MODEL = 9.0, 2.5, 0.48
# What compiling must be predicted to save of the run before it is begun: its cost is sure, its gain is a prediction.
# On a busy machine the steps that were timed look slow, and the compiler, which waits likewise, takes longer.
LEAST_SAVED = 0.15


# What the option train.compile asks for; `auto` asks for nothing.
ASKED: dict[str, Extent] = {"on": "blocks", "model": "model", "off": "no"}


def compiler_missing() -> str | None:
    """Return why compiling cannot work here, or None."""
    if torch.cuda.is_available():
        return None
    compiler = os.environ.get("CXX") or "g++"
    if not any(shutil.which(name) for name in (compiler, "clang++", "c++")):
        return "there is no C++ compiler on this machine"
    return None


def block_kinds(blocks: Sequence[nn.Module]) -> int:
    """Return how many blocks differ in a way that takes a compilation of its own."""
    return len({_structure(block) for block in blocks})


def _structure(block: nn.Module) -> str:
    """Return what the compiled code depends on: classes, plain attributes, parameter shapes."""
    # Not the class alone: two layers of one class with different windows compile to different code.
    parts = []
    for name, module in block.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | type(None))}
        shapes = [tuple(p.shape) for p in module.parameters(recurse=False)]
        parts.append(f"{name} {type(module).__qualname__} {plain} {shapes}")
    return "\n".join(parts)


def compilation_plan(
    eager_seconds: float,
    steps: int,
    *,
    kinds: int,
    layers: int,
    warm: Collection[str] = (),
    asked: Extent | None = None,
) -> tuple[Extent, float, str]:
    """Return what to compile in a run of `steps` more steps: what leaves the most time after its own cost, and nothing
    where that is less than `LEAST_SAVED` of the run.

    Args:
        eager_seconds: time of an eager step.
        steps: steps that are left.
        kinds: kinds of blocks, each compiled once.
        layers: layers, all compiled when the model is compiled whole.
        warm: extents that this machine has compiled before, for the same model.
        asked: what will be compiled whether it pays or not; None = what pays most.

    Returns: the extent, the predicted seconds of compiling and training, and the sum in words.
    """
    per_kind = WARM_SECONDS_PER_KIND if "blocks" in warm else SECONDS_PER_KIND
    per_layer = WARM_SECONDS_PER_LAYER if "model" in warm else SECONDS_PER_LAYER
    run = eager_seconds * steps
    plans: dict[Extent, float] = {
        "no": run,
        "blocks": per_kind * kinds + run * (1 - SAVED_BY_BLOCKS),
        "model": per_layer * max(layers, kinds) + run * (1 - SAVED_BY_MODEL),
    }
    # The sum over the run and not the speed of a step: forty steps never repay a minute of g++.
    best = min(plans, key=lambda extent: plans[extent]) if asked is None else asked
    if asked is None and plans[best] > (1 - LEAST_SAVED) * run:
        best = "no"
    predicted = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plans.items())
    words = f"predicted for {steps} steps of {eager_seconds * 1e3:.1f} ms (eager): {predicted}"
    return best, plans[best], words


def decided_untimed(
    option: str, blocks: Sequence[nn.Module], *, sharded: bool, varies: str | None = None
) -> tuple[Extent, str] | None:
    """Return what can be said about compiling before any step was timed: the extent and why, None when timing must
    tell.

    Args:
        option: train.compile.
        blocks: the model's blocks.
        sharded: whether FSDP2 holds the model.
        varies: why the shapes that are computed with change from step to step; None where they do not.

    Raises:
        InputError: when what is asked for cannot be done here.
    """
    missing = compiler_missing()
    if option in ("on", "model") and missing:
        raise InputError(f"train.compile={option}: {missing}; install one, or use auto or off")
    if option == "on" and not blocks:
        raise InputError("train.compile=on: the model has no blocks to compile")
    if option == "model" and sharded:
        raise InputError("train.compile=model: a sharded model is compiled block by block; use on")
    if option == "model" and varies:
        raise InputError(f"train.compile=model: {varies}; use on, auto or off")
    if option in ASKED:
        return ASKED[option], "as asked"
    if varies:
        # What that gains is none of the gains that are known.
        return "no", f"{varies}; train.compile=on does"
    if missing:
        return "no", missing
    if not blocks or sharded:
        return "no", "auto compiles neither sharded nor foreign models"
    if any(getattr(block, "complex_valued", False) for block in blocks):
        return "no", "the compiler makes no code for complex numbers"
    return None


def compile_model(model: nn.Module, blocks: Sequence[nn.Module], extent: Extent) -> None:
    """Compile in place: the model whole, or every block, of which those of one kind share one compilation."""
    import torch._dynamo

    # One entry per kind of block and mode; above the limit torch would silently fall back to eager.
    # Four: train and eval, with and without gradients.
    limit = 4 * block_kinds(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    # A real model of complex samples takes them apart outside the generated code: nothing that a user could change.
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
    for module in [model] if extent == "model" else blocks:
        module.compile(dynamic=False)


def eager(compiled: bool) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which compiled blocks run as they were written: for evaluation, whose few passes do not repay
    a compilation of their own, and for finding out where a number went wrong."""
    # Asking torch.compiler anything imports the compiler, seconds that an eager run must not pay.
    return torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
