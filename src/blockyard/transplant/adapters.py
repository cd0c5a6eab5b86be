"""LoRA (arXiv 2106.09685) on matrices that stay: W + s · up · down with a small rank, merged into W at the end.

Done by torch's parametrisation of `weight`, so whatever reads a weight (`nn.linear.weight_of`) sees the adapted one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from blockyard.errors import InputError

# s: `up` starts at nothing and moves by the learning rate a step, which alone would be a small part of a trained W.
SCALE = 8.0


class LowRank(nn.Module):
    """What is added to a matrix [d_out, d_in].

    Args:
        weight: the matrix.
        rank: of what is added.
        generator: draws `down`; `up` starts at 0, so that nothing changes at first.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        d_out, d_in = weight.shape
        drawn = torch.randn(rank, d_in, generator=generator) * d_in**-0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(d_out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + SCALE * (self.up @ self.down)


def adapt(modules: Iterable[tuple[str, nn.Module]], rank: int, seed: int) -> dict[str, tuple[nn.Module, LowRank]]:
    """Put low-rank additions to the weights of linear maps.

    Args:
        modules: names and modules; those that are not linear maps are left out, and weights that two of them share.
        rank: of every addition.
        seed: of their starts.

    Returns: by name, each map and what is added to it.

    Raises:
        InputError: when there is no linear map, or the rank is beyond the widths of one.
    """
    generator = torch.Generator().manual_seed(seed)
    maps = {name: module for name, module in modules if isinstance(module, nn.Linear)}
    users = Counter(id(module.weight) for module in maps.values())
    linear = {name: module for name, module in maps.items() if users[id(module.weight)] == 1}
    if not linear:
        raise InputError(f"lora={rank}: no linear map of these layers stays as it is, so there is nothing to adapt")
    most = min(min(module.weight.shape) for module in linear.values())
    if rank > most:
        raise InputError(f"lora={rank} should be at most {most}, the width of the narrowest matrix")
    made: dict[str, tuple[nn.Module, LowRank]] = {}
    for name, module in linear.items():
        # Of its own: torch merges into the same memory, and a model may share it with the one that it was made of.
        wished = module.weight.requires_grad
        module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=wished)
        added = LowRank(module.weight.detach(), rank, generator)
        parametrize.register_parametrization(module, "weight", added)
        made[name] = (module, added)
    return made


def take_off(adapted: Iterable[tuple[nn.Module, LowRank]], *, merge: bool) -> None:
    """Make plain matrices of adapted ones again: with what was added, or as they were."""
    for module, _ in adapted:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=merge)
