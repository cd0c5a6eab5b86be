"""The complex-block document's names and call forms (`from blockyard.compat.complex_block import TransformerBlock`).

Everything comes and goes as real and imaginary parts, `[b, head, seq, feature]`. The document leaves open what
`feature` is; both readings work, told apart by the last size: feature = feature_dim means that every head is a stream
of its own that shares its weights with the others, feature = feature_dim / num_heads that the heads together make a
vector of feature_dim numbers. The mathematics is the library's (docs/complex.md says where the document's differs),
with the document's additive position encodings instead of rotary ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.complex import attention as mixers
from blockyard.complex import ffn, norms
from blockyard.complex import linear as layers
from blockyard.complex.dual import DualStreamBlock, Order
from blockyard.complex.scores import Score
from blockyard.errors import InputError
from blockyard.protocol.cache import ModelCache

__all__ = ["ComplexAttention", "ComplexLayerNorm", "ComplexLinear", "ComplexSwiGLU", "TransformerBlock"]

Gate = Literal["none", "learned", "magnitude"]
Parts = tuple[Tensor, Tensor]


def join(real: Tensor, imaginary: Tensor, name: str = "x") -> Tensor:
    """Return two real tensors of one shape as a complex one.

    Raises:
        InputError: when shapes or types differ, or are no floating type.
    """
    if real.shape != imaginary.shape or real.dtype != imaginary.dtype or not real.is_floating_point():
        raise InputError(
            f"{name}_r is {real.dtype} {tuple(real.shape)} and {name}_i {imaginary.dtype} {tuple(imaginary.shape)}; "
            "both should be floating tensors of one shape"
        )
    if real.dtype not in (torch.float32, torch.float64):
        real, imaginary = real.float(), imaginary.float()
    return torch.complex(real, imaginary)


def split(z: Tensor) -> Parts:
    """Return a complex tensor as real and imaginary part."""
    return z.real, z.imag


class ComplexLinear(layers.ComplexLinear):
    """out_r = w_r x_r − w_i x_i, out_i = w_r x_i + w_i x_r.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: add a complex bias.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__(in_features, out_features, bias=bias)

    # mypy: the document hands both parts apart.
    def forward(self, x_r: Tensor, x_i: Tensor) -> Parts:  # type: ignore[override]
        return split(super().forward(join(x_r, x_i)))


class ComplexLayerNorm(nn.Module):
    """Normalisation over the features of each head, by default the one that keeps phases (`norm="rms"`).

    Args:
        feature_dim: width of the last axis.
        eps: added to the mean square.
        norm: rms; layer is the document's, which centres magnitudes and so turns about half of the features by π.
    """

    def __init__(self, feature_dim: int, eps: float = 1e-5, norm: Literal["rms", "layer", "whiten"] = "rms") -> None:
        super().__init__()
        self.norm = norms.COMPLEX_NORMS[norm](feature_dim, eps)

    def forward(self, x_r: Tensor, x_i: Tensor) -> Parts:
        return split(self.norm(join(x_r, x_i)))


class ComplexSwiGLU(ffn.ComplexSwiGLU):
    """W₂(u ⊙ m·σ(m + b)), m the magnitude of the gate: it can close, which the document's σ(|z|) cannot.

    Args:
        feature_dim: width of the last axis.
        hidden_dim: hidden width; None = 8/3 · feature_dim rounded up to a multiple of 64.
    """

    def __init__(self, feature_dim: int, hidden_dim: int | None = None) -> None:
        super().__init__(feature_dim, d_ff=hidden_dim)

    # mypy: the document hands both parts apart.
    def forward(self, x_r: Tensor, x_i: Tensor) -> Parts:  # type: ignore[override]
        return split(super().forward(join(x_r, x_i)))


