"""Attention that does not know where its positions stand, in the forms that people write it: for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.registry import register as registry


class Bare(nn.Module):
    """Attention without positions, masked from outside; it returns its output alone."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def attend(self, x: Tensor, **how: object) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, **how).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.attend(x, attn_mask=attn_mask)


class ByArgument(Bare):
    """Told at every call."""

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        return self.attend(x, is_causal=causal)


class ByTorchsWord(Bare):
    """Told at every call, in torch's word."""

    def forward(self, x: Tensor, is_causal: bool = False) -> Tensor:
        return self.attend(x, is_causal=is_causal)


class BuiltByTorchsWord(Bare):
    """Told when it is built, in torch's word."""

    def __init__(self, d_model: int, n_heads: int, is_causal: bool = False) -> None:
        super().__init__(d_model, n_heads)
        self.hides = is_causal

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, is_causal=self.hides)


class Table(Bare):
    """With learned positions of its own, which start at 0."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__(d_model, n_heads)
        self.table = nn.Parameter(torch.zeros(1200, d_model))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return self.attend(x + self.table[: x.shape[1]], attn_mask=attn_mask)


class Running(nn.Module):
    """The mean of what came before, which no order changes."""

    def __init__(self, d_model: int, n_heads: int, causal: bool = True) -> None:
        super().__init__()
        self.map, self.causal = nn.Linear(d_model, d_model), causal

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        return self.map(x.cumsum(1) / count if self.causal else x.mean(1, keepdim=True).expand_as(x))


class Fading(Running):
    """The same with the recent past weighing more."""

    def forward(self, x: Tensor) -> Tensor:
        place = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        weights = (0.1 * (place - place[:, None])).exp()
        weights = weights.tril() if self.causal else weights
        return self.map(weights / weights.sum(-1, keepdim=True) @ x)


CLASSES = {
    "bare": Bare,
    "by_argument": ByArgument,
    "by_torchs_word": ByTorchsWord,
    "built_by_torchs_word": BuiltByTorchsWord,
    "table": Table,
    "running": Running,
    "fading": Fading,
}


@contextmanager
def unordered() -> Iterator[None]:
    """The classes registered under their names, without traits, and forgotten afterwards."""
    try:
        for name, cls in CLASSES.items():
            registry.register_attn(name)(cls)
        yield
    finally:
        for name in CLASSES:
            registry._register.entries.pop(("attn", name), None)
