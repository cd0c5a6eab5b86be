"""What a module keeps in memory for its backward pass."""

from __future__ import annotations

import torch


def saved_bytes(module: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that the forward pass keeps for the backward one, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = module(x.requires_grad_())
    del kept
    return sum(seen.values())
