"""A third party's package: a mixer and an FFN that know nothing of blockyard's base classes."""

import torch
from torch import nn


class CumulativeMean(nn.Module):
    """Each position gets a learnt map of the mean of what came before it.

    Args:
        d_model: width.
        n_heads: not used.
        strength: factor of the output.
    """

    causal = True

    def __init__(self, d_model: int, n_heads: int, causal: bool = True, strength: float = 1.0, **unused):
        super().__init__()
        self.d_model = d_model
        self.strength = strength
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x):
        count = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        return self.strength * self.map(x.cumsum(1) / count), None


class ScaledTanh(nn.Module):
    """tanh(scale · W x)."""

    def __init__(self, d_model: int, scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x):
        return torch.tanh(self.scale * self.map(x))
