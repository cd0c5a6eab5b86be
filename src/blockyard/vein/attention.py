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

from blockyard.errors import InputError
from blockyard.nn.attention import Kernel, attend
from blockyard.nn.dropout import Dropout
from blockyard.nn.fused import add_linear, norm_linear
from blockyard.nn.linear import Linear, hooked, plain
from blockyard.nn.norms import RMSNorm, rms_norm
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Mixer, check_heads, default_positions
from blockyard.registry.register import Traits, register_attn
from blockyard.vein.projector import VeinProjector, orthonormal_rows
from blockyard.vein.step import step_for

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
        order=True,
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
        usual = causal is None and context is None and not return_weights
        if usual and cache is not None and (step := step_for(self, x, cache, padding_mask, attn_mask, positions)):
            return self.proj_dropout(self.output_proj(step(x, cache))), None
        causal, past = self._check(x, padding_mask, causal, positions, context, cache)
        # Asked for once per forward: tied ones are made orthonormal there.
        veins = None if self.form == "folded" else self.veins()
        qk, v = self._to_vein(x, context, veins)
        mixed, weights = self._mix(
            qk,
            v,
            causal=causal,
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            positions=positions,
            past=past,
            turn=context is None,
            cache=cache,
            return_weights=return_weights,
        )
        return self._from_vein(mixed.to(x.dtype), veins), weights

    def add_to(
        self,
        x: Tensor,
        norm: nn.Module,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x + self(norm(x)), with norm and addition inside the products where nothing stands between.

        Args:
            x: the residual stream [B, T, d_model].
            norm: of what the attention reads of it.
            padding_mask: this and the others as in `forward`.
        """
        masks: Any = {"padding_mask": padding_mask, "attn_mask": attn_mask, "positions": positions}
        projections = (self.q_proj, self.k_proj, self.v_proj)
        dropped = self.training and self.proj_dropout.p > 0
        if self.form != "folded" or dropped or hooked(self) or not plain(self.output_proj, *projections):
            return x + self(norm(x), cache=cache, **masks)[0]
        if cache is not None and (step := step_for(self, x, cache, padding_mask, attn_mask, positions)):
            return add_linear(x, step(norm(x), cache), self.output_proj.weight)
        causal, past = self._check(x, padding_mask, None, positions, None, cache)
        if x.shape[0] * x.shape[1] >= _STACK_FROM:
            x, stacked = norm_linear(x, norm, torch.cat([p.weight for p in projections]))
            projected: Any = self._split(stacked)
        else:
            projected = self._to_vein(norm(x), None, None)
        mixed, _ = self._mix(*projected, causal=causal, past=past, turn=True, cache=cache, **masks)
        return add_linear(x, mixed.to(x.dtype).transpose(1, 2).flatten(2), self.output_proj.weight)

    def veins(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """V and U for queries and keys, V and U for values; not of a folded attention, which has none."""
        shared = self._shared().matrices()
        return *shared, *(shared if self.value_vein is None else self.value_vein.matrices())

    def _to_vein(
        self, x: Tensor, context: Tensor | None, veins: tuple[Tensor, ...] | None
    ) -> tuple[tuple[Tensor, Tensor] | Tensor, Tensor]:
        """Queries and keys [B, T, 2 H, rank], or apart [B, T, H, rank] and [B, S, H, rank], and values."""
        source = x if context is None else context
        if self.form == "shared":
            assert veins is not None
            x = F.linear(x, veins[0])
            source = x if context is None else F.linear(source, veins[0])
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if context is None and x.shape[0] * x.shape[1] >= _STACK_FROM and plain(*projections):
            qk, v = self._split(F.linear(x, torch.cat([p.weight for p in projections])))
        else:
            q, k, v = (p(t).unflatten(-1, (self.n_heads, -1)) for p, t in zip(projections, (x, source, source)))
            if context is not None:
                if self.form == "factored":
                    assert veins is not None
                    q, k, v = F.linear(q, veins[0]), F.linear(k, veins[0]), F.linear(v, veins[2])
                return (q, k), v
            qk = torch.cat([q, k], dim=2)
        if self.form == "factored":
            assert veins is not None
            qk, v = F.linear(qk, veins[0]), F.linear(v, veins[2])
        return qk, v

    def _split(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Stacked projections [B, T, ...] -> queries and keys [B, T, 2 H, width], values [B, T, H, width]."""
        widths = [p.weight.shape[0] for p in (self.q_proj, self.k_proj, self.v_proj)]
        qk, v = stacked.split([widths[0] + widths[1], widths[2]], dim=-1)
        return qk.unflatten(-1, (2 * self.n_heads, -1)), v.unflatten(-1, (self.n_heads, -1))

    def _mix(
        self,
        qk: tuple[Tensor, Tensor] | Tensor,
        v: Tensor,
        *,
        causal: bool,
        padding_mask: Tensor | None,
        attn_mask: Tensor | None,
        positions: Tensor | None,
        past: int,
        turn: bool,
        cache: LayerCache | None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention inside the vein: mixed values [B, H, T, v_rank] and weights."""
        if isinstance(qk, Tensor):
            q, k = self._normed_and_turned(qk, positions, padding_mask, past, turn).split(self.n_heads, dim=2)
        else:
            q, k = self.q_norm(qk[0]), self.k_norm(qk[1])
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k=k.to(cache.dtype), v=v.to(cache.dtype))
            q = q.to(cache.dtype)
        return attend(
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

    def _normed_and_turned(
        self, qk: Tensor, positions: Tensor | None, padding_mask: Tensor | None, past: int, turn: bool
    ) -> Tensor:
        """Queries and keys [B, T, 2 H, rank] together, normalised and rotated by their positions."""
        if isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm):
            gains = torch.cat([norm.weight.expand(self.n_heads, -1) for norm in (self.q_norm, self.k_norm)])
            qk = rms_norm(qk, gains, self.q_norm.eps)
        if self.rope is None or not turn:
            return qk
        if positions is None and padding_mask is not None:
            positions = default_positions(padding_mask, qk.shape[1])
        cos, sin = (t.unsqueeze(-2) for t in self.rope.tables(qk.shape[1], qk, positions, offset=past))
        width, layout = self.rope.d_k, self.rope.layout
        if width == self.rank:
            return rotate(qk, cos, sin, layout)
        return torch.cat([rotate(qk[..., :width], cos, sin, layout), qk[..., width:]], dim=-1)

    def _from_vein(self, mixed: Tensor, veins: tuple[Tensor, ...] | None) -> Tensor:
        """Mixed values [B, H, T, v_rank] -> [B, T, d_model]."""
        if self.form == "factored":
            assert veins is not None
            mixed = F.linear(mixed, veins[3])
        out = self.output_proj(mixed.transpose(1, 2).flatten(2))
        if self.form == "shared":
            assert veins is not None
            out = F.linear(out, veins[1])
        return self.proj_dropout(out)

    def _shared(self) -> VeinProjector:
        assert self.vein is not None
        return self.vein

    def _values(self) -> VeinProjector:
        return self.value_vein or self._shared()

    def fold(self) -> TVAAttention:
        """The same function with the veins multiplied into the projections; parameters are copied, never shared.

        Raises: InputError when it is folded already.
        """
        if self.form == "folded":
            raise InputError("this attention is folded already")
        made = self.like("folded")
        with torch.no_grad():
            v, u, value_v, value_u = self.veins()
            if self.form == "shared":
                for name in ("q_proj", "k_proj", "v_proj"):
                    getattr(made, name).weight.copy_(getattr(self, name).weight @ v)
                made.output_proj.weight.copy_(u @ self.output_proj.weight)
                return made
            for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
                heads = getattr(self, name).weight.unflatten(0, (self.n_heads, -1))  # [H, head_dim, d_model]
                getattr(made, name).weight.copy_((into @ heads).flatten(0, 1))
            columns = self.output_proj.weight.unflatten(1, (self.n_heads, -1))  # [d_model, H, head_dim]
            made.output_proj.weight.copy_((columns @ value_u).flatten(1))
        return made

    def unfold(self) -> TVAAttention:
        """The same function in the document's factored form, with tied orthonormal veins.

        Raises: InputError when it is not folded, or a rank is not below the head's width.
        """
        if self.form != "folded":
            raise InputError(f"only a folded attention can be unfolded; this one is {self.form}")
        made = self.like("factored")
        with torch.no_grad():
            for vein in (made.vein, made.value_vein):
                if vein is not None:
                    # V Vᵀ = 1: what Vᵀ lifts, V brings back.
                    for stored, matrix in zip(vein.stored(), (v := orthonormal_rows(vein.stored()[0]), v.mT)):
                        stored.copy_(matrix)
            v, _, value_v, _ = made.veins()
            for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
                heads = getattr(self, name).weight.unflatten(0, (self.n_heads, -1))  # [H, rank, d_model]
                getattr(made, name).weight.copy_((into.mT @ heads).flatten(0, 1))
            columns = self.output_proj.weight.unflatten(1, (self.n_heads, -1))  # [d_model, H, v_rank]
            made.output_proj.weight.copy_((columns @ value_v).flatten(1))
        return made

    def like(self, form: Literal["folded", "factored"]) -> TVAAttention:
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
        placement = self._placement(dtype, device)
        # A few numbers per head: a decoding step reads rows over all tokens. (In bfloat16 SDPA is the faster one.)
        lengthwise = placement["dtype"] in (torch.float32, torch.float64)
        return LayerCache(batch, slots, max_len=max_len, **placement, lengthwise=lengthwise)

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
        # Tied veins are made orthonormal once per forward.
        asked = [vein] if self.form == "shared" or values is vein else [vein, values]
        return Cost(parameters, flops + sum(each.cost(0).flops for each in asked))

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, rank={self.rank}, v_rank={self.v_rank}, form={self.form}, causal={self.causal}"
