"""Complex attention: rotating every input by one angle rotates every output by it.

The complex-block document's attention with what it leaves open decided: scores that can be negative, heads of
d_model / n_heads, rotary instead of additive positions, a causal mask with the cache. Computed on the interleaved real
view, where Re⟨q, k⟩ is a dot product and the complex rotary embedding is the interleaved real one.

Definition in loops and float64: tests/complex/twin.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.complex.heads import can_fuse, turned_heads
from blockyard.complex.linear import (
    ComplexLinear,
    ComplexModule,
    LinearMode,
    check_complex,
    from_pairs,
    linear_pairs,
    magnitude,
    resolve_mode,
    to_pairs,
)
from blockyard.complex.norms import make_complex_norm, rms_norm_pairs
from blockyard.complex.scores import SCORES, Score, complex_attend
from blockyard.errors import InputError, one_of
from blockyard.nn.attention_kernels import PlainKernel
from blockyard.nn.dropout import Dropout
from blockyard.nn.roles import Role
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.costs import Cost
from blockyard.protocol.mixer import Call, Mixer, Placement, check_heads, check_shape, default_positions
from blockyard.registry.register import ATTENTION, register_attn

GATES = ("none", "learned", "magnitude")


@register_attn("complex", group="complex", traits=replace(ATTENTION, dtypes=("complex64", "complex128", "bfloat16")))
class ComplexAttention(ComplexModule, Mixer):
    """Multi-head attention over complex vectors, equivariant to a rotation of all inputs by one angle.

    Args:
        d_model: width of the residual stream, in complex numbers.
        n_heads: number of query heads, dividing d_model.
        n_kv_heads: number of key-value heads, dividing n_heads; None = n_heads.
        causal: hide the future; the forward argument overrides it.
        score: weights from s = q kᴴ/√d: real softmax(Re s), magnitude softmax(|s|) (the document's), phase
            softmax(|s|)·s/|s|, split a learnt mean of softmax(Re s) and softmax(Im s) per head.
        gate: factor on what the heads give: none, learned (a complex constant per feature, the document's) or
            magnitude (σ(|W x| + b), real, from the input).
        rope: rotary positions (complex), or none.
        rope_theta: base of the rotary wavelengths.
        rope_scaling: of the rotary frequencies, as in standard attention.
        qk_norm: RMS-normalise queries and keys per head, with a real gain, before they are rotated.
        norm_eps: added to the mean square there.
        bias: complex biases in the four projections; they break the phase symmetry.
        linear: how complex products are computed: native, block, gauss, or auto (native, but block where the products
            are bfloat16).
        dropout: probability of dropping an attention weight in training.
        kernel: auto, matmul or sdpa, for the scores real and split.

    Shapes: x complex [B, T, d_model] -> the same; weights real [B, n_heads, T, S] (split: [B, 2 · n_heads, T, S]).
    Raises: InputError when heads do not divide, or for an input that is not complex.
    """

    causal_cross = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        causal: bool = False,
        score: Score = "real",
        gate: Literal["none", "learned", "magnitude"] = "none",
        rope: Literal["complex", "none"] = "complex",
        rope_theta: float = 10_000.0,
        rope_scaling: str | None = None,
        qk_norm: bool = True,
        norm_eps: float = 1e-5,
        bias: bool = False,
        linear: LinearMode = "auto",
        dropout: float = 0.0,
        kernel: PlainKernel = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal
        self.head_dim = check_heads(d_model, n_heads)
        self.n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
        if self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")
        one_of(SCORES, score=score)
        one_of(GATES, gate=gate)
        self.score, self.gate, self.kernel, self.qk_eps = score, gate, kernel, norm_eps
        # Widths are in complex numbers: a head has twice as many reals.
        kv_width = self.n_kv_heads * self.head_dim
        self.q_proj = ComplexLinear(d_model, d_model, bias=bias, mode=linear)
        self.k_proj = ComplexLinear(d_model, kv_width, bias=bias, mode=linear)
        self.v_proj = ComplexLinear(d_model, kv_width, bias=bias, mode=linear)
        self.output_proj = ComplexLinear(d_model, d_model, bias=bias, mode=linear)
        # Real, one per feature: gains are for size, the projections for angles.
        self.q_gain = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        self.k_gain = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        # Both halves of split count the same at the start.
        self.share = nn.Parameter(torch.zeros(n_heads)) if score == "split" else None
        self.gate_constant = self.gate_proj = self.gate_bias = None
        if gate == "learned":
            self.gate_constant = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(d_model, 1))
        elif gate == "magnitude":
            self.gate_proj = ComplexLinear(d_model, d_model, mode=linear)
            self.gate_bias = nn.Parameter(torch.zeros(d_model))
        # Pairs of neighbouring reals are complex numbers: the interleaved layout multiplies each by e^{i m θ}.
        turns = rope == "complex"
        self.rope = RotaryPositionalEmbedding(rope_theta, 2 * self.head_dim, scaling=rope_scaling) if turns else None
        self.attn_dropout = Dropout(dropout)

    def parameter_roles(self) -> dict[str, Role]:
        return {"gate_constant": Role("vector")}

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
        pe: Tensor | None = None,
        context_pe: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix positions, as `blockyard.protocol.mixer.Mixer` says, and further:

        Args:
            causal: with a context as long as x, position i sees the context up to i (both run on one clock).
            cache: with a context and causal, holds the context's past and receives its new steps.
            pe: complex [..., T, d_model], added to the queries (and to the keys without a context) after projection:
                the document's additive position encoding. It breaks the phase symmetry.
            context_pe: complex [..., S, d_model], added to the keys of the context.
        """
        call = Call(padding_mask, attn_mask, causal, positions, context, cache, return_weights)
        self.check_call(x, call)
        # T in front of the heads, as the projections give it; attention wants the heads in front.
        q, k, v = self._project(x, call, pe, context_pe)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k=k.to(cache.dtype), v=v.to(cache.dtype))
            q = q.to(cache.dtype)
        mixed, weights = complex_attend(
            q,
            k,
            v,
            score=self.score,
            share=None if self.share is None else torch.sigmoid(self.share),
            causal=bool(call.causal),
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            kernel=self.kernel,
            dropout=self.attn_dropout.p if self.training else 0.0,
            dropout_keys=self.attn_dropout.keys,
            return_weights=return_weights,
        )
        heads = self._gated(mixed.transpose(1, 2).flatten(2), x)
        return from_pairs(self.output_proj.pairs(heads)).to(x.dtype), weights

    def _turns(self, x: Tensor, call: Call) -> tuple[Tensor | None, Tensor | None]:
        """Return cos and sin of the positions, for every head alike; None where nothing is turned."""
        # A context without order shares no positions with x.
        if self.rope is None or (call.context is not None and not call.causal):
            return None, None
        positions = call.positions
        if positions is None and call.padding_mask is not None and call.context is None:
            positions = default_positions(call.padding_mask, x.shape[1])
        cos, sin = self.rope.tables(x.shape[1], x.real, positions, offset=call.past)
        return cos.unsqueeze(-2), sin.unsqueeze(-2)

    def _project(
        self, x: Tensor, call: Call, pe: Tensor | None, context_pe: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, T, H, 2·head_dim], keys and values [B, S, H_kv, 2·head_dim], as pairs, normalised and
        turned."""
        projections, context = (self.q_proj, self.k_proj, self.v_proj), call.context
        mode = resolve_mode(self.q_proj.mode, self.q_proj.weight, to_pairs(x))
        cos, sin = self._turns(x, call)
        if context is not None:
            source = to_pairs(context)
            q, k, v = self.q_proj.pairs(to_pairs(x)), self.k_proj.pairs(source), self.v_proj.pairs(source)
        elif not all(p.is_bare for p in projections) or (mode == "block" and not self.training):
            # Eval mode has the block matrices at hand, one per projection.
            q, k, v = (p.pairs(to_pairs(x)) for p in projections)
        else:
            # One product, where nothing but the weights says what the projections give.
            stacked = linear_pairs(to_pairs(x), torch.cat([p.weight for p in projections]), mode)
            if pe is None and self.q_gain is not None and self.k_gain is not None and can_fuse(stacked):
                factor = None if cos is None or sin is None else torch.complex(cos, sin)
                # Norm, gain and turn of queries and keys in one hand-written pass.
                return turned_heads(
                    stacked, (self.q_gain, self.k_gain), factor, (self.n_heads, self.n_kv_heads), self.qk_eps
                )
            q, k, v = stacked.split([2 * p.d_out for p in projections], dim=-1)
        q, k = self._add(q, pe, "pe"), self._add(k, pe if context is None else context_pe, "context_pe")
        q, k, v = (part.unflatten(-1, (-1, 2 * self.head_dim)) for part in (q, k, v))
        if self.q_gain is not None and self.k_gain is not None:
            q, k = rms_norm_pairs(q, self.q_gain, self.qk_eps), rms_norm_pairs(k, self.k_gain, self.qk_eps)
        if cos is not None and sin is not None:
            q, k = rotate(q, cos, sin, "interleaved"), rotate(k, cos, sin, "interleaved")
        return q, k, v

    def _add(self, projected: Tensor, pe: Tensor | None, name: str) -> Tensor:
        if pe is None:
            return projected
        # It does not turn with the input, which is how it breaks the symmetry.
        check_complex(pe, projected.shape[-1] // 2, name)
        return projected + to_pairs(pe).to(projected.dtype)

    def _gated(self, heads: Tensor, x: Tensor) -> Tensor:
        """Return what the heads give, [B, T, 2·d_model], times the gate."""
        if self.gate_constant is not None:
            # A complex constant per feature: a common phase passes through it.
            gated = from_pairs(heads) * torch.view_as_complex(_at_least_float(self.gate_constant))
            return to_pairs(gated)
        if self.gate_proj is not None and self.gate_bias is not None:
            # Real, and made of |W x|, which a common phase leaves as it is.
            gate = torch.sigmoid(magnitude(self.gate_proj(x), 1e-6) + self.gate_bias)
            return (heads.unflatten(-1, (-1, 2)) * gate.unsqueeze(-1)).flatten(-2)
        return heads

    # The norms of a complex stream, where those of the protocol are real.
    norm = staticmethod(make_complex_norm)

    @staticmethod
    def check_input(x: Tensor, width: int) -> None:
        """Raise InputError unless x is a complex [B, T, width]."""
        check_shape(x, width)
        check_complex(x, width)

    def empty_cache(self, batch: int, max_len: int | None, placement: Placement) -> LayerCache:
        # Of real pairs: the placement names a real type.
        shape = (self.n_kv_heads, 2 * self.head_dim)
        return LayerCache(batch, {"k": shape, "v": shape}, max_len=max_len, **placement)

    def cost(self, tokens: int) -> Cost:
        projections = [self.q_proj, self.k_proj, self.v_proj, self.output_proj]
        projections += [self.gate_proj] if self.gate_proj is not None else []
        # Products with keys or values, in units of one real product over 2·head_dim: Re s and Im s each take one.
        # (Under masks of the caller split takes a fourth: it is two attentions there.)
        products = {"real": 2, "magnitude": 3, "phase": 4, "split": 3}[self.score]
        scores = products * 2 * 2 * self.d_model * tokens * tokens
        return Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            flops=sum(p.flops(tokens) for p in projections) + scores,
            pair_flops=scores,
            cache_bytes_per_token=2 * 2 * self.n_kv_heads * self.head_dim * 4,
        )

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, score={self.score}, gate={self.gate}, causal={self.causal}"


def _at_least_float(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
