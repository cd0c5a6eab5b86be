"""Windows, attention sinks and documents in a row by FlexAttention: one compiled kernel that skips what nobody sees.

FlexAttention (arXiv 2412.05496, `torch.nn.attention.flex_attention`) takes a function that says whether a query sees a
key, and a map of blocks of 128 x 128 in which none, some or all pairs are seen. `Sight` is both for everything that
attention here can hide but a caller's own mask. The map comes of places alone, in O((T / 128)²): evaluating the
function for all pairs, as `create_block_mask` does, would cost as much memory as the mask that the kernel saves.

    causal, window W   0 <= q - k < W            both ways   |q - k| < W
    sinks n            or k is among the first n kept tokens (of its document)
    padding            and k is kept             documents   and q and k stand in one document

The kernel is compiled for a device of CUDA and chosen there alone. On a CPU, where it has no backward pass,
`kernel=flex` computes the same without it, for tests of the masks.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.attention_kernels import HALF, Kernel, by_matmul
from blockyard.nn.attention_masks import check_attn_mask
from blockyard.nn.attention_sinks import first_kept
from blockyard.nn.derivatives import fused_or_plain, transformed

# FlexAttention's own, on which its kernels' tiles are made.
BLOCK = 128
# Not measured: below this a mask costs little, and a length is compiled for.
FROM_LENGTH = 512
# What the compiled kernel takes, by its sources (torch 2.13): heads of at least 16 numbers; wider ones than 256 do not
# fit beside one another into a multiprocessor's memory.
LEAST_WIDTH, MOST_WIDTH = 16, 256

# Whether its kernels could be made, by device, type and widths of keys and values.
_tried: dict[tuple[torch.device, torch.dtype, int, int], bool] = {}
# Kinds of calls, of one length and window each, that are compiled before torch gives up and runs it uncompiled.
_CALLS = 64

# Arguments: row, head, query, key; returns bool.
Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Sight:
    """Which keys the queries see. With more keys than queries these are the last positions.

    Args:
        queries, keys: how many.
        causal, window, sinks: as for `attend`.
        keep: [B, S] bool, keys that are no padding.
        first: [B, S] bool, keys that count as sinks; without it the first `sinks` of the row.
        runs: [B, T] int, which document of its row each position stands in, rising; with as many keys as queries.
    """

    queries: int
    keys: int
    causal: bool
    window: int | None = None
    sinks: int = 0
    keep: Tensor | None = None
    first: Tensor | None = None
    runs: Tensor | None = None

    @property
    def batch(self) -> int:
        """Rows that differ; 1 where all see alike."""
        differing = self.keep if self.keep is not None else self.runs
        return 1 if differing is None else differing.shape[0]

    @property
    def tensors(self) -> bool:
        """Whether it goes by data, and not by places alone."""
        return self.keep is not None or self.runs is not None


def sight_of(
    queries: int,
    keys: int,
    causal: bool,
    window: int | None,
    sinks: int,
    padding_mask: Tensor | None,
    places: Tensor | None,
) -> Sight:
    """Return who sees what.

    Args:
        queries, keys, causal, window, sinks, padding_mask: as for `attend`.
        places: [B, T] of each token within its document, 0 where one begins; None = a row is one.

    Raises:
        InputError: for places of other tokens than the queries, or more keys than those.
    """
    if places is not None and not (queries == keys == places.shape[-1] and places.ndim == 2):
        raise InputError(f"documents has shape {tuple(places.shape)}, expected [batch, {queries}] of {keys} keys")
    keep = first = runs = None
    if padding_mask is not None:
        keep = padding_mask.to(torch.bool)
        first = first_kept(padding_mask, sinks) if sinks and window is not None else None
    if places is not None:
        runs = (places == 0).cumsum(-1, dtype=torch.int32)
        first = places < sinks if sinks and window is not None else None
    return Sight(queries, keys, causal, window, sinks if window is not None else 0, keep, first, runs)


def suits(q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> bool:
    """Return whether FlexAttention computes what nothing but places, padding and documents hide."""
    if not (q.is_floating_point() and 2 <= q.shape[2] <= k.shape[2]):
        return False
    return chosen(kernel, q, q.shape[2], q.shape[-1], v.shape[-1]) and (kernel == "flex" or q.shape[2] == k.shape[2])


def chosen(kernel: Kernel, like: Tensor, length: int, width: int, v_width: int) -> bool:
    """Return whether a sequence is one for FlexAttention.

    Args:
        kernel: auto leaves it to what follows.
        like: of the type and on the device that it is computed in.
        length: of the sequence.
        width, v_width: of queries and keys, and of values.
    """
    if transformed() or torch.compiler.is_exporting():
        return False
    if kernel not in ("auto", "flex") or like.device.type != "cuda":
        return kernel == "flex" and like.device.type == "cpu"
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else like.dtype
    takes = dtype in (*HALF, torch.float32) and LEAST_WIDTH <= min(width, v_width) <= max(width, v_width) <= MOST_WIDTH
    # A compiler has its own way of saying that it cannot.
    if not torch.compiler.is_compiling() and _tried.get((like.device, dtype, width, v_width)) is False:
        return False
    # A text that is read has any length, each of which would be compiled for; training repeats its own.
    return takes and (kernel == "flex" or (torch.is_grad_enabled() and length >= FROM_LENGTH))


def seen(sight: Sight) -> Seen:
    """Return whether query q of row b sees key k."""
    offset, window, sinks, causal = sight.keys - sight.queries, sight.window, sight.sinks, sight.causal
    keep, first, runs = sight.keep, sight.first, sight.runs

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        distance = q + offset - k
        # True, without reading anything.
        visible = distance >= 0 if causal else k >= 0
        if window is not None:
            near = distance < window if causal else (distance < window) & (distance > -window)
            if first is not None:
                near = near | first[b, k]
            elif sinks:
                near = near | (k < sinks)
            visible = visible & near
        if keep is not None:
            visible = visible & keep[b, k]
        if runs is not None:
            visible = visible & (runs[b, q] == runs[b, k])
        return visible

    return sees


def dense(sight: Sight, device: torch.device) -> Tensor:
    """Return the same for all pairs: bool [B or 1, 1, T, S]."""
    b, q, k = (torch.arange(n, device=device) for n in (sight.batch, sight.queries, sight.keys))
    found = seen(sight)(b[:, None, None, None], b[:1], q[:, None], k)
    return found.expand(sight.batch, 1, sight.queries, sight.keys)


def with_dense(attn_mask: Tensor | None, sight: Sight, like: Tensor) -> Tensor:
    """Return a caller's mask, bool or additive, with what the sight hides hidden."""
    visible = dense(sight, like.device)
    if attn_mask is None:
        return visible
    check_attn_mask(attn_mask, (like.shape[0], like.shape[1], sight.queries, sight.keys))
    if attn_mask.dtype == torch.bool:
        return attn_mask & visible
    return attn_mask.masked_fill(~visible, float("-inf"))


