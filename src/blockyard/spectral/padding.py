"""Rows without their padding: tokens that are kept move to the front, and results go back to where they came from."""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.nn.derivatives import must_read


class Compacted:
    """A padded batch with every row's kept tokens first, in order; on a CPU as short as the longest row.

    Args:
        x: [B, T, d].
        keep: [B, T], nonzero = keep.

    Attributes:
        x: [B, N, d], N = the most tokens of a row (at least 1) on a CPU and T elsewhere, 0 beyond a row's count.
        counts: kept tokens per row, int64 [B].
        valid: bool [B, N].
    """

    def __init__(self, x: Tensor, keep: Tensor) -> None:
        must_read(keep, "spectral mixing brings the tokens that padding_mask keeps together")
        keep = keep.to(torch.bool)
        self._shape = x.shape
        self.counts = keep.sum(1)
        width = _width(x, self.counts)
        # Stable, so that tokens stay in their order.
        self._order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :width, None]
        self.valid = torch.arange(width, device=x.device) < self.counts[:, None]
        gathered = x.gather(1, self._order.expand(-1, -1, x.shape[2]))
        # Chosen, not multiplied: padding may hold anything, NaN included.
        self.x = torch.where(self.valid[..., None], gathered, 0)

    def restore(self, out: Tensor) -> Tensor:
        """Return [B, N, d] back to [B, T, d], with 0 at padding."""
        out = torch.where(self.valid[..., None], out, 0)
        whole = out.new_zeros(self._shape[0], self._shape[1], out.shape[2])
        return whole.scatter(1, self._order.expand(-1, -1, out.shape[2]), out)


def _width(x: Tensor, counts: Tensor) -> int:
    """Return columns that hold every row's tokens; where reading the counts would wait for the device, all of them."""
    # Batches are seldom wider than their longest row.
    return x.shape[1] if x.device.type != "cpu" else max(1, int(counts.max()))


def groups(keys: Tensor) -> list[tuple[int, Tensor]]:
    """Return (key, the rows that have it) for every different key of an int64 [B]; the rows are int64 on the CPU."""
    keys = keys.cpu()
    return [(int(key), (keys == key).nonzero().flatten()) for key in keys.unique()]
