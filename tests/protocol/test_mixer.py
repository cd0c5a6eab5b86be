"""The mixer protocol: mixers of users keep working, whatever the built-in ones share below it."""

from __future__ import annotations

import torch
from torch import nn

from blockyard.protocol.block import ResidualBlock
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.mixer import Mixer
from blockyard.standard.gated import SwiGLU


class Mean(Mixer):
    """A running mean, written as the documentation of 0.1 had it: `_check`, `_placement`, a forward of its own."""

    def __init__(self, d_model: int, causal: bool = True) -> None:
        super().__init__()
        self.d_model, self.causal = d_model, causal
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x, *, padding_mask=None, cache=None):
        _, past = self._check(x, padding_mask, None, None, None, cache)
        values = self.map(x)
        if cache is not None:
            (values,) = cache.append(v=values)
        sums = values.cumsum(1) / torch.arange(1, values.shape[1] + 1)[:, None]
        return sums[:, past:]

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        return LayerCache(batch, {"v": (self.d_model,)}, max_len=max_len, **self._placement(dtype, device))


class Total(Mixer):
    """A running sum, with a ring one number wide of no use but to count tokens."""

    causal = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x, *, cache=None):
        self.check(x, cache=cache)
        sums = self.map(x).cumsum(1)
        if cache is not None:
            sums = sums + cache.state.get("sum", torch.zeros(()))
            cache.write(x.new_zeros(x.shape[0], 1, x.shape[1]))
            cache.state["sum"] = sums[:, -1:]
        return sums, None

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        return RingCache(batch, width=1, window=1, max_len=max_len, **self.placement(dtype, device))


def test_mixers_by_the_older_documentation_decode_in_a_block():
    torch.manual_seed(0)
    for mixer in (Mean(8), Total(8)):
        block, x = ResidualBlock(mixer, SwiGLU(8), 8).eval(), torch.randn(2, 6, 8)
        cache = block.new_cache(2)
        with torch.no_grad():
            parts = [block(part, cache=cache)[0] for part in x.split([3, 1, 2], dim=1)]
            torch.testing.assert_close(torch.cat(parts, dim=1), block(x)[0])
        assert cache.length == 6