def blocks(sight: Sight, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return in which blocks some pairs may be seen, but not all are, and in which all are: bool [B or 1, 1, queries /
    128, keys / 128], the last ones of a row cut short."""
    offset = sight.keys - sight.queries
    q0, k0 = (torch.arange(0, n, BLOCK, device=device) for n in (sight.queries, sight.keys))
    q1, k1 = (q0 + BLOCK - 1).clamp(max=sight.queries - 1), (k0 + BLOCK - 1).clamp(max=sight.keys - 1)
    nearest, furthest = q0[:, None] + offset - k1, q1[:, None] + offset - k0  # distances, [Q, K]
    some = furthest >= 0 if sight.causal else torch.ones_like(nearest, dtype=torch.bool)
    # What is cut short the kernel has to ask for place by place.
    every = (q0 + BLOCK <= sight.queries)[:, None] & (k0 + BLOCK <= sight.keys)
    if sight.causal:
        every = every & (nearest >= 0)
    some, every = some.expand(sight.batch, 1, -1, -1), every.expand(sight.batch, 1, -1, -1)
    if sight.window is not None:
        near = nearest < sight.window if sight.causal else (nearest < sight.window) & (furthest > -sight.window)
        if sight.first is not None:
            near = near | _by_block(sight.first).any(-1)[:, None, None]
        elif sight.sinks:
            near = near | (k0 < sight.sinks)
        some = some & near
        inside = furthest < sight.window
        every = every & (inside if sight.causal else inside & (nearest > -sight.window))
    if sight.keep is not None:
        kept = _by_block(sight.keep)
        some, every = some & kept.any(-1)[:, None, None], every & kept.all(-1)[:, None, None]
    if sight.runs is not None:
        first, last = sight.runs[:, q0], sight.runs[:, q1]  # documents rise along a row, [B, Q]
        meet = (first[:, :, None] <= last[:, None]) & (first[:, None] <= last[:, :, None])
        alone = first == last
        one = alone[:, :, None] & alone[:, None] & (first[:, :, None] == first[:, None])
        some, every = some & meet[:, None], every & one[:, None]
    return some & ~every, some & every


def _by_block(flags: Tensor) -> Tensor:
    """Return flags [B, S] as [B, blocks, 128], false where a block is cut short."""
    extra = -flags.shape[1] % BLOCK
    return torch.nn.functional.pad(flags, (0, extra), value=False).unflatten(1, (-1, BLOCK))


def block_mask(sight: Sight, device: torch.device) -> Any:
    """Return the `BlockMask`; where it goes by places alone it is made once for a shape."""
    # Traced, a memory of it would only be looked through.
    if sight.tensors or torch.compiler.is_compiling():
        return _block_mask(sight, device)
    return _kept(sight, device)


# A model has a few windows and a run a few lengths; an entry of 32,768 tokens is a megabyte.
@functools.lru_cache(maxsize=32)
def _kept(sight: Sight, device: torch.device) -> Any:
    # Not a result of inference_mode, which training could not use; no transform comes here (`suits`).
    with torch.inference_mode(False):
        return _block_mask(sight, device)


def _block_mask(sight: Sight, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    (some, which), (every, whole) = (_listed(chosen) for chosen in blocks(sight, device))
    lengths = (sight.queries, sight.keys)
    return BlockMask.from_kv_blocks(
        some, which, every, whole, BLOCK_SIZE=BLOCK, mask_mod=seen(sight), seq_lengths=lengths
    )


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many blocks of keys each block of queries has, and which: those first, in order."""
    order = torch.argsort(chosen.to(torch.int8), dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), order.to(torch.int32)


def flex(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float, *, must: bool = True) -> Tensor | None:
    """Return attention of queries to the keys that they see, 0 where they see none: [B, H, T, d_v].

    Args:
        q: [B, H, T, d].
        k: [B, H_kv, S, d].
        v: [B, H_kv or 1, S, d_v].
        sight: who sees what.
        scale: factor of the scores.
        must: let errors of its compiler through; without it, None where the kernel cannot be made for this card, which
            is tried once, backward pass included.
    """
    device = q.device.type
    if torch.is_autocast_enabled(device):
        q, k, v = (t.to(torch.get_autocast_dtype(device)) for t in (q, k, v))
    v = v.expand(-1, k.shape[1], -1, -1)
    if device == "cpu" and torch.is_grad_enabled():
        return _by_products(q, k, v, sight, scale)
    # The kernel wants tokens whole, and what a cache lays lengthwise is a part of a wider buffer.
    given = [t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v)]
    call = functools.partial(
        _kernel(q.device), block_mask=block_mask(sight, q.device), scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    if not (must or torch.compiler.is_compiling() or _works(call, given)):
        return None
    return fused_or_plain(call(*given), _by_products, (q, k, v), (sight, scale))


def _works(call: Callable[..., Tensor], given: list[Tensor]) -> bool:
    """Return whether the kernel can be made; a card may have too little memory in a multiprocessor for a type and
    width, in the backward pass alone, too. What is compiled here serves the call that asks."""
    q, _, v = given
    key = (q.device, q.dtype, q.shape[-1], v.shape[-1])
    if key not in _tried:
        try:
            # Under hooks of its own: activation checkpointing counts what is saved, and finds nothing of this again.
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                apart = [t.detach().requires_grad_() for t in given]
                out = call(*apart)
                torch.autograd.grad(out, apart, torch.ones_like(out))
            _tried[key] = True
        except torch.OutOfMemoryError:
            # Of the card's memory there is none left: that says nothing about kernels.
            raise
        except Exception as error:
            _tried[key] = False
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(f"no FlexAttention for {q.dtype}, heads of {q.shape[-1]}: {said}", stacklevel=2)
    return _tried[key]


def _by_products(q: Tensor, k: Tensor, v: Tensor, sight: Sight, scale: float) -> Tensor:
    """Return the same by plain products: in operations with second derivatives."""
    return by_matmul(q, k, v, dense(sight, q.device), scale, True, 0.0, None, False)[0]


def _kernel(device: torch.device) -> Callable[..., Tensor]:
    """Return FlexAttention: compiled on its own, or to be compiled with what stands around it."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling() or device.type == "cpu":
        return flex_attention
    return _compiled()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # A length, window or width is a kernel of its own; beyond the limit all scores would be written out.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _CALLS)
    return torch.compile(flex_attention, dynamic=False)
