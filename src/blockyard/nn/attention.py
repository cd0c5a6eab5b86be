"""Scaled dot-product attention over any mix of masks, by the kernel that suits the length.

Plain matrix products win at short lengths on a CPU, `F.scaled_dot_product_attention` at long ones and on a GPU
(`nn/attention_kernels.py`); a causal sliding window is computed in blocks (`nn/attention_windows.py`), on CUDA in
training by FlexAttention (`nn/attention_flex.py`), and so are documents in a row. Every path gives the same numbers,
and a query that may see nothing gives 0 with a zero gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.nn import attention_flex, causal_attention, thin_attention
from blockyard.nn.attention_kernels import HALF, Kernel, by_matmul, by_sdpa, use_matmul
from blockyard.nn.attention_masks import check_padding_mask, combine_masks
from blockyard.nn.attention_sinks import Sinks, sinks_of
from blockyard.nn.attention_windows import mask_with_sinks, window_span, windowed


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    padding_mask: Tensor | None = None,
    attn_mask: Tensor | None = None,
    window: int | None = None,
    sinks: int = 0,
    beside: Sinks | None = None,
    documents: Tensor | None = None,
    scale: float | None = None,
    kernel: Kernel = "auto",
    dropout: float = 0.0,
    dropout_keys: Tensor | None = None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute softmax(q kᵀ · scale + mask) v, with fewer key than query heads if k and v have fewer.

    Args:
        q: [B, H, T, d]; with S > T keys, the queries are the last T positions.
        k: [B, H_kv, S, d], H_kv dividing H.
        v: [B, H_kv, S, d_v], or [B, 1, S, d_v] for values that all heads share.
        causal: position i sees keys up to i.
        padding_mask: [B, S], nonzero = keep.
        attn_mask: broadcastable to [B, H, T, S]; bool (True = attend) or additive, combined with the others.
        window: position i sees only keys less than `window` away.
        sinks: with a window, the first so many kept keys are seen from everywhere; k then holds the whole sequence.
        beside: those keys where k no longer begins with the sequence's first one. Masks and weights then have their
            columns in front of those of k; a padding mask is of k alone.
        documents: [B, T] place of each token within its document, 0 where one begins: no token sees another document,
            and sinks are the first tokens of each. With as many keys as queries.
        scale: factor of the scores, 1/sqrt(d) by default.
        kernel: "auto" decides by length and device.
        dropout: probability of dropping a weight.
        dropout_keys: see `blockyard.nn.dropout`.
        return_weights: also return the weights [B, H, T, S].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries, keys = q.shape[-2], k.shape[-2]
    if padding_mask is not None:
        check_padding_mask(padding_mask, q.shape[0], keys)
    hidden = (causal, window, sinks, padding_mask, documents)
    # An exported graph is of all lengths: none of them is compared in it.
    hides = documents is not None or (window is not None and not torch.compiler.is_exporting() and window < keys)
    free = attn_mask is None and beside is None and not return_weights and not dropout
    if hides and free and attention_flex.suits(q, k, v, kernel):
        sight = attention_flex.sight_of(queries, keys, *hidden)
        mixed = attention_flex.flex(q, k, v, sight, scale, must=kernel == "flex")
        if mixed is not None:
            return mixed, None
    if documents is not None:
        attn_mask = attention_flex.with_dense(attn_mask, attention_flex.sight_of(queries, keys, *hidden), q)
        causal, window, sinks, padding_mask = False, None, 0, None
    if window is not None:
        # Where blocks begin to pay is a matter of length: an exported graph, which is of all lengths, has the mask.
        exporting = torch.compiler.is_exporting()
        plain = attn_mask is None and not return_weights and not dropout and not exporting
        if plain and beside is None and sinks and keys > min(queries + window - 1, window_span(window, causal)):
            beside = sinks_of(k, v, padding_mask, sinks)
        if plain and causal and keys > queries + window - 1:
            # The oldest keys, which no query sees.
            dropped, keys = keys - (queries + window - 1), queries + window - 1
            k, v = k[:, :, -keys:], v[:, :, -keys:]
            padding_mask = None if padding_mask is None else padding_mask[:, -keys:]
            beside = None if beside is None else Sinks(beside.k, beside.v, beside.places - dropped)
        if plain and (causal or queries == keys) and keys > window_span(window, causal):
            return windowed(q, k, v, causal, padding_mask, window, scale, kernel, beside), None
        if beside is not None:
            mask = mask_with_sinks(q, k, beside, causal, padding_mask, window, attn_mask)
            k, v = torch.cat([beside.k, k], 2), torch.cat([beside.v, v], 2)
            return attend(
                q,
                k,
                v,
                attn_mask=mask,
                scale=scale,
                kernel=kernel,
                dropout=dropout,
                dropout_keys=dropout_keys,
                return_weights=return_weights,
            )
        # The one query of a decoding step is the last position and sees what is left.
        if not exporting and window >= keys:
            window = None
    # Only the caller's masks can leave a query with nothing to see.
    guard = padding_mask is not None or attn_mask is not None
    matmul = return_weights or dropout > 0 or use_matmul(q, k, v, kernel)
    bare = causal and not guard and window is None and kernel == "auto" and not (return_weights or dropout)
    if bare and causal_attention.suits(q, k, v):
        return causal_attention.causal_attention(q, k, v, scale), None
    several = torch.compiler.is_exporting() or queries > 1
    if causal and not matmul and not guard and window is None and queries == keys and several:
        if kernel == "auto" and thin_attention.suits(q, k, v):
            return thin_attention.thin_attention(q, k, v, scale), None
        # A square causal mask alone is a flag to SDPA: no T x T mask is made, and its fast path skips half the work.
        return by_sdpa(q, k, v, None, True, scale, False), None
    # SDPA's CPU kernel takes a mask in float32, too; another's has to be as the queries are.
    dtype = torch.float32 if q.dtype in HALF and (matmul or q.device.type == "cpu") else q.dtype
    mask = combine_masks(
        q, k, causal=causal, padding_mask=padding_mask, attn_mask=attn_mask, window=window, sinks=sinks, dtype=dtype
    )
    if matmul:
        return by_matmul(q, k, v, mask, scale, guard, dropout, dropout_keys, return_weights)
    return by_sdpa(q, k, v, mask, False, scale, guard), None
