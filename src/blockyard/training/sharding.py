"""Parts and wholes of tensors that FSDP2 spreads over ranks; every function passes ordinary tensors through.

torch.distributed.tensor takes 0.7 s to import, so it is imported only where a sharded tensor is at hand.
"""

from __future__ import annotations

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether the tensor is a DTensor, told without importing the class."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing memory with the tensor."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered; a collective call, so every rank must make it."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def part(full: Tensor, model: Tensor) -> Tensor:
    """This rank's part of a whole that every rank holds, laid out as `model` is. Nothing is sent."""
    return local(spread(full, model))


def spread(full: Tensor, model: Tensor) -> Tensor:
    """A whole tensor that every rank holds, sharded as `model` is. Nothing is sent."""
    if not is_sharded(model):
        return full
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        full.contiguous(),
        model.device_mesh,  # type: ignore[attr-defined]
        model.placements,  # type: ignore[attr-defined]
        src_data_rank=None,
    )


def like(mine: Tensor, model: Tensor) -> Tensor:
    """This rank's part as a tensor sharded as `model` is."""
    if not is_sharded(model):
        return mine
    from torch.distributed.tensor import DTensor

    mesh, placements = model.device_mesh, model.placements  # type: ignore[attr-defined]
    return DTensor.from_local(mine, mesh, placements, shape=model.shape, stride=model.stride())
