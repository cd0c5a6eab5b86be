"""What a module holds: its parameters, and what it keeps in memory for its backward pass."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn


def parameter_count(module: nn.Module) -> int:
    """Count the parameters of a module."""
    return sum(p.numel() for p in module.parameters())


class _SavedTensor:
    """A tensor in the graph, dying with it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """Return bytes that a forward pass keeps for its backward one.

    What two passes share is left out: parameters, and tables such as the rotary ones, which are as long as the longest
    sequence that any module has met before.
    """
    # Both graphs stay alive, so that no storage of one can lie where one of the other did.
    first, kept_first = _kept(module, x)
    second, kept_second = _kept(module, x)
    total = sum(size for place, size in kept_second.items() if place not in kept_first)
    del first, second
    return total


def _kept(module: nn.Module, x: Tensor) -> tuple[Tensor | tuple[Tensor, ...], dict[int, int]]:
    """Return the output of a pass over a copy of x, and the storages that its graph keeps: address -> bytes."""
    held: list[weakref.ref[_SavedTensor]] = []

    def pack(tensor: Tensor) -> _SavedTensor:
        holder = _SavedTensor(tensor)
        held.append(weakref.ref(holder))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        out = module(x.clone().requires_grad_())
    alive = [holder.tensor.untyped_storage() for found in held if (holder := found()) is not None]
    return out, {storage.data_ptr(): storage.nbytes() for storage in alive}