class _Reading:
    """How `[b, head, seq, feature]` becomes [B, T, feature_dim], and back."""

    def __init__(self, feature_dim: int, num_heads: int, shape: torch.Size, name: str) -> None:
        if feature_dim % num_heads:
            raise InputError(f"num_heads={num_heads} does not divide feature_dim={feature_dim}")
        self.each = feature_dim // num_heads
        fits = len(shape) == 4 and shape[1] == num_heads and shape[3] in (feature_dim, self.each)
        if not fits:
            raise InputError(
                f"{name} has shape {tuple(shape)}, expected [b, {num_heads}, seq, {feature_dim}] (every head a stream) "
                f"or [b, {num_heads}, seq, {self.each}] (heads that make a vector of {feature_dim})"
            )
        self.heads = num_heads
        self.joined = shape[3] == self.each
        # Heads that are streams of their own attend with one head each.
        self.n_heads = num_heads if self.joined else 1

    def fold(self, z: Tensor) -> Tensor:
        """Compute [b, head, seq, feature] -> [B, seq, feature_dim]."""
        return z.transpose(1, 2).flatten(2) if self.joined else z.flatten(0, 1)

    def unfold(self, z: Tensor) -> Tensor:
        """Return the inverse."""
        if self.joined:
            return z.unflatten(-1, (self.heads, self.each)).transpose(1, 2)
        return z.unflatten(0, (-1, self.heads))

    def encode(self, pe: Tensor | None, like: Tensor) -> Tensor | None:
        """Return a position encoding that broadcasts to `like` [b, head, seq, feature], folded."""
        return None if pe is None else self.fold(pe.expand(like.shape))

    def apply(self, module: nn.Module) -> None:
        """Make attentions and norms read that many heads; no parameter depends on it."""
        for part in module.modules():
            if isinstance(part, mixers.ComplexAttention):
                part.n_heads = part.n_kv_heads = self.n_heads
                part.head_dim = part.d_model // self.n_heads
            elif isinstance(part, norms._ComplexNorm):
                part.groups = self.n_heads


class ComplexAttention(nn.Module):
    """Self-attention, or with a context cross-attention, on parts `[b, head, seq, feature]`.

    Args:
        feature_dim: see the module.
        num_heads: number of heads.
        score: real (default), magnitude (the document's), phase; see `blockyard.complex.attention`.
        gate: learned (the document's elementwise complex factor), magnitude or none.
        causal: hide the future.
    """

    def __init__(
        self, feature_dim: int, num_heads: int, score: Score = "real", gate: Gate = "learned", causal: bool = False
    ) -> None:
        super().__init__()
        _refuse_split(score)
        self.feature_dim, self.num_heads = feature_dim, num_heads
        self.attn = mixers.ComplexAttention(
            feature_dim, num_heads, score=score, gate=gate, causal=causal, rope="none", qk_norm=False
        )

    def forward(
        self,
        x_r: Tensor,
        x_i: Tensor,
        pe_r: Tensor | None = None,
        pe_i: Tensor | None = None,
        context_r: Tensor | None = None,
        context_i: Tensor | None = None,
        context_pe_r: Tensor | None = None,
        context_pe_i: Tensor | None = None,
    ) -> Parts:
        x = join(x_r, x_i)
        reading = _Reading(self.feature_dim, self.num_heads, x.shape, "x")
        reading.apply(self)
        pe = reading.encode(_join(pe_r, pe_i, "pe"), x)
        context = _join(context_r, context_i, "context")
        if context is None:
            return split(reading.unfold(self.attn(reading.fold(x), pe=pe)[0]))
        context_pe = reading.encode(_join(context_pe_r, context_pe_i, "context_pe"), context)
        out, _ = self.attn(reading.fold(x), pe=pe, context=reading.fold(context), context_pe=context_pe)
        return split(reading.unfold(out))


