"""Learned positions: a vector for each place of the context, added to what stands there.

The embeddings of the 2017 Transformer's learned variant (arXiv 1706.03762, section 3.5), for models whose mixers do not
know in which order positions stand.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.layers.derivatives import must_read
from blockyard.layers.linear import Embedding
from blockyard.mixers.base import default_positions
from blockyard.registry import accepted_arguments

# Small beside token vectors, so that a model starts from what stands somewhere and learns where.
START = 0.1


class LearnedPositions(Embedding):
    """A table of vectors by place.

    Args:
        context: number of places.
        d_model: width of a vector.

    Shapes: -> [T, d_model], or [B, T, d_model] where rows stand at places of their own.
    """

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=START, a=-3 * START, b=3 * START)

    def forward(  # type: ignore[override]
        self, new: int, past: int = 0, padding_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """The vectors of new tokens.

        Args:
            new: number of new tokens, T.
            past: tokens before them, in a cache.
            padding_mask: [B, past + T], nonzero = keep: places are counted over the kept tokens of each row.
            positions: [T] or [B, T] instead.

        Raises:
            InputError: for a place beyond the table.
        """
        if positions is None:
            positions = default_positions(padding_mask, new)
            if past + new > len(self.weight):
                self._check(torch.tensor([past + new - 1]) if positions is None else positions)
            if positions is None:
                return self.weight[past : past + new]
        else:
            self._check(positions)
        return super().forward(positions)

    def _check(self, positions: Tensor) -> None:
        must_read(positions, "positions are looked up in a table")
        least, most = int(positions.min()), int(positions.max())
        if least < 0 or most >= len(self.weight):
            wrong = least if least < 0 else most
            raise InputError(
                f"position {wrong} is outside the {len(self.weight)} of model.context, for which positions were "
                "learned; read less, or train with a longer context"
            )


def takes_positions(layer: Any) -> bool:
    """Whether a block's mixer takes explicit positions."""
    return "positions" in accepted_arguments(getattr(layer, "attn", layer).forward)
