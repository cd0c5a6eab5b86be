"""Standard attention: every position looks at the others and takes a weighted mean of their values.

Vaswani et al. 2017 (arXiv 1706.03762), with today's parts: rotary positions, grouped key heads (arXiv 2305.13245),
QK-norm (arXiv 2010.04245), a sliding window (arXiv 2004.05150).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.attention import Kernel, attend, windowed_pairs
from blockyard.nn.attention_masks import check_attn_mask
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear, plain
from blockyard.nn.norms import RMSNorm, rms_norm
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_window import WindowCache
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Mixer, check_heads, default_positions
from blockyard.registry.register import Traits, register_attn

# From this many rows on, one product with the stacked q, k, v weights pays for stacking them.
_STACK_FROM = 64


@register_attn(
    "standard",
    group="attn",
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
class StandardAttention(Mixer):
    """Multi-head attention (MHA); with `n_kv_heads` grouped (GQA) or single (MQA) key-value heads.

    Args:
        d_model: width of the residual stream.
        n_heads: number of query heads.
        n_kv_heads: number of key-value heads, dividing n_heads; None = n_heads.
        head_dim: width of a head; None = d_model / n_heads.
        causal: hide the future; the forward argument overrides it.
        rope: pairing of the rotary embedding: half (Llama's), interleaved (the basics document's), or none.
        rope_theta: base of the rotary wavelengths.
        qk_norm: RMS-normalise queries and keys per head, with a gain, before they are rotated.
        window: see only keys less than this many positions away; None = all.
        bias: biases in the four projections.
        dropout: probability of dropping an attention weight in training.
        kernel: auto, matmul or sdpa; auto decides by length and device.

    Shapes: x [B, T, d_model] -> [B, T, d_model]; weights [B, n_heads, T, S].
    Raises: InputError when heads do not divide, head_dim is odd with rope, or head_dim or window is below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        rope: Literal["half", "interleaved", "none"] = "half",
        rope_theta: float = 10_000.0,
        qk_norm: bool = True,
        window: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal
        if head_dim is not None and head_dim < 1:
            raise InputError(f"head_dim={head_dim} should be at least 1, or none")
        if n_heads < 1:
            raise InputError(f"n_heads={n_heads} should be at least 1")
        self.head_dim = check_heads(d_model, n_heads) if head_dim is None else head_dim
        self.n_kv_heads = n_kv_heads if n_kv_heads is not None else n_heads
        if self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")
        if window is not None and window < 1:
            raise InputError(f"window={window} should be at least 1, or none")
        self.window, self.kernel = window, kernel
        width, kv_width = n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.q_proj = Linear(d_model, width, bias=bias)
        self.k_proj = Linear(d_model, kv_width, bias=bias)
        self.v_proj = Linear(d_model, kv_width, bias=bias)
        self.output_proj = Linear(width, d_model, bias=bias)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else None
        self.rope = None if rope == "none" else RotaryPositionalEmbedding(rope_theta, self.head_dim, layout=rope)
        self.attn_dropout = Dropout(dropout)

    def widen_context(self, key_width: int, value_width: int) -> None:
        """Read keys from a context of one width and values from one of another: two new projections.

        Such an attention has no self-attention, unless key_width is d_model.
        """
        for name, width in (("k_proj", key_width), ("v_proj", value_width)):
            if width < 1:
                raise InputError(f"{name} cannot read vectors of width {width}; it should be at least 1")
            old = getattr(self, name)
            setattr(self, name, Linear(width, old.weight.shape[0], bias=old.bias is not None).to(old.weight))
        self.context_width = key_width

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        values: Tensor | None = None,
        cache: LayerCache | None = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `Mixer.forward` says; values may come from another sequence than keys.

        Args:
            values: [B, S, d_model] (or the width that `widen_context` set), read for values in place of x or the
                context, position by position.
        """
        causal, past = self._check(x, padding_mask, causal, positions, context, cache)
        if values is not None or self.context_width is not None:
            self._check_values(values, x, context)
        if context is None:
            if positions is None and padding_mask is not None:
                positions = default_positions(padding_mask, x.shape[1])
            q, k, v = self._project_self(x, positions, past, values)
        else:
            q, k, v = self._project_cross(x, context, context if values is None else values)
        hidden = 0
        if cache is not None:
            k, v = cache.append(k=k.to(cache.dtype), v=v.to(cache.dtype))
            q = q.to(cache.dtype)
            # A windowed cache shows no more than the new tokens can see; the caller's masks cover all tokens.
            hidden = past + x.shape[1] - k.shape[-2]
            if hidden:
                padding_mask, attn_mask = self._visible(hidden, past, x, padding_mask, attn_mask)
        mixed, weights = attend(
            q,
            k,
            v,
            causal=causal,
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            window=self.window if context is None else None,
            kernel=self.kernel,
            dropout=self.attn_dropout.p if self.training else 0.0,
            dropout_keys=self.attn_dropout.keys,
            return_weights=return_weights,
        )
        out = self.output_proj(mixed.transpose(1, 2).flatten(2).to(x.dtype))
        if hidden and weights is not None:
            weights = F.pad(weights, (hidden, 0))
        return out, weights

    def _check_values(self, values: Tensor | None, x: Tensor, context: Tensor | None) -> None:
        """Refuse sequences that the projections cannot read, or that do not run along the keys."""
        keys = x if context is None else context
        for name, source, projection in (("keys", keys, self.k_proj), ("values", values, self.v_proj)):
            source, width = keys if source is None else source, projection.weight.shape[1]
            if source.shape != (*keys.shape[:2], width):
                raise InputError(f"{name} come from {tuple(source.shape)}, expected {(*keys.shape[:2], width)}")

    def _visible(
        self, hidden: int, past: int, x: Tensor, padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The masks without the `hidden` oldest tokens, which the cache does not show."""
        if padding_mask is not None:
            padding_mask = padding_mask[:, hidden:]
        if attn_mask is not None:
            check_attn_mask(attn_mask, (x.shape[0], self.n_heads, x.shape[1], past + x.shape[1]))
            if attn_mask.ndim and attn_mask.shape[-1] > 1:
                attn_mask = attn_mask[..., hidden:]
        return padding_mask, attn_mask

    def _project_self(
        self, x: Tensor, positions: Tensor | None, past: int, values: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, head_dim], keys and values [B, H_kv, T, head_dim] of one sequence, rotated."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if values is not None:
            parts = (self.q_proj(x), self.k_proj(x), self.v_proj(values))
            heads = torch.cat(parts, dim=-1).unflatten(-1, (-1, self.head_dim))
        elif x.shape[0] * x.shape[1] >= _STACK_FROM and plain(*projections):
            heads = F.linear(x, torch.cat([p.weight for p in projections])).unflatten(-1, (-1, self.head_dim))
        else:
            heads = torch.cat([p(x) for p in projections], dim=-1).unflatten(-1, (-1, self.head_dim))
        # Query and key heads are normalised and rotated together: half as many passes as one after the other.
        together = self.n_heads + self.n_kv_heads
        qk, v = heads.split([together, self.n_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            gains = [self.q_norm.weight.expand(self.n_heads, -1), self.k_norm.weight.expand(self.n_kv_heads, -1)]
            qk = rms_norm(qk, torch.cat(gains), self.q_norm.eps)
        if self.rope is not None:
            cos, sin = self.rope.tables(x.shape[1], x, positions, offset=past)
            qk = rotate(qk, cos.unsqueeze(-2), sin.unsqueeze(-2), self.rope.layout)
        q, k = qk.split([self.n_heads, self.n_kv_heads], dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _project_cross(self, x: Tensor, context: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys of the context and values; no rotation, since they share no positions."""
        parts = (self.q_proj(x), self.k_proj(context), self.v_proj(values))
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache:
        slots = dict.fromkeys(("k", "v"), (self.n_kv_heads, self.head_dim))
        placement = self._placement(dtype, device)
        if self.window is not None:
            return WindowCache(batch, slots, window=self.window, max_len=max_len, **placement)
        return LayerCache(batch, slots, max_len=max_len, **placement)

    def cost(self, tokens: int) -> Cost:
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        read = [(projection.weight.shape[1], kv_width) for projection in (self.k_proj, self.v_proj)]
        shapes = [(self.d_model, width), *read, (width, self.d_model)]
        biases = sum(shape[1] for shape in shapes) if self.q_proj.bias is not None else 0
        gains = 2 * self.head_dim if self.q_norm is not None else 0
        scores = 2 * 2 * self.n_heads * self.head_dim * self._pairs(tokens)
        return Cost(
            parameters=sum(a * b for a, b in shapes) + biases + gains,
            flops=linear_flops(tokens, *shapes) + scores,
            cache_bytes_per_token=2 * kv_width * 4,
        )

    def _pairs(self, tokens: int) -> int:
        """Query-key pairs that are scored."""
        return tokens * tokens if self.window is None else windowed_pairs(tokens, self.window, self.causal)

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, head_dim={self.head_dim}, causal={self.causal}"
