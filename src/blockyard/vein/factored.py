"""Attention whose veins stand apart from the projections: the two forms of the vein-flow document.

    factored  q, k, v = V (W x) per head, out = W_o (U mixed): square projections with a vein as wide as a head behind
              them (the document's `TVAAttention`; values may have a vein of their own)
    shared    z = V x, then multi-head attention on z, out = U (W_o mixed): one vein as wide as d_model around it all

Multiplied together the matrices are those of the folded form (attention.py), which is smaller and faster: these two are
kept to train the document's parameters and to compare with it.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Call
from blockyard.standard.attention import StandardAttention, side_by_side
from blockyard.vein.projector import VeinProjector

VeinForm = Literal["folded", "factored", "shared"]


class VeinedAttention(StandardAttention):
    """Standard attention, or the same with veins before and behind its heads.

    Attributes:
        form: folded (no veins: standard attention), factored or shared.
        vein: the vein of queries and keys, and of values unless these have their own.
        value_vein: the values' own vein.
        proj_dropout: of the output.
    """

    form: VeinForm
    vein: VeinProjector | None
    value_vein: VeinProjector | None
    proj_dropout: Dropout

    def widen_context(self, key_width: int, value_width: int) -> None:
        if self.form != "folded":
            raise InputError(
                f"a context with keys of width {key_width} and values of width {value_width}: the veins of a "
                f"{self.form} attention read vectors of d_model; use the folded form"
            )
        super().widen_context(key_width, value_width)

    def _reads(self, projection: Linear) -> int:
        return self.d_model if self.form == "shared" else super()._reads(projection)

    def mix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        if self.form == "folded":
            return super().mix(x, call)
        # Asked for once per call: tied ones are made orthonormal there.
        into, back, values_into, values_back = self.veins()
        if self.form == "shared":
            # One vein around it all: inside it is standard attention on vectors of `rank` numbers.
            x = F.linear(x, into)
            call.context, call.values = (None if t is None else F.linear(t, into) for t in (call.context, call.values))
        q, k, v = self._heads(x, call) if self.form == "shared" else self._factored_heads(x, call, into, values_into)
        mixed, weights = self._attend(q, k, v, call)
        mixed = mixed.to(x.dtype)
        if self.form == "factored":
            # U Σ p v = Σ p U v: rebuilding the means is cheaper by the number of keys than rebuilding values.
            return self._output(side_by_side(F.linear(mixed, values_back))), weights
        return self.proj_dropout(F.linear(self.output_proj(side_by_side(mixed)), back)), weights

    def _output(self, mixed: Tensor) -> Tensor:
        return self.proj_dropout(self.output_proj(mixed))

    def _adds_inside(self) -> bool:
        dropped = self.training and self.proj_dropout.p > 0
        return self.form == "folded" and not dropped and super()._adds_inside()

    def _factored_heads(
        self, x: Tensor, call: Call, into: Tensor, values_into: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return heads as `_heads`, with a vein behind each head's projection."""
        if call.context is None:
            qk, v = self._projected(x, call)
            return self._turned(F.linear(qk, into), F.linear(v, values_into), call)
        q, k, v = self._projected_apart(x, call)
        return self._normed(F.linear(q, into), F.linear(k, into), F.linear(v, values_into))

    def veins(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Compute V and U for queries and keys, V and U for values.

        Raises: InputError for a folded attention, which has none.
        """
        if self.vein is None:
            raise InputError("a folded attention has no vein apart from its projections")
        shared = self.vein.matrices()
        return *shared, *(shared if self.value_vein is None else self.value_vein.matrices())

    def cost(self, tokens: int) -> Cost:
        total = super().cost(tokens)
        if self.vein is None:
            return total
        # Tied veins are made orthonormal once per call: `VeinProjector.cost` of no rows.
        veins = [self.vein] if self.value_vein is None else [self.vein, self.value_vein]
        for each in veins:
            total += each.cost(0)
        width = self.vein.d_model
        if self.form == "shared":
            return total + Cost(0, linear_flops(tokens, (width, self.head_dim), (self.head_dim, width)))
        # Every token passes V for each head's query, for each key head's key and value, and U for each head's mean.
        into, values_into = (width, self.head_dim), (width, self.v_dim)
        flops = linear_flops(tokens * self.n_heads, into, values_into[::-1])
        return total + Cost(0, flops + linear_flops(tokens * self.n_kv_heads, into, values_into))
