"""Finding where a number stopped being finite: done only once it happened, so that a healthy step pays nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError


class NonFiniteError(InputError):
    """The loss or a gradient is not finite; the message names step, layer and batch rows."""


def locate(model: nn.Module, run: Callable[[], Tensor], batch_rows: slice) -> tuple[str, list[int]]:
    """Repeat a forward and backward pass that went wrong and name the first place that is not finite.

    Args:
        model: the model, weights as they were.
        run: computes the loss (the same random state, so the same numbers).
        batch_rows: rows of the global batch that `run` reads.

    Returns: the place (a module's output, or a parameter's gradient) and the global rows it shows in, if known.
    """
    # First: from a weight that is not finite everything else follows.
    bad_weight = next((n for n, p in model.named_parameters() if not _finite(p)), None)
    if bad_weight is not None:
        return f"the weight {bad_weight} is itself not finite", []
    found: list[tuple[str, list[int]]] = []
    with _watched(model, batch_rows, found):
        loss = run()
    if found:
        return found[0]
    if not math.isfinite(float(loss.detach())):
        return "the loss, from finite outputs", []
    # Only when the forward pass was clean: hooks see outputs, and gradients have none.
    loss.backward()
    # The gradients of the last layers are computed first, so the last bad one in model order is where it began.
    # By parameter and not by activation: hooks on gradients would have to be there before the fault.
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not _finite(p.grad)]
    if bad:
        return f"the gradient of {bad[-1]}", []
    return "nothing on repetition (the sum of squared gradients overflows, or the computation is not repeatable)", []


@contextmanager
def _watched(model: nn.Module, batch_rows: slice, found: list[tuple[str, list[int]]]) -> Iterator[None]:
    """Note every module output that is not finite, innermost and earliest first."""
    size = batch_rows.stop - batch_rows.start

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if tensor.is_floating_point() and not _finite(tensor):
                    found.append((f"the output of {name or 'the model'}", _bad_rows(tensor, size, batch_rows.start)))
                    return

        return hook

    # On every module; an inner one calls its hook before the outer one does, so the first found is the innermost.
    handles = [m.register_forward_hook(watch(n)) for n, m in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _bad_rows(tensor: Tensor, rows: int, offset: int) -> list[int]:
    # Rows are told only where the first axis is the batch; experts regroup tokens, for one.
    if tensor.ndim == 0 or tensor.shape[0] != rows:
        return []
    bad = ~torch.isfinite(tensor.detach()).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor.detach())
    return [offset + int(i) for i in bad.nonzero().flatten()]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _tensors(member)
    elif isinstance(value, list | tuple):
        for member in value:
            yield from _tensors(member)
    # What our models return; a foreign output of another kind is watched through its modules.
    elif hasattr(value, "logits"):
        yield from _tensors(value.logits)


def _finite(tensor: Tensor) -> bool:
    from blockyard.training.distributed import local

    return bool(torch.isfinite(local(tensor.detach())).all())
