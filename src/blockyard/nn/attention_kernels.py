"""The kernels that `nn/attention.py` chooses from: plain matrix products, and torch's fused attention; a third is
`nn/attention_flex.py`.

Both give the same numbers. Scores and softmax are float32 at least, whatever the inputs are: rounded to 8 bits, a score
of 16 errs by up to a thirty-second, and its weight by that part.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn.attention_masks import as_bias, combine_masks, open_blind_rows
from blockyard.nn.derivatives import HandWritten, fused_or_plain, hand_written, transformed
from blockyard.nn.dropout import dropout as drop
from blockyard.nn.norms import widened

PlainKernel = Literal["auto", "matmul", "sdpa"]
# Of real scores, which have windows and documents: FlexAttention, too (`nn/attention_flex.py`).
Kernel = Literal["auto", "matmul", "sdpa", "flex"]

HALF = (torch.bfloat16, torch.float16)
# Keys up to which plain matrix products beat SDPA's CPU kernel, forward and backward, at head widths 4 to 64, one
# thread (benchmarks/attention.py). In float32 the kernel won at every length (x86 with AMX). In half precision the
# products have float32 scores, of converted inputs (a CPU has no half-precision product with a float32 result): on an
# AMD EPYC (Zen 4, AVX-512 with bf16, no AMX) they take 0.2 to 0.5 of SDPA's time in bfloat16 at 32 to 128 keys, 0.65 to
# 0.95 at 512, and 1.1 to 1.5 of what products with bfloat16 scores would take. Forward alone they win up to 128 keys
# (0.75 to 0.9), at 512 they take 1.0 to 1.3 times as long.
MATMUL_UP_TO = {torch.float32: 0}
_MATMUL_UP_TO_ELSE, _HALF_FORWARD_UP_TO = 512, 128

# Up to this many queries the heads that share a key head are scored as further queries of it: one product instead of
# one per head, up to 3 times as fast in float32 and 4 in bfloat16 (benchmarks/grouped_decode.py).
FEW_QUERIES = 16
# Few queries in half precision meet keys that are converted so many numbers at a time, which stay in the processor's
# cache: on that processor a step takes 0.2 to 0.4 of SDPA's time in bfloat16 behind 128 to 8192 tokens of 8 heads, 0.9
# to 1.1 with keys that all heads share, and 1.1 to 1.5 of what products with bfloat16 scores would take.
_CONVERTED = 1 << 20


def use_matmul(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> bool:
    # No other kernel has a formula for forward mode and for batches of batches.
    if transformed():
        return True
    if kernel != "auto":
        return kernel == "matmul"
    # An exported graph is of all lengths, so none of them decides.
    if q.device.type != "cpu" or torch.compiler.is_exporting():
        return False
    if q.shape[-2] <= FEW_QUERIES and (k.shape[1] != v.shape[1] or (q.shape[-1] != v.shape[-1] and not _within(v, k))):
        # Decoding: SDPA would copy the whole cache to expand shared values or to pad them.
        return True
    if q.shape[-2] <= FEW_QUERIES and _lengthwise(k):
        # Rows of a cache laid out for this: five times as fast as SDPA for heads 4 wide, twice for 32.
        return True
    if q.dtype in HALF and not torch.is_grad_enabled():
        return q.shape[-2] <= FEW_QUERIES or k.shape[-2] <= _HALF_FORWARD_UP_TO
    if q.shape[-2] == 1:
        # SDPA is as fast.
        return False
    return k.shape[-2] <= MATMUL_UP_TO.get(q.dtype, _MATMUL_UP_TO_ELSE)


def as_given(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products keep the precision of their inputs, also under autocast."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()


def _lengthwise(k: Tensor) -> bool:
    """Return whether the values of one feature at all positions lie side by side (see `LayerCache`)."""
    return k.stride(-1) != 1 and k.stride(-2) == 1


def by_matmul(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    scale: float,
    guard: bool,
    dropout: float,
    dropout_keys: Tensor | None,
    return_weights: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, heads, queries, width = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    sees = None
    if guard and mask is not None:
        mask, sees = open_blind_rows(mask)
    dtype = q.dtype
    wide = torch.float32 if dtype in HALF else dtype
    # The heads that share a key head are stacked along the queries, so that no key is copied.
    q = q.reshape(batch * key_heads, -1, width)
    k = k.reshape(batch * key_heads, keys, width)
    v = v.reshape(batch * v.shape[1], keys, -1)
    bias = None if mask is None else as_bias(mask, wide, (batch, key_heads, heads // key_heads, queries, keys))
    eager = not (torch.is_grad_enabled() or torch.compiler.is_compiling() or dropout or return_weights)
    if eager and wide != dtype and queries <= FEW_QUERIES and len(k) == len(v):
        out = _few_queries(q, k, v, bias, scale).view(batch, heads, queries, -1)
        return out if sees is None else out.masked_fill(~sees, 0.0), None
    with as_given(q.device):
        if wide != dtype and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            scores = hand_written(_WideScores, q, k, bias, scale)
        else:
            scores = _scores(q.to(wide), k.to(wide), bias, scale)
        weights = scores.softmax(-1)
    if sees is not None:
        weights = weights.view(batch, heads, queries, keys).masked_fill(~sees, 0.0).view(weights.shape)
    if dropout:
        dropped = drop(weights.view(batch, heads, queries, keys), dropout, dropout_keys).view(weights.shape)
    else:
        dropped = weights
    # The heads that share values are stacked, too.
    dropped = dropped.to(v.dtype).view(v.shape[0], -1, keys)
    out = torch.bmm(dropped, v).view(batch, heads, queries, -1)
    return out, weights.view(batch, heads, queries, keys).to(dtype) if return_weights else None


def _scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return q kᵀ · scale + bias, all [rows, ...]."""
    if bias is None:
        return torch.bmm(q * scale, k.transpose(1, 2))
    # Product, scale and mask in one call. A mask that is added costs a sixth of filling by a boolean one.
    return torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)


