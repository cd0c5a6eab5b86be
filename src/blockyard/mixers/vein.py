"""Tri-vein attention: queries, keys and values live in a vein of r directions per head.

The vein-flow document's `TVAAttention`. Projecting to the vein and back is linear, so TVA *is* multi-head attention
with head dimension r: folded (the default) it stores just that, d_model -> H·r and back. `factored=True` keeps the
document's d_model x d_model projections with the vein behind them; the outputs are the same numbers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.cache import LayerCache
from blockyard.costs import Cost, linear_flops
from blockyard.errors import InputError
from blockyard.layers.attention import Kernel, attend
from blockyard.layers.dropout import Dropout
from blockyard.layers.linear import Linear, plain
from blockyard.layers.norms import RMSNorm
from blockyard.layers.rotary import RotaryPositionalEmbedding, rotate
from blockyard.layers.vein import VeinProjector, orthonormal_rows
from blockyard.mixers.base import Mixer, check_heads, default_positions
from blockyard.registry import Traits, register_attn

# From this many rows on, one product with the stacked q, k, v weights pays for stacking them.
_STACK_FROM = 64


@register_attn(
    "tva",
    group="vft",
    traits=Traits(
        causal=True,
        bidirectional=True,
        cache="kv",
        padding=True,
        attn_mask=True,
        cross=True,
        weights=True,
        positions=True,
    ),
)
class TVAAttention(Mixer):
    """Tri-vein attention: multi-head attention whose heads are only `rank` wide (vein-flow document).

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads; folded, it need not divide d_model.
        rank: width of queries and keys per head; None = half of d_model / n_heads, at least 2.
        v_rank: width of values per head; None = rank.
        factored: keep the document's square projections and the vein apart, instead of folded into one matrix.
        vein_projector: a vein to share: as wide as a head (then the form is factored), or as wide as d_model (then
            queries, keys and values are computed from z = V x, and the output goes back through U).
        causal: hide the future; the forward argument overrides it.
        rope: pairing of the rotary embedding within the vein, half or interleaved, or none (the document's).
        rope_theta: base of the rotary wavelengths.
        qk_norm: RMS-normalise queries and keys per head before they are rotated.
        dropout: probability of dropping an attention weight in training, unless attn_dropout is given.
        attn_dropout: the same by the document's name.
        proj_dropout: probability of dropping an element of the output in training.
        kernel: auto, matmul or sdpa; auto decides by length and device.

    Shapes: x [B, T, d_model] -> [B, T, d_model]; weights [B, n_heads, T, S]; cache [B, n_heads, T, rank and v_rank].
    Raises: InputError for a rank below 1 or (factored) not below the head's width, for a shared vein of another
        rank or width, and for rank 1 with rotary positions, which turn pairs.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rank: int | None = None,
        *,
        v_rank: int | None = None,
        factored: bool = False,
        vein_projector: VeinProjector | None = None,
        causal: bool = False,
        rope: Literal["half", "interleaved", "none"] = "half",
        rope_theta: float = 10_000.0,
        qk_norm: bool = False,
        dropout: float = 0.0,
        attn_dropout: float | None = None,
        proj_dropout: float = 0.0,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        if d_model < 1 or n_heads < 1:
            raise InputError(f"d_model={d_model} and n_heads={n_heads} should be at least 1")
        self.d_model, self.n_heads, self.causal, self.kernel = d_model, n_heads, causal, kernel
        self.rank = rank if rank is not None else max(2, d_model // n_heads // 2)
        self.v_rank = v_rank if v_rank is not None else self.rank
        self._check_ranks(rope)
        self.form = self._form_of(vein_projector, factored)
        inner, q_width, v_width = self._widths()
        self.q_proj = Linear(inner, q_width)
        self.k_proj = Linear(inner, q_width)
        self.v_proj = Linear(inner, v_width)
        self.output_proj = Linear(v_width, inner)
        self.vein = vein_projector
        self.value_vein: VeinProjector | None = None
        if self.form == "factored":
            head_dim = check_heads(d_model, n_heads)
            if max(self.rank, self.v_rank) >= head_dim:
                raise InputError(
                    f"rank={self.rank}, v_rank={self.v_rank}: factored, both should be below the head width "
                    f"{head_dim} = d_model / n_heads"
                )
            # One vein serves all three ("tri") unless values get a width of their own; nothing is rebuilt from
            # queries and keys, so theirs then needs no U.
            split = self.v_rank != self.rank
            self.vein = vein_projector or VeinProjector(head_dim, self.rank, tied=split)
            self.value_vein = VeinProjector(head_dim, self.v_rank) if split else None
        self.q_norm = RMSNorm(self.rank) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.rank) if qk_norm else nn.Identity()
        # Rotation turns pairs: of an odd rank the last direction stays as it is.
        even = self.rank - self.rank % 2
        self.rope = None if rope == "none" else RotaryPositionalEmbedding(rope_theta, even, layout=rope)
        self.attn_dropout = Dropout(dropout if attn_dropout is None else attn_dropout)
        self.proj_dropout = Dropout(proj_dropout)

    def _check_ranks(self, rope: str) -> None:
        if self.rank < 1 or self.v_rank < 1:
            raise InputError(f"rank={self.rank} and v_rank={self.v_rank} should be at least 1")
        if max(self.rank, self.v_rank) >= self.d_model:
            raise InputError(f"rank={self.rank} and v_rank={self.v_rank} should be below d_model={self.d_model}")
        if rope != "none" and self.rank < 2:
            raise InputError(f"rank={self.rank} with rope={rope!r}: rotation turns pairs; use rank >= 2 or rope='none'")

    def _form_of(self, vein: VeinProjector | None, factored: bool) -> Literal["folded", "factored", "shared"]:
        if vein is None:
            return "factored" if factored else "folded"
        if vein.rank != self.rank:
            raise InputError(f"vein_projector has rank {vein.rank}, but the attention has rank={self.rank}")
        if vein.d_model == self.d_model and not factored:
            return "shared"
        head_dim = check_heads(self.d_model, self.n_heads)
        if vein.d_model == head_dim:
            return "factored"
        raise InputError(
            f"vein_projector is {vein.d_model} wide; it should be {head_dim} wide (one head)"
            f"{'' if factored else f' or {self.d_model} wide (d_model)'}"
        )

    def _widths(self) -> tuple[int, int, int]:
        """What the projections read, and the widths of queries and of values over all heads."""
        if self.form == "factored":
            return self.d_model, self.d_model, self.d_model
        inner = self.rank if self.form == "shared" else self.d_model
        return inner, self.n_heads * self.rank, self.n_heads * self.v_rank

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        cache: LayerCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        causal, past = self._check(x, padding_mask, causal, positions, context, cache)
        q, k, v = self._to_vein(x, x if context is None else context)
        q, k = self.q_norm(q), self.k_norm(k)
        if context is None:
            q, k = self._turn(q, k, positions, padding_mask, past)
        if cache is not None:
            k, v = cache.append(k=k.to(cache.dtype), v=v.to(cache.dtype))
            q = q.to(cache.dtype)
        mixed, weights = attend(
            q,
            k,
            v,
            causal=causal,
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            kernel=self.kernel,
            dropout=self.attn_dropout.p if self.training else 0.0,
            dropout_keys=self.attn_dropout.keys,
            return_weights=return_weights,
        )
        return self._from_vein(mixed.to(x.dtype)), weights

    def _to_vein(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, rank] of x, keys [B, H, S, rank] and values [B, H, S, v_rank] of the source."""
        same = x is source
        if self.form == "shared":
            v_matrix = self._shared().matrices()[0]
            x = F.linear(x, v_matrix)
            source = x if same else F.linear(source, v_matrix)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if same and x.shape[0] * x.shape[1] >= _STACK_FROM and plain(*projections):
            stacked = F.linear(x, torch.cat([p.weight for p in projections]))
            parts: Any = stacked.split([p.weight.shape[0] for p in projections], dim=-1)
        else:
            parts = (self.q_proj(x), self.k_proj(source), self.v_proj(source))
        q, k, v = (part.unflatten(-1, (self.n_heads, -1)).transpose(1, 2) for part in parts)
        if self.form == "factored":
            into, values_into = self._shared().matrices()[0], self._values().matrices()[0]
            q, k, v = F.linear(q, into), F.linear(k, into), F.linear(v, values_into)
        return q, k, v

    def _from_vein(self, mixed: Tensor) -> Tensor:
        """Mixed values [B, H, T, v_rank] -> [B, T, d_model]."""
        if self.form == "factored":
            mixed = self._values().reconstruct(mixed)
        out = self.output_proj(mixed.transpose(1, 2).flatten(2))
        if self.form == "shared":
            out = self._shared().reconstruct(out)
        return self.proj_dropout(out)

    def _turn(
        self, q: Tensor, k: Tensor, positions: Tensor | None, padding_mask: Tensor | None, past: int
    ) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys, in the vein, by their positions."""
        if self.rope is None:
            return q, k
        if positions is None and padding_mask is not None:
            positions = default_positions(padding_mask, q.shape[-2])
        cos, sin = (t.unsqueeze(-3) for t in self.rope.tables(q.shape[-2], q, positions, offset=past))
        width, layout = self.rope.d_k, self.rope.layout
        if width == self.rank:
            return rotate(q, cos, sin, layout), rotate(k, cos, sin, layout)
        turned = (torch.cat([rotate(t[..., :width], cos, sin, layout), t[..., width:]], dim=-1) for t in (q, k))
        q, k = turned
        return q, k

    def _shared(self) -> VeinProjector:
        assert self.vein is not None
        return self.vein

    def _values(self) -> VeinProjector:
        return self.value_vein or self._shared()

    def fold(self) -> TVAAttention:
        """The same function with the veins multiplied into the projections; parameters are copied, never shared."""
        if self.form == "folded":
            raise InputError("this attention is folded already")
        folded = self._like("folded")
        with torch.no_grad():
            v, u = self._shared().matrices()
            if self.form == "shared":
                for name in ("q_proj", "k_proj", "v_proj"):
                    getattr(folded, name).weight.copy_(getattr(self, name).weight @ v)
                folded.output_proj.weight.copy_(u @ self.output_proj.weight)
                return folded
            value_v, value_u = self._values().matrices()
            for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
                heads = getattr(self, name).weight.unflatten(0, (self.n_heads, -1))  # [H, head_dim, d_model]
                getattr(folded, name).weight.copy_((into @ heads).flatten(0, 1))
            columns = self.output_proj.weight.unflatten(1, (self.n_heads, -1))  # [d_model, H, head_dim]
            folded.output_proj.weight.copy_((columns @ value_u).flatten(1))
        return folded

    def unfold(self) -> TVAAttention:
        """The same function in the document's factored form, with tied orthonormal veins.

        Raises: InputError when it is not folded, or a rank is not below the head's width.
        """
        if self.form != "folded":
            raise InputError(f"only a folded attention can be unfolded; this one is {self.form}")
        factored = self._like("factored")
        with torch.no_grad():
            for vein in (factored.vein, factored.value_vein):
                if vein is not None:
                    # V Vᵀ = 1: what Vᵀ lifts, V brings back.
                    for stored, matrix in zip(vein.stored(), (v := orthonormal_rows(vein.stored()[0]), v.mT)):
                        stored.copy_(matrix)
            v, value_v = factored._shared().matrices()[0], factored._values().matrices()[0]
            for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
                heads = getattr(self, name).weight.unflatten(0, (self.n_heads, -1))  # [H, rank, d_model]
                getattr(factored, name).weight.copy_((into.mT @ heads).flatten(0, 1))
            columns = self.output_proj.weight.unflatten(1, (self.n_heads, -1))  # [d_model, H, v_rank]
            factored.output_proj.weight.copy_((columns @ value_v).flatten(1))
        return factored

    def _like(self, form: Literal["folded", "factored"]) -> TVAAttention:
        """A new attention of the same shape, settings, dtype and device in another form."""
        twin = TVAAttention(
            self.d_model,
            self.n_heads,
            self.rank,
            v_rank=self.v_rank,
            factored=form == "factored",
            causal=self.causal,
            rope="none" if self.rope is None else self.rope.layout,
            rope_theta=10_000.0 if self.rope is None else self.rope.theta,
            qk_norm=isinstance(self.q_norm, RMSNorm),
            attn_dropout=self.attn_dropout.p,
            proj_dropout=self.proj_dropout.p,
            kernel=self.kernel,
        ).to(self.q_proj.weight)
        for mine, its in ((self.q_norm, twin.q_norm), (self.k_norm, twin.k_norm)):
            its.load_state_dict(mine.state_dict())
        return twin.train(self.training)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache:
        slots = {"k": (self.n_heads, self.rank), "v": (self.n_heads, self.v_rank)}
        return LayerCache(batch, slots, max_len=max_len, **self._placement(dtype, device))

    def cost(self, tokens: int) -> Cost:
        inner, q_width, v_width = self._widths()
        shapes = [(inner, q_width), (inner, q_width), (inner, v_width), (v_width, inner)]
        gains = 2 * self.rank if isinstance(self.q_norm, RMSNorm) else 0
        total = Cost(
            parameters=sum(a * b for a, b in shapes) + gains,
            flops=linear_flops(tokens, *shapes) + 2 * self.n_heads * tokens * tokens * (self.rank + self.v_rank),
            cache_bytes_per_token=self.n_heads * (self.rank + self.v_rank) * 4,
        )
        return total + self._vein_cost(tokens)

    def _vein_cost(self, tokens: int) -> Cost:
        if self.form == "folded":
            return Cost()
        vein, values = self._shared(), self._values()
        parameters = vein.cost(0).parameters + (values.cost(0).parameters if values is not vein else 0)
        if self.form == "shared":
            flops = linear_flops(tokens, (self.d_model, self.rank), (self.rank, self.d_model))
        else:
            into, back = (vein.d_model, self.rank), (self.v_rank, vein.d_model)
            flops = linear_flops(tokens * self.n_heads, into, into, back[::-1], back)
        # Tied veins are made orthonormal anew each time that their matrices are asked for.
        asked = [vein, vein] if self.form == "shared" else [vein, values, values]
        return Cost(parameters, flops + sum(each.cost(0).flops for each in asked))

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, rank={self.rank}, v_rank={self.v_rank}, form={self.form}, causal={self.causal}"