class TransformerBlock(nn.Module):
    """The document's block: `TransformerBlock(feature_dim=384, num_heads=8)`, called with eight tensors.

    Args:
        feature_dim: see the module.
        num_heads: number of heads.
        use_moe: mixture-of-experts FFNs, routed by magnitudes.
        num_experts: experts of each.
        num_experts_per_token: experts that compute for a position.
        use_kv_cache: allow `use_cache=True`. Every attention is then causal: without a mask, a step's output could not
            equal that of the full pass. Both streams run on one clock.
        score: real (default), magnitude (the document's) or phase.
        gate: learned (the document's), magnitude or none.
        norm: rms (default), layer (the document's) or whiten, per head.
        norm_position: pre, or post as the document's figure reads: x + norm(f(x)).
        order: sequential or interleaved.
        share_weights: one set of weights for both streams.
        cross_gate: a learnt gate on the cross-attention.
        checkpoint: recompute activations in the backward pass.
        dropout: probability of dropping.
    """

    def __init__(
        self,
        feature_dim: int = 384,
        num_heads: int = 8,
        use_moe: bool = False,
        num_experts: int = 8,
        num_experts_per_token: int = 2,
        use_kv_cache: bool = False,
        *,
        score: Score = "real",
        gate: Gate = "learned",
        norm: Literal["rms", "layer", "whiten"] = "rms",
        norm_position: Literal["pre", "post"] = "pre",
        order: Order = "sequential",
        share_weights: bool = False,
        cross_gate: bool = False,
        checkpoint: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _refuse_split(score)
        self.feature_dim, self.num_heads, self.use_kv_cache = feature_dim, num_heads, use_kv_cache
        experts = f"moe[expert=complex_swiglu,n_experts={num_experts},k={num_experts_per_token}]"
        self.block = DualStreamBlock(
            feature_dim,
            num_heads,
            attn=f"complex[score={score},gate={gate},rope=none,qk_norm=false]",
            ffn=experts if use_moe else "complex_swiglu",
            causal=use_kv_cache,
            norm=norm,
            norm_position=norm_position,
            order=order,
            share_weights=share_weights,
            cross_gate=cross_gate,
            checkpoint=checkpoint,
            dropout=dropout,
        )
        self._cache: ModelCache | None = None

    def forward(
        self,
        x_in_r: Tensor,
        x_in_i: Tensor,
        x_out_r: Tensor,
        x_out_i: Tensor,
        pe_in_r: Tensor | None = None,
        pe_in_i: Tensor | None = None,
        pe_out_r: Tensor | None = None,
        pe_out_i: Tensor | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Process both streams.

        Args:
            x_in_r, x_in_i: [b, head, seq_in, feature].
            x_out_r, x_out_i: [b, head, seq_out, feature].
            pe_in_r, pe_in_i: position encodings that broadcast to x_in, added to queries and keys; None = none.
            pe_out_r, pe_out_i: the same for x_out.
            use_cache: x_in and x_out are the new steps of both streams; the module keeps the past ones. Such a call
                is inference and gives no gradients.

        Returns: (x_in_r, x_in_i, x_out_r, x_out_i).

        Raises:
            InputError: for shapes of neither reading, or `use_cache` without `use_kv_cache`.
        """
        x_in, x_out = join(x_in_r, x_in_i, "x_in"), join(x_out_r, x_out_i, "x_out")
        reading = _Reading(self.feature_dim, self.num_heads, x_in.shape, "x_in")
        if _Reading(self.feature_dim, self.num_heads, x_out.shape, "x_out").joined != reading.joined:
            raise InputError(f"x_in is {tuple(x_in.shape)} and x_out {tuple(x_out.shape)}: give both in one reading")
        reading.apply(self)
        folded = reading.fold(x_in), reading.fold(x_out)
        encodings = {
            "pe_in": reading.encode(_join(pe_in_r, pe_in_i, "pe_in"), x_in),
            "pe_out": reading.encode(_join(pe_out_r, pe_out_i, "pe_out"), x_out),
        }
        if use_cache:
            with torch.no_grad():
                out_in, out_out, _ = self.block(*folded, **encodings, cache=self._cache_for(folded[0].shape[0]))
        else:
            out_in, out_out, _ = self.block(*folded, **encodings)
        return *split(reading.unfold(out_in)), *split(reading.unfold(out_out))

    def _cache_for(self, batch: int) -> ModelCache:
        if not self.use_kv_cache:
            raise InputError("use_cache=True needs a block built with use_kv_cache=True")
        if self._cache is None:
            self._cache = self.block.new_cache(batch)
        elif self._cache.batch != batch:
            raise InputError(
                f"the cache holds {self._cache.batch} sequences, the input {batch}; clear_cache() starts again"
            )
        return self._cache

    def clear_cache(self) -> None:
        """Forget all past steps."""
        self._cache = None


def _join(real: Tensor | None, imaginary: Tensor | None, name: str) -> Tensor | None:
    if real is None or imaginary is None:
        if real is not imaginary:
            raise InputError(f"{name}_r and {name}_i belong together; give both or none")
        return None
    return join(real, imaginary, name)


def _refuse_split(score: str) -> None:
    if score == "split":
        # Its learnt share has one number per head, and the number of heads depends on how the input is read.
        raise InputError("score='split' is not available here; use blockyard.complex.attention.ComplexAttention")
