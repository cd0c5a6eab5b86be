"""Refusing numbers that are not finite where they would spread unseen, unless someone else is watching for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.derivatives import hidden

_watched = [False]


@contextmanager
def watched_elsewhere() -> Iterator[None]:
    """Let them pass inside: a training loop looks at loss and gradients and says where they went wrong, or skips."""
    before, _watched[0] = _watched[0], True
    try:
        yield
    finally:
        _watched[0] = before


def check_finite(values: Tensor, what: str) -> None:
    """Raise InputError when a value is NaN or infinite.

    Elsewhere than on a CPU the read would stall the device, and neither a compiled graph nor vmap can branch on it: no
    check there.
    """
    if torch.compiler.is_compiling() or _watched[0] or values.device.type != "cpu" or hidden(values):
        return
    # Detached: an operation more than in the other pass would be an error under activation checkpointing.
    values = values.detach()
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise InputError(f"{what} should be finite, but {count} of {values.numel()} are NaN or infinite")
