"""Tri-vein attention: queries, keys and values live in a vein of r directions per head.

The vein-flow document's `TVAAttention`. Projecting to the vein and back is linear, so TVA *is* multi-head attention
with head dimension r: folded (the default) it stores just that, d_model -> H·r and back, and is computed by
`standard/attention.py` with heads r wide. The document's own forms, which keep the vein apart, are factored.py's; the
outputs are the same numbers. Definition in loops and float64: tests/vein/twin.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.nn.attention_kernels import Kernel
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import weight_of
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding
from blockyard.protocol.mixer import check_heads
from blockyard.registry.register import ATTENTION, register_attn
from blockyard.vein.factored import VeinedAttention, VeinForm
from blockyard.vein.projector import VeinProjector, orthonormal_rows


@register_attn("tva", group="vft", traits=ATTENTION)
class TVAAttention(VeinedAttention):
    """Tri-vein attention: multi-head attention whose heads are only `rank` wide (vein-flow document).

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads; folded, it need not divide d_model.
        rank: width of queries and keys per head; None = half of d_model / n_heads, at least 2.
        n_kv_heads: number of key-value heads, dividing n_heads; None = n_heads.
        v_rank: width of values per head; None = rank.
        factored: keep the document's square projections and the vein apart, instead of folded into one matrix.
        vein_projector: a vein to share: as wide as a head (then the form is factored), or as wide as d_model (then
            queries, keys and values are computed from z = V x, and the output goes back through U).
        causal: hide the future; the forward argument overrides it.
        rope: pairing of the rotary embedding within the vein, half or interleaved, or none (the document's).
        rope_theta: base of the rotary wavelengths.
        rope_scaling: of the rotary frequencies, as in standard attention.
        qk_norm: RMS-normalise queries and keys per head before they are rotated.
        norm_eps: added to the mean square there.
        dropout: probability of dropping an attention weight in training, unless attn_dropout is given.
        attn_dropout: the same by the document's name.
        proj_dropout: probability of dropping an element of the output in training.
        kernel: auto, matmul, sdpa or flex, as for standard attention; auto decides by length and device.

    Shapes: x [B, T, d_model] -> [B, T, d_model]; weights [B, n_heads, T, S]; cache [B, n_kv_heads, T, rank and v_rank].
    Raises: InputError for key heads that do not divide the heads, a rank below 1 or (factored) not below the head's
        width, for a shared vein of another rank or width, and for rank 1 with rotary positions, which turn pairs.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rank: int | None = None,
        *,
        n_kv_heads: int | None = None,
        v_rank: int | None = None,
        factored: bool = False,
        vein_projector: VeinProjector | None = None,
        causal: bool = False,
        rope: Literal["half", "interleaved", "none"] = "half",
        rope_theta: float = 10_000.0,
        rope_scaling: str | None = None,
        qk_norm: bool = False,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
        attn_dropout: float | None = None,
        proj_dropout: float = 0.0,
        kernel: Kernel = "auto",
    ) -> None:
        if d_model < 1 or n_heads < 1:
            raise InputError(f"d_model={d_model} and n_heads={n_heads} should be at least 1")
        rank = rank if rank is not None else max(2, d_model // n_heads // 2)
        v_rank = v_rank if v_rank is not None else rank
        _check_ranks(d_model, rank, v_rank, rope)
        form = _form_of(vein_projector, factored, d_model, n_heads, rank)
        # What the projections read, and the widths that they make of it per head.
        inner, widths = (rank if form == "shared" else d_model), (rank, v_rank)
        if form == "factored":
            head_dim = check_heads(d_model, n_heads)
            if max(rank, v_rank) >= head_dim:
                raise InputError(
                    f"rank={rank}, v_rank={v_rank}: factored, both should be below the head width "
                    f"{head_dim} = d_model / n_heads"
                )
            widths = (head_dim, head_dim)
        super().__init__(
            inner,
            n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=widths[0],
            v_dim=widths[1],
            causal=causal,
            rope="none",
            qk_norm=False,
            dropout=dropout if attn_dropout is None else attn_dropout,
            kernel=kernel,
        )
        # From here on heads are what is scored: the vein's numbers.
        self.d_model, self.head_dim, self.v_dim = d_model, rank, v_rank
        self.rank, self.v_rank, self.form, self.short_steps = rank, v_rank, form, form == "folded"
        self.vein, self.value_vein = vein_projector, None
        if form == "factored":
            # One vein serves all three ("tri") unless values get a width of their own; nothing is rebuilt from
            # queries and keys, so theirs then needs no U.
            split = v_rank != rank
            self.vein = vein_projector or VeinProjector(head_dim, rank, tied=split)
            self.value_vein = VeinProjector(head_dim, v_rank) if split else None
        self.q_norm = RMSNorm(rank, norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(rank, norm_eps) if qk_norm else nn.Identity()
        # Rotation turns pairs: of an odd rank the last direction stays as it is.
        self.rope = None
        if rope != "none":
            self.rope = RotaryPositionalEmbedding(rope_theta, rank - rank % 2, layout=rope, scaling=rope_scaling)
        self.proj_dropout = Dropout(proj_dropout)

    def fold(self) -> TVAAttention:
        """Return the same function with the veins multiplied into the projections; parameters are copied, never shared.

        Raises: InputError when it is folded already.
        """
        if self.form == "folded":
            raise InputError("this attention is folded already")
        made = self.like("folded")
        with torch.no_grad():
            v, u, value_v, value_u = self.veins()
            # W (V x) = (W V) x: the vein is multiplied into what reads it, and U into what it writes.
            if self.form == "shared":
                for name in ("q_proj", "k_proj", "v_proj"):
                    getattr(made, name).weight.copy_(weight_of(getattr(self, name)) @ v)
                made.output_proj.weight.copy_(u @ weight_of(self.output_proj))
                return made
            for name, into in (("q_proj", v), ("k_proj", v), ("v_proj", value_v)):
                # Each head's rows of the projection pass through the one vein.
                heads = weight_of(getattr(self, name)).unflatten(
                    0, (-1, into.shape[1])
                )  # [H or H_kv, head_dim, d_model]
                getattr(made, name).weight.copy_((into @ heads).flatten(0, 1))
            # U acts on a head's mean, and a linear map of a mean is the mean of the maps.
            columns = weight_of(self.output_proj).unflatten(1, (self.n_heads, -1))  # [d_model, H, head_dim]
            made.output_proj.weight.copy_((columns @ value_u).flatten(1))
        return made

    def unfold(self) -> TVAAttention:
        """Return the same function in the document's factored form, with tied orthonormal veins.

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
                # Vᵀ lifts a head's numbers to its full width, where V of the factored form finds them again.
                heads = weight_of(getattr(self, name)).unflatten(0, (-1, into.shape[0]))  # [heads, rank, d_model]
                getattr(made, name).weight.copy_((into.mT @ heads).flatten(0, 1))
            columns = weight_of(self.output_proj).unflatten(1, (self.n_heads, -1))  # [d_model, H, v_rank]
            made.output_proj.weight.copy_((columns @ value_v).flatten(1))
        return made

    def like(self, form: Literal["folded", "factored"]) -> TVAAttention:
        """Return a new attention of the same shape, settings, dtype and device in another form."""
        twin = TVAAttention(
            self.d_model,
            self.n_heads,
            self.rank,
            n_kv_heads=self.n_kv_heads,
            v_rank=self.v_rank,
            factored=form == "factored",
            causal=self.causal,
            rope="none" if self.rope is None else self.rope.layout,
            rope_theta=10_000.0 if self.rope is None else self.rope.theta,
            rope_scaling=None if self.rope is None else self.rope.scaled,
            qk_norm=isinstance(self.q_norm, RMSNorm),
            norm_eps=self.q_norm.eps if isinstance(self.q_norm, RMSNorm) else 1e-5,
            attn_dropout=self.attn_dropout.p,
            proj_dropout=self.proj_dropout.p,
            kernel=self.kernel,
        ).to(self.q_proj.weight)
        gains = {name: gain for name, gain in self.state_dict().items() if name.startswith(("q_norm.", "k_norm."))}
        twin.load_state_dict(gains, strict=False)
        return twin.train(self.training)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, rank={self.rank}, v_rank={self.v_rank}, form={self.form}, causal={self.causal}"


def _check_ranks(d_model: int, rank: int, v_rank: int, rope: str) -> None:
    if rank < 1 or v_rank < 1:
        raise InputError(f"rank={rank} and v_rank={v_rank} should be at least 1")
    if max(rank, v_rank) >= d_model:
        raise InputError(f"rank={rank} and v_rank={v_rank} should be below d_model={d_model}")
    if rope != "none" and rank < 2:
        raise InputError(f"rank={rank} with rope={rope!r}: rotation turns pairs; use rank >= 2 or rope='none'")


def _form_of(vein: VeinProjector | None, factored: bool, d_model: int, n_heads: int, rank: int) -> VeinForm:
    if vein is None:
        return "factored" if factored else "folded"
    if vein.rank != rank:
        raise InputError(f"vein_projector has rank {vein.rank}, but the attention has rank={rank}")
    if vein.d_model == d_model and not factored:
        return "shared"
    head_dim = check_heads(d_model, n_heads)
    if vein.d_model == head_dim:
        return "factored"
    raise InputError(
        f"vein_projector is {vein.d_model} wide; it should be {head_dim} wide (one head)"
        f"{'' if factored else f' or {d_model} wide (d_model)'}"
    )
