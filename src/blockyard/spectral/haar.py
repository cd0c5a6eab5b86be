"""The orthonormal Haar wavelet transform of sequences of any length, and the refinement built on it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.nn.dropout import Dropout
from blockyard.nn.roles import Role

# Makes a step a rotation of pairs, so that energies add up.
_ROOT_HALF = math.sqrt(0.5)


def haar(x: Tensor, levels: int) -> list[Tensor]:
    """Return bands of x [..., N]: details from fine to coarse, then what is left, the approximation.

    x is extended by zeros to a multiple of 2^levels; the transform of that is orthonormal, so the squares of all bands
    sum to those of x, and `inverse_haar` gives x back.
    """
    at_least(1, levels=levels)
    length = x.shape[-1]
    x = F.pad(x, (0, -length % 2**levels))
    bands = []
    for _ in range(levels):
        even, odd = x[..., 0::2], x[..., 1::2]
        # Difference and sum of neighbours; the sums go on to the next level, half as many.
        bands.append((even - odd) * _ROOT_HALF)
        x = (even + odd) * _ROOT_HALF
    return [*bands, x]


def inverse_haar(bands: list[Tensor], length: int) -> Tensor:
    """Return x [..., length] from the bands that `haar` gave."""
    x = bands[-1]
    for detail in reversed(bands[:-1]):
        x = torch.stack([x + detail, x - detail], dim=-1).flatten(-2) * _ROOT_HALF
    return x[..., :length]


class WaveletRefinement(nn.Module):
    """A residual branch: Haar bands, each scaled by a learnt gate per channel, and back.

    Args:
        d_model: number of channels.
        on_rate: in training, the probability that a sample gets the branch; in eval every sample gets it, scaled by
            on_rate, so that eval is deterministic. 0 turns it off everywhere.
        levels: how often the sequence is halved; the approximation is a band, too.
        detach: let no gradient pass through the branch to its input; its gates learn all the same.

    Shapes: x [B, d_model, N], channels first -> the branch alone, the same shape; the caller adds it to x. Who calls it
        with a part of a batch passes the `shares` [part, 1, 1] that were drawn for the whole.
    """

    def __init__(self, d_model: int, on_rate: float = 0.1, *, levels: int = 3, detach: bool = False) -> None:
        super().__init__()
        if not 0.0 <= on_rate <= 1.0:
            raise InputError(f"on_rate={on_rate} should be between 0 and 1")
        at_least(1, levels=levels)
        self.on_rate, self.levels, self.detach = on_rate, levels, detach
        # 0: the branch grows as it learns; a random one would disturb the start.
        self.gates = nn.Parameter(torch.zeros(levels + 1, d_model))
        # As a Dropout over whole samples, the choice follows the run's keys wherever a sample is computed.
        self.off = Dropout(1 - on_rate if on_rate else 0.0)

    def parameter_roles(self) -> dict[str, Role]:
        return {"gates": Role("vector")}

    def shares(self, samples: Tensor) -> Tensor:
        """Return how much of the branch each sample [B, ...] gets, [B, 1, 1]: 0 or 1 in training, the rate in eval."""
        # Dropout divides what it keeps by the rate; in training the branch is applied whole or not at all.
        return self.off(samples.new_full((samples.shape[0], 1, 1), self.on_rate))

    def forward(self, x: Tensor, shares: Tensor | None = None) -> Tensor:
        if x.ndim != 3 or x.shape[1] != self.gates.shape[1]:
            raise InputError(f"x has shape {tuple(x.shape)}, expected [batch, {self.gates.shape[1]}, length]")
        if self.on_rate == 0:
            return torch.zeros_like(x)
        source = x.detach() if self.detach else x
        # One gate per band and channel, the same at every place: it scales what happens at one pace.
        gates = self.gates.to(x.dtype)[:, None, :, None]
        bands = [band * gate for band, gate in zip(haar(source, self.levels), gates)]
        return inverse_haar(bands, x.shape[-1]) * (self.shares(x) if shares is None else shares)

    def extra_repr(self) -> str:
        return f"on_rate={self.on_rate}, levels={self.levels}, detach={self.detach}"
