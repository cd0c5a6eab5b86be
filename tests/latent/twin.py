"""Latent attention (MLA) in loops and float64: the definition that every form, cache and kernel is compared with.

    c_s = RMSNorm(W_c x_s)                                kv_rank numbers: all that a cache has to keep of a token
    decoupled:  q = [q_nope; R_t q_rope],  k = [W_uk c_s; R_s k_r],  k_r one rotary key for all heads
    full:       q = R_t q,                 k = R_s W_uk c_s
    out_t = W_o [Σ_s softmax_s(q_t · k_s / √(nope + rope)) W_uv c_s, head beside head]

DeepSeek-V2 (arXiv 2405.04434, section 2.1) for `decoupled`; the price document for `full`. `q_rank` makes queries from
a latent of their own. Which s are seen, as in standard attention.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blockyard.latent.attention import LatentAttention
from tests.standard.twin import rms_norm, rotate


def latent_attention(
    attention: LatentAttention,
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
        context: [S, d_model], attended to instead of x; it has no positions.
    """
    source = x if context is None else context
    rank, nope, rope = attention.kv_rank, attention.nope_dim, attention.rope_dim
    keep = torch.ones(len(source)) if keep is None else keep
    positions = [max(0, int(keep[: t + 1].sum()) - 1) for t in range(len(source))]

    def linear(projection, row):
        return projection.weight @ row + (0 if projection.bias is None else projection.bias)

    def turned(vector, position):
        if context is not None or len(vector) == 0:
            return vector
        rope = attention.rope
        return rotate(vector, position, rope.theta, rope.layout, rope.scaling, max(positions) + 1)

    def query(head, t):
        row = x[t]
        if attention.q_rank is not None:
            row = rms_norm(linear(attention.q_down_proj, row), attention.q_norm.weight, attention.q_norm.eps)
        q = linear(attention.q_proj, row)[head * (nope + rope) : (head + 1) * (nope + rope)]
        position = None if context is not None else positions[t]
        if not attention.decoupled:
            return turned(q, position)
        return torch.cat([q[:nope], turned(q[nope:], position)])

    latents, rotary = [], []
    for row, position in zip(source, positions):
        down = linear(attention.kv_down_proj, row)
        c = down[:rank]
        latents.append(c if attention.kv_norm is None else rms_norm(c, attention.kv_norm.weight, attention.kv_norm.eps))
        rotary.append(turned(down[rank:], position))

    def key(head, s):
        k = attention.k_up[head] @ latents[s]
        return torch.cat([k, rotary[s]]) if attention.decoupled else turned(k, positions[s])

    width = attention.v_dim
    out = torch.zeros(len(x), attention.n_heads * width, dtype=x.dtype)
    weights = torch.zeros(attention.n_heads, len(x), len(source), dtype=x.dtype)
    for h in range(attention.n_heads):
        keys = [key(h, s) for s in range(len(source))]
        values = [attention.v_up[h] @ latents[s] for s in range(len(source))]
        for t in range(len(x)):
            q, scores = query(h, t), {}
            for s in range(len(source)):
                far = context is None and attention.window is not None and abs(t - s) >= attention.window
                far = far and not positions[s] < attention.sinks
                if (causal and s > t) or not keep[s] or far:
                    continue
                bias = 0.0
                if mask is not None and mask.dtype == torch.bool:
                    bias = 0.0 if mask[t, s] else -math.inf
                elif mask is not None:
                    bias = float(mask[t, s])
                if bias > -math.inf:
                    scores[s] = float(q @ keys[s]) * attention.scale + bias
            total = sum(math.exp(score - max(scores.values())) for score in scores.values())
            for s, score in scores.items():
                weights[h, t, s] = math.exp(score - max(scores.values())) / total
                out[t, h * width : (h + 1) * width] += weights[h, t, s] * values[s]
    return torch.stack([linear(attention.output_proj, row) for row in out]), weights
