"""Graphs of any length: what modules compute once, before their model is exported, and hold while it is traced.

A graph that `torch.export` traces serves every batch and length, so nothing in it may be decided by one
(`torch.compiler.is_exporting()` is asked where eager code decides so). It is read without this library, by torch or by
an ONNX runtime, so it can hold no operator of ours, and what only depends on weights or options is a constant in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.nn.norms import widened


class ConstantHolder(nn.Module):
    """Base of a module that holds constants while it is exported.

    Attributes:
        held: what `constants` returned, while the module is exported; None at all other times.
    """

    held: tuple[Tensor, ...] | None = None

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        """Return what the graph has in place of its computation.

        Args:
            like: a tensor of the type and on the device that they meet, float32 at least.
        """
        raise NotImplementedError


@contextmanager
def holding_constants(model: nn.Module) -> Iterator[None]:
    """Let the modules of a model hold their constants: trace it within."""
    holders = [module for module in model.modules() if isinstance(module, ConstantHolder)]
    # Any: a model without parameters is of the default type.
    first: Any = next(model.parameters(), torch.empty(0))
    try:
        with torch.no_grad():
            for module in holders:
                module.held = module.constants(widened(first.detach()))
        yield
    finally:
        for module in holders:
            # Weights may change from now on.
            module.held = None
