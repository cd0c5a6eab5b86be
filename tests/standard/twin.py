"""Standard attention in loops and float64: the definition that every fast path is compared with.

    q_t, k_s, v_s = R_t W_q x_t, R_s W_k x_s, W_v x_s     one slice of head_dim numbers per head; R_t the rotation at t
    p_ts = softmax over the s that t may see of q_t · k_s / √head_dim
    out_t = W_o [Σ_s p_ts v_s, head beside head]

Vaswani et al. 2017 (arXiv 1706.03762); rotary positions: Su et al. 2021 (arXiv 2104.09864); key heads that several
query heads share: Ainslie et al. 2023 (arXiv 2305.13245). Which s are seen: not the future if causal, no padding, none
that is `window` or more tokens away (but the first `sinks` kept ones from everywhere), what the mask allows. A query
that may see nothing gets 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blockyard.standard.attention import StandardAttention


def rms_norm(x: Tensor, gain: Tensor, eps: float = 1e-5) -> Tensor:
    """x divided by its root mean square, times a gain."""
    return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + eps) * gain


def rotate(x: Tensor, position: int, theta: float, layout: str, scaling=None, length: int = 0) -> Tensor:
    """Turn each pair of features as a complex number by position · its frequency, theta^(−2i/d) unless scaled."""
    width, out = len(x), x.clone()
    for i in range(width // 2):
        a, b = (2 * i, 2 * i + 1) if layout == "interleaved" else (i, i + width // 2)
        angle = position * frequency(i, width, theta, scaling, length)
        turned = complex(x[a], x[b]) * complex(math.cos(angle), math.sin(angle))
        turned *= 1.0 if scaling is None else scaling.magnitude
        out[a], out[b] = turned.real, turned.imag
    return out


def frequency(i: int, width: int, theta: float, scaling, length: int) -> float:
    """Angle per position of pair i, as the papers of the scalings have it (see nn/rotary_scaling.py)."""
    plain = theta ** (-2 * i / width)
    kind = type(scaling).__name__
    if kind == "NoneType":
        return plain
    if kind == "Given":
        return scaling.pairs[i]
    if kind == "Linear":
        return plain / scaling.factor
    if kind == "Dynamic":
        stretch = scaling.factor * max(length, scaling.original) / scaling.original - scaling.factor + 1
        return (theta * stretch ** (width / (width - 2))) ** (-2 * i / width)
    if kind == "LongRope":
        return plain / (scaling.long if length > scaling.original else scaling.short)[i]
    if kind == "Llama3":
        wavelength = 2 * math.pi / plain
        if wavelength > scaling.original / scaling.low:
            return plain / scaling.factor
        if wavelength < scaling.original / scaling.high:
            return plain
        smooth = (scaling.original / wavelength - scaling.low) / (scaling.high - scaling.low)
        return (1 - smooth) * plain / scaling.factor + smooth * plain
    assert kind == "Yarn"

    def pair(turns: float) -> float:
        return width * math.log(scaling.original / (2 * math.pi * turns)) / (2 * math.log(theta))

    low, high = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), width - 1)
    ramp = min(max((i - low) / (high - low if high != low else 0.001), 0.0), 1.0)
    return plain / scaling.factor * ramp + plain * (1 - ramp)


def standard_attention(
    attention: StandardAttention,
    x: Tensor,
    *,
    causal: bool = False,
    keep: Tensor | None = None,
    mask: Tensor | None = None,
    context: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, d_model], weights [H, T, S]) of one sequence x [T, d_model].

    Args:
        attention: the module whose parameters and options are used.
        causal: hide the future.
        keep: [S], 0 = padding; positions count the kept tokens.
        mask: [T, S], bool (True = attend) or additive.
        context: [S, d_model], attended to instead of x; it has no positions, and no window.
    """
    source = x if context is None else context
    heads, width = attention.n_heads, attention.head_dim
    keep = torch.ones(len(source)) if keep is None else keep
    positions = [max(0, int(keep[: t + 1].sum()) - 1) for t in range(len(source))]
    length = max(positions) + 1

    def head(projection, row, number, norm=None, position=None):
        vector = projection.weight @ row + (0 if projection.bias is None else projection.bias)
        wide = attention.v_dim if projection is attention.v_proj else width
        normed = isinstance(norm, torch.nn.Module) and not isinstance(norm, torch.nn.Identity)
        if normed and attention.norms_whole:
            vector = rms_norm(vector, norm.weight, norm.eps)
        vector = vector[number * wide : (number + 1) * wide]
        if normed and not attention.norms_whole:
            vector = rms_norm(vector, norm.weight, norm.eps)
        if position is not None and attention.rope is not None and context is None:
            rope, turns, scaling = attention.rope, attention.rope.d_k, attention.rope.scaling
            if attention.rope_heads > 1:
                # Each key head, and the query heads that share it, have frequencies of their own.
                own = number if projection is attention.k_proj else number // (heads // attention.n_kv_heads)
                turns = turns // attention.n_kv_heads
                scaling = type(scaling)(scaling.pairs[own * turns // 2 : (own + 1) * turns // 2])
            turned = rotate(vector[:turns], position, rope.theta, rope.layout, scaling, length)
            vector = torch.cat([turned, vector[turns:]])
        return vector

    v_dim = attention.v_dim
    out = torch.zeros(len(x), heads * v_dim, dtype=x.dtype)
    weights = torch.zeros(heads, len(x), len(source), dtype=x.dtype)
    for h in range(heads):
        shared = h // (heads // attention.n_kv_heads)
        keys = [head(attention.k_proj, row, shared, attention.k_norm, p) for row, p in zip(source, positions)]
        values = [head(attention.v_proj, row, shared) for row in source]
        for t in range(len(x)):
            query = head(attention.q_proj, x[t], h, attention.q_norm, None if context is not None else positions[t])
            scores = {}
            for s in range(len(source)):
                far = context is None and attention.window is not None and abs(t - s) >= attention.window
                far = far and not positions[s] < attention.sinks
                if (causal and s > t) or far or not keep[s]:
                    continue
                bias = 0.0
                if mask is not None and mask.dtype == torch.bool:
                    bias = 0.0 if mask[t, s] else -math.inf
                elif mask is not None:
                    bias = float(mask[t, s])
                if bias > -math.inf:
                    scores[s] = float(query @ keys[s]) / math.sqrt(width) + bias
            total = sum(math.exp(score - max(scores.values())) for score in scores.values())
            for s, score in scores.items():
                weights[h, t, s] = math.exp(score - max(scores.values())) / total
                out[t, h * v_dim : (h + 1) * v_dim] += weights[h, t, s] * values[s]
    bias = 0 if attention.output_proj.bias is None else attention.output_proj.bias
    return out @ attention.output_proj.weight.T + bias, weights
