"""Attention over complex vectors, on interleaved real pairs: four ways of turning ⟨q, k⟩ into weights.

s = q kᴴ / √d is a complex number that a common rotation of all inputs leaves as it is, so every form keeps the phase
symmetry. `real` is exact scaled dot-product attention over 2·d reals, since Re⟨q, k⟩ is their real dot product, and
uses its fast kernels. `split` is two of those, on Re s and on Im s. `magnitude` (the complex document's) and `phase`
need |s|: they are computed in blocks of queries, whose scores stay in the processor's cache.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from blockyard.complex.linear import times_i
from blockyard.complex.score_passes import EPS, can_pass, scored
from blockyard.nn.attention import attend
from blockyard.nn.attention_kernels import HALF, PlainKernel, as_given
from blockyard.nn.attention_masks import combine_masks, open_blind_rows
from blockyard.nn.dropout import dropout as drop

Score = Literal["real", "magnitude", "phase", "split"]
SCORES: tuple[Score, ...] = ("real", "magnitude", "phase", "split")

# Scores of one block of queries, over all rows and heads: about half a megabyte of each intermediate.
_BLOCK_SCORES = 1 << 17


def complex_attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    score: Score = "real",
    share: Tensor | None = None,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    kernel: PlainKernel = "auto",
    dropout: float = 0.0,
    dropout_keys: Tensor | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return attention of queries to keys by a score of s = q kᴴ / √d, without complex tensors.

    real: softmax(Re s) v. magnitude: softmax(|s|) v. phase: (softmax(|s|) · s/|s|) v, values turned by the angle
    between query and key. split: share · softmax(Re s) v + (1 − share) · softmax(Im s) v.

    Args:
        q: [B, H, T, 2d] interleaved parts; with S > T keys, the queries are the last T positions.
        k: [B, H_kv, S, 2d], H_kv dividing H.
        v: [B, H_kv, S, 2d_v].
        score: see above.
        share: [H] in (0, 1), for score="split".
        causal, padding_mask, attn_mask, kernel, dropout, dropout_keys: as `blockyard.nn.attention.attend`.
        return_weights: also return the (real) weights [B, H, T, S]; for split [B, 2H, T, S], those of the real parts
            in front.
    """
    # Half of the reals are one complex width.
    scale = (q.shape[-1] / 2) ** -0.5
    free = padding_mask is None and attn_mask is None and not dropout and not return_weights
    if score != "real" and free and can_pass(q, k, v):
        return scored(q, k, v, share, score, causal, scale), None
    if score in ("magnitude", "phase"):
        dtype = q.dtype
        # There is no half-precision product with a float32 result on a CPU.
        if dtype in HALF:
            # Scores and all that is made of them in float32, as in `attend`.
            q, k, v = q.float(), k.float(), v.float()
        mask = combine_masks(q, k, causal=causal, padding_mask=padding_mask, attn_mask=attn_mask, window=None)
        guard = padding_mask is not None or attn_mask is not None
        # Keyed dropout numbers the elements of the whole matrix, and weights are wanted whole.
        whole = dropout > 0 or return_weights
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        with as_given(q.device):
            out, weights = _by_magnitude(
                q, k, v, mask, scale, score, causal, guard, whole, dropout, dropout_keys, return_weights
            )
        return out.to(dtype), None if weights is None else weights.to(dtype)

    def of(queries: Tensor) -> tuple[Tensor, Tensor | None]:
        return attend(
            queries,
            k,
            v,
            causal=causal,
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            scale=scale,
            kernel=kernel,
            dropout=dropout,
            dropout_keys=dropout_keys,
            return_weights=return_weights,
        )

    if score == "real":
        return of(q)
    assert share is not None
    # Im s = Re(−i s): the imaginary part is the real score of queries turned back by a quarter.
    (real, real_weights), (imaginary, imaginary_weights) = of(q), of(-times_i(q))
    part = share.to(real.dtype).view(-1, 1, 1)
    # Both are means of the same values, so a mean of the two is one, too.
    out = part * real + (1 - part) * imaginary
    if real_weights is None or imaginary_weights is None:
        return out, None
    return out, torch.cat([real_weights, imaginary_weights], dim=1)


def _by_magnitude(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    score: Score,
    causal: bool,
    guard: bool,
    whole: bool,
    dropout: float,
    dropout_keys: Tensor | None,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the scores magnitude and phase, block by block of queries."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    step = queries if whole else max(16, _BLOCK_SCORES // (batch * heads * keys))
    q = q * scale
    # Re s is the dot product of pairs, Im s the same with queries turned back by a quarter.
    turned, kt = -times_i(q), k.mT
    if mask is not None and mask.ndim < 2:
        mask = mask.expand(1, -1)
    outs: list[Tensor] = []
    weights = None
    for start in range(0, queries, step):
        rows = slice(start, min(start + step, queries))
        # What is later than a block's last query has no part in it.
        seen = keys - queries + rows.stop if causal else keys
        real, imaginary = q[:, :, rows] @ kt[..., :seen], turned[:, :, rows] @ kt[..., :seen]
        size = (real.square() + imaginary.square() + EPS).sqrt()
        part = None if mask is None else mask[..., rows if mask.shape[-2] > 1 else slice(None), :seen]
        weights = _softmax(size, part, guard)
        dropped = drop(weights, dropout, dropout_keys) if dropout else weights
        values = v[:, :, :seen]
        if score == "magnitude":
            outs.append(dropped @ values)
        else:
            # w · s/|s| · v with s = a + ib: a v, and b times i v.
            over = dropped / size
            outs.append((over * real) @ values + times_i((over * imaginary) @ values))
    return torch.cat(outs, dim=2) if len(outs) > 1 else outs[0], weights if return_weights else None


def _softmax(scores: Tensor, mask: Tensor | None, guard: bool) -> Tensor:
    """Return weights under a mask; those of a query that sees nothing are 0."""
    if mask is None:
        return scores.softmax(-1)
    sees = None
    if guard:
        mask, sees = open_blind_rows(mask)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    return weights if sees is None else weights.masked_fill(~sees, 0.0)