def _wide_scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    return _scores(widened(q), widened(k), bias, scale)


class _WideScores(HandWritten):
    """Float32 scores of half-precision queries and keys, whose gradients are products in half precision, as SDPA's.

    By conversions alone the backward pass would go through float32 products, which take twice as long.
    """

    differentiable = True
    plain = staticmethod(_wide_scores)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        ctx.save_for_backward(q, k)
        return _wide_scores(q, k, bias, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k = ctx.saved_tensors
        half, none = grad.to(q.dtype), q.new_zeros(1)
        grad_q = torch.baddbmm(none, half, k, beta=0, alpha=ctx.scale)
        grad_k = torch.baddbmm(none, half.mT, q, beta=0, alpha=ctx.scale)
        grad_bias = grad.sum_to_size(ctx.bias_shape) if ctx.needs_input_grad[2] else None
        return grad_q, grad_k, grad_bias, None


def _few_queries(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return attention of few queries in half precision, in float32 throughout and without gradients: [rows, queries,
    d_v].

    Rows are converted in pieces, see `_CONVERTED`.
    """
    out = q.new_empty(*q.shape[:2], v.shape[2])
    piece = max(1, _CONVERTED // (k.shape[1] * k.shape[2]))
    with as_given(q.device):
        for start in range(0, len(q), piece):
            rows = slice(start, start + piece)
            part = bias if bias is None or len(bias) == 1 else bias[rows]
            weights = _scores(q[rows].float(), k[rows].float(), part, scale).softmax(-1)
            out[rows] = torch.bmm(weights, v[rows].float())
    return out


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, guard: bool) -> Tensor:
    sees = None
    if guard and mask is not None:
        mask, sees = open_blind_rows(mask)
    if _lengthwise(k):
        # The kernel wants tokens whole.
        k, v = k.contiguous(), v.contiguous()
    shape = q.shape
    if q.shape[1] != k.shape[1] and not causal and not torch.compiler.is_exporting() and q.shape[2] <= FEW_QUERIES:
        q, mask = _fold_groups(q, mask, k.shape[1])
    grouped = q.shape[1] != k.shape[1]
    if v.shape[1] != k.shape[1]:
        v = v.expand(-1, k.shape[1], -1, -1)
    width, extra = v.shape[-1], q.shape[-1] - v.shape[-1]
    # The flag is the CPU kernel's too; a compiler cannot read it.
    flash = torch.compiler.is_compiling() or torch.backends.cuda.flash_sdp_enabled()
    if extra and flash and q.device.type == "cpu":
        # The flash kernel gives up on unequal widths; zero columns cost less than its replacement.
        if extra > 0:
            # Latents are their own padding: what stands beside the values gives columns that are cut off below.
            v = k if _within(v, k) else F.pad(v, (0, extra))
        else:
            q, k = F.pad(q, (0, -extra)), F.pad(k, (0, -extra))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)
    out = fused_or_plain(out, _by_products, (q, k, v, mask), (causal, scale))
    out = out[..., :width]
    if out.shape[:3] != shape[:3]:
        out = out.reshape(*shape[:3], width)
    return out if sees is None else out.masked_fill(~sees, 0.0)


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Return what the kernel computes, in operations with second derivatives."""
    if causal:
        mask = combine_masks(q, k, causal=True, padding_mask=None, attn_mask=None, window=None)
    return by_matmul(q, k, v, mask, scale, False, 0.0, None, False)[0]


def _within(v: Tensor, k: Tensor) -> bool:
    """Return whether the values are the first columns of the keys in memory, as those of a latent are."""
    if torch.compiler.is_compiling() or v.shape[-1] > k.shape[-1]:
        return False
    return v.data_ptr() == k.data_ptr() and v.stride() == k.stride() and v.shape[:-1] == k.shape[:-1]


def _fold_groups(q: Tensor, mask: Tensor | None, key_heads: int) -> tuple[Tensor, Tensor | None]:
    """Compute q [B, H, T, d] as [B, H_kv, H / H_kv · T, d], and a mask to match."""
    batch, heads, queries, width = q.shape
    groups = heads // key_heads
    q = q.reshape(batch, key_heads, groups * queries, width)
    if mask is None:
        return q, None
    mask = mask.view(*(1,) * (4 - mask.ndim), *mask.shape)
    rows, own, _, keys = mask.shape
    if own == 1 and queries == 1:
        return q, mask
    if mask.dtype == torch.bool:
        # What is written out once for each group should not have to be converted again in the kernel.
        mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, float("-inf"))
    if own == 1:
        return q, mask.unsqueeze(2).expand(rows, 1, groups, queries, keys).reshape(rows, 1, groups * queries, keys)
    return q, mask.expand(rows, heads, queries, keys).reshape(rows, key_heads, groups * queries, keys)
