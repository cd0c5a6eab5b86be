"""Standard attention: every position looks at the others and takes a weighted mean of their values.

Vaswani et al. 2017 (arXiv 1706.03762), with today's parts: rotary positions, grouped key heads (arXiv 2305.13245),
QK-norm (arXiv 2010.04245), a sliding window (arXiv 2004.05150) and attention sinks beside it (arXiv 2309.17453).

Definition in loops and float64: tests/standard/twin.py.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn import attention_flex, turned_heads
from blockyard.nn.attention import attend
from blockyard.nn.attention_kernels import HALF, Kernel
from blockyard.nn.attention_windows import windowed_pairs
from blockyard.nn.dropout import Dropout
from blockyard.nn.fused import add_linear, norm_linear
from blockyard.nn.linear import Linear, hooked, plain
from blockyard.nn.norms import RMSNorm, rms_norm
from blockyard.nn.products import linear
from blockyard.nn.rotary import rotate
from blockyard.nn.rotary_scaling import given
from blockyard.nn.segments import Segments
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_sinks import SinkCache
from blockyard.protocol.cache_window import WindowCache
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Call, Mixer, Placement, check_heads, default_positions
from blockyard.protocol.windows import check_window, over_all, sinks_beside, visible
from blockyard.registry.register import ATTENTION, register_attn
from blockyard.standard.heads import by_head, gains_of, normed_apart, normed_whole, rope_of
from blockyard.standard.heads import side_by_side as side_by_side
from blockyard.standard.step import step_for

# From this many rows on, one product with the stacked q, k, v weights pays for stacking them.
_STACK_FROM = 64
# Heads up to this width keep keys and values lengthwise in the cache: a step then reads rows over all tokens. Against
# tokens kept whole, 1.0 to 1.3 times as fast for heads of 8, 0.9 to 1.1 for heads of 16 (12 of them behind 4096
# tokens), no faster for wider ones, where a prompt would pay 5 per cent for laying it out (AMD EPYC Zen 4, one thread).
LENGTHWISE_UP_TO = 16


@register_attn("standard", group="attn", traits=ATTENTION)
class StandardAttention(Mixer):
    """Multi-head attention (MHA); with `n_kv_heads` grouped (GQA) or single (MQA) key-value heads.

    Args:
        d_model: width of the residual stream.
        n_heads: number of query heads.
        n_kv_heads: number of key-value heads, dividing n_heads; None = n_heads.
        head_dim: width of queries and keys per head; None = d_model / n_heads.
        v_dim: width of values per head; None = head_dim.
        causal: hide the future; the forward argument overrides it.
        rope: pairing of the rotary embedding: half (Llama's), interleaved (the basics document's), or none.
        rope_theta: base of the rotary wavelengths.
        rope_dim: numbers of each head that are rotated, its first ones, even; None = all.
        rope_scaling: of the rotary frequencies for longer texts (`llama3[factor=8,original=8192]`), see
            `nn/rotary_scaling.py`.
        rope_frequencies: radians per position of each rotated pair, in place of those of base and scaling; or of the
            pairs of each key head in turn, whose queries turn with it.
        qk_norm: RMS-normalise queries and keys, with a gain, before they are rotated: per head, or over all heads of a
            token at once (whole, OLMo 2's).
        norm_eps: added to the mean square there.
        window: see only keys less than this many positions away; None = all.
        sinks: beside the window, see the first so many tokens of the sequence from everywhere (the first kept ones of a
            padded row).
        bias: biases in the four projections, or in the three that make queries, keys and values (qkv, Qwen2's).
        dropout: probability of dropping an attention weight in training.
        kernel: auto, matmul, sdpa or flex (FlexAttention, for windows and documents in a row); auto decides by length
            and device.

    Shapes: x [B, T, d_model] -> [B, T, d_model]; weights [B, n_heads, T, S].
    Raises: InputError when heads do not divide, head_dim is odd with rope, rope_dim is odd or above it, or a width or
        window is below 1.
    """

    # Whether the projections' weights are all that stands between x and the heads, so that steps may read them alone.
    short_steps = True

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        head_dim: int | None = None,
        v_dim: int | None = None,
        causal: bool = False,
        rope: Literal["half", "interleaved", "none"] = "half",
        rope_theta: float = 10_000.0,
        rope_dim: int | None = None,
        rope_scaling: str | None = None,
        rope_frequencies: tuple[float, ...] | None = None,
        qk_norm: bool | Literal["whole"] = True,
        norm_eps: float = 1e-5,
        window: int | None = None,
        sinks: int = 0,
        bias: bool | Literal["qkv"] = False,
        dropout: float = 0.0,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal
        for name, width in (("head_dim", head_dim), ("v_dim", v_dim)):
            if width is not None and width < 1:
                raise InputError(f"{name}={width} should be at least 1, or none")
        if n_heads < 1:
            raise InputError(f"n_heads={n_heads} should be at least 1")
        self.head_dim = check_heads(d_model, n_heads) if head_dim is None else head_dim
        self.v_dim = self.head_dim if v_dim is None else v_dim
        self.n_kv_heads = n_kv_heads if n_kv_heads is not None else n_heads
        if self.n_kv_heads < 1 or n_heads % self.n_kv_heads:
            raise InputError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")
        check_window(window, sinks)
        self.window, self.sinks, self.kernel = window, sinks, kernel
        heads, key_heads = n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.q_proj = Linear(d_model, heads, bias=bool(bias))
        self.k_proj = Linear(d_model, key_heads, bias=bool(bias))
        self.v_proj = Linear(d_model, self.n_kv_heads * self.v_dim, bias=bool(bias))
        self.output_proj = Linear(n_heads * self.v_dim, d_model, bias=bias is True)
        # Scores are then bounded by √head_dim times the gains, so softmax does not saturate early (arXiv 2010.04245).
        whole = qk_norm == "whole"
        self.q_norm: nn.Module | None = RMSNorm(heads if whole else self.head_dim, norm_eps) if qk_norm else None
        self.k_norm: nn.Module | None = RMSNorm(key_heads if whole else self.head_dim, norm_eps) if qk_norm else None
        self.norms_whole = whole
        width, self.rope_heads = self.head_dim if rope_dim is None else rope_dim, 1
        if rope_frequencies is not None:
            if rope == "none":
                raise InputError("rope_frequencies with rope='none': nothing is rotated; leave them out")
            rope_scaling = given(rope_frequencies)
            # Heads of their own frequencies have their angles side by side in one table.
            self.rope_heads = self.n_kv_heads if 2 * len(rope_frequencies) == self.n_kv_heads * width else 1
        self.rope = rope_of(rope, rope_theta, self.head_dim, rope_dim, rope_scaling, self.rope_heads)
        if self.rope_heads > 1:
            self.short_steps = False
        self.attn_dropout = Dropout(dropout)

    def widen_context(self, key_width: int, value_width: int) -> None:
        """Read keys from a context of one width and values from one of another: two new projections.

        Such an attention has no self-attention, unless key_width is d_model.
        """
        for name, width in (("k_proj", key_width), ("v_proj", value_width)):
            if width < 1:
                raise InputError(f"{name} cannot read vectors of width {width}; it should be at least 1")
            # The same number of heads of the same width, read from other vectors.
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
        documents: Segments | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix as `Mixer.forward` says; values may come from another sequence than keys.

        Args:
            values: [B, S, d_model] (or the width that `widen_context` set), read for values in place of x or the
                context, position by position.
            documents: that stand side by side in the rows of x, each mixed as it would be alone.
        """
        call = Call(padding_mask, attn_mask, causal, positions, context, cache, return_weights, values, documents)
        # Nine of ten calls while text is written: one token behind thin heads, which takes as few operations as can be.
        if cache is not None and (step := step_for(self, x, call)) is not None:
            return self._output(step(x, cache)), None
        self.check_call(x, call)
        return self.mix(x, call)

    def mix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        q, k, v = self._heads(x, call)
        mixed, weights = self._attend(q, k, v, call)
        return self._output(side_by_side(mixed).to(x.dtype)), weights

    def add_to(
        self,
        x: Tensor,
        norm: nn.Module,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        documents: Segments | None = None,
    ) -> Tensor:
        """Compute x + self(norm(x)), with norm and addition inside the products where nothing stands between.

        Heads much thinner than the residual stream spend their time in passes over the stream, and this saves two.

        Args:
            x: the residual stream [B, T, d_model].
            norm: of what the attention reads of it.
            padding_mask: this and the others as in `forward`.
        """
        call = Call(padding_mask, attn_mask, None, positions, cache=cache, documents=documents)
        if not self._adds_inside():
            given: dict[str, Any] = {
                "padding_mask": padding_mask,
                "attn_mask": attn_mask,
                "positions": positions,
                "cache": cache,
                "documents": documents,
            }
            return x + self(norm(x), **{name: value for name, value in given.items() if value is not None})[0]
        if cache is not None and (step := step_for(self, x, call)) is not None:
            return add_linear(x, step(norm(x), cache), self.output_proj.weight)
        self.check_call(x, call)
        if _stacks(x):
            x, stacked = norm_linear(x, norm, torch.cat([p.weight for p in self._projections()]))
            q, k, v = self._turned(*self._split(stacked), call)
        else:
            q, k, v = self._heads(norm(x), call)
        mixed, _ = self._attend(q, k, v, call)
        return add_linear(x, side_by_side(mixed).to(x.dtype), self.output_proj.weight)

    def takes_documents(self, x: Tensor) -> bool:
        """Return whether documents in the rows of x are best mixed where they stand (`Segments.apart` asks)."""
        # Where the length of a row turns its tokens, documents of several lengths would each want their own.
        by_length = self.rope is not None and not self.rope.steps
        if by_length or not self.causal or not self._own_forward() or (self.training and self.attn_dropout.p > 0):
            return False
        return attention_flex.chosen(self.kernel, x, x.shape[1], self.head_dim, self.v_dim)

    def _own_forward(self) -> bool:
        return type(self).forward is StandardAttention.forward and "forward" not in vars(self)

    def _adds_inside(self) -> bool:
        """Return whether the weights alone say what a call gives: nobody listens, and no subclass has a forward of its
        own."""
        return self._own_forward() and not hooked(self) and plain(self.output_proj, *self._projections())

    def check_call(self, x: Tensor, call: Call) -> None:
        super().check_call(x, call)
        if call.values is not None or self.context_width is not None:
            self._check_values(call.values, x, call.context)
        if call.documents is not None:
            if call.cache is not None or call.context is not None or call.positions is not None:
                raise InputError("documents go without cache, context and positions: each is read alone, from 0")
            if call.documents.shape != x.shape[:2]:
                raise InputError(f"documents has shape {tuple(call.documents.shape)}, x has {tuple(x.shape)}")
            call.positions = call.documents.positions

    def _check_values(self, values: Tensor | None, x: Tensor, context: Tensor | None) -> None:
        """Refuse sequences that the projections cannot read, or that do not run along the keys."""
        keys = x if context is None else context
        for name, source, projection in (("keys", keys, self.k_proj), ("values", values, self.v_proj)):
            source, width = keys if source is None else source, self._reads(projection)
            if source.shape != (*keys.shape[:2], width):
                raise InputError(f"{name} come from {tuple(source.shape)}, expected {(*keys.shape[:2], width)}")

    def _reads(self, projection: Linear) -> int:
        """Return the width of the vectors that a projection is given."""
        return projection.weight.shape[1]

    def _projections(self) -> tuple[Linear, Linear, Linear]:
        return self.q_proj, self.k_proj, self.v_proj

    def _heads(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, T, head_dim], keys [B, H_kv, S, head_dim] and values [B, H_kv, S, v_dim] of the new
        tokens."""
        if call.context is not None:
            return self._normed(*self._projected_apart(x, call))
        return self._turned(*self._projected(x, call), call)

    def _projected(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Return queries and keys of one sequence in one tensor [B, T, H + H_kv, ...], and values [B, T, H_kv, ...]."""
        projections = self._projections()
        if call.values is None and _stacks(x) and plain(*projections):
            return self._split(linear(x, torch.cat([p.weight for p in projections])))
        # Called, not multiplied by their weights: an adapter, a hook or a bias belongs to the call.
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x if call.values is None else call.values)
        qk = torch.cat([q, k], dim=-1).unflatten(-1, (self.n_heads + self.n_kv_heads, -1))
        return qk, v.unflatten(-1, (self.n_kv_heads, -1))

    def _projected_apart(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries of x, keys of the context, and values of it or of their own sequence; heads in front."""
        values = call.context if call.values is None else call.values
        parts = (self.q_proj(x), self.k_proj(call.context), self.v_proj(values))
        counts = (self.n_heads, self.n_kv_heads, self.n_kv_heads)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part, heads in zip(parts, counts))
        return q, k, v

    def _normed(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise alone: two sequences share no positions, so nothing is turned."""
        if self.norms_whole:
            # Heads side by side again: one mean square for all of a token's.
            q = normed_whole(q.transpose(1, 2), self.q_norm).transpose(1, 2)
            k = normed_whole(k.transpose(1, 2), self.k_norm).transpose(1, 2)
        elif self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def _split(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """Return stacked projections [B, T, ...] -> queries and keys [B, T, H + H_kv, ...], values [B, T, H_kv,
        ...]."""
        q, k, v = (p.weight.shape[0] for p in self._projections())
        qk, values = stacked.split([q + k, v], dim=-1)
        return qk.unflatten(-1, (self.n_heads + self.n_kv_heads, -1)), values.unflatten(-1, (self.n_kv_heads, -1))

    def _turned(self, qk: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries and keys [B, T, H + H_kv, head_dim], normalised and turned by their positions; heads in
        front."""
        norms, tables = (self.q_norm, self.k_norm), self._tables(qk, call)
        gain = None if self.norms_whole else gains_of(*norms, self.n_heads, self.n_kv_heads)
        if gain is not None and tables is not None and turned_heads.suits(qk, *tables, self.rope):
            qk = turned_heads.norm_and_turn(qk, gain[0], *tables, gain[1])
        elif gain is not None:
            # Both in one call: half as many passes as one after the other.
            qk = self._rotated(rms_norm(qk, *gain), tables)
        else:
            qk = self._rotated(normed_apart(qk, *norms, self.n_heads, self.norms_whole), tables)
        q, k = qk.split_with_sizes((self.n_heads, self.n_kv_heads), 2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def _tables(self, qk: Tensor, call: Call) -> tuple[Tensor, Tensor] | None:
        """Return cos and sin of the new tokens' positions, to broadcast over the heads; None without rotation."""
        if self.rope is None:
            return None
        length, positions = qk.shape[1], call.positions
        if positions is None and call.padding_mask is not None:
            positions = default_positions(call.padding_mask, length)
        cos, sin = (
            t.unsqueeze(-2) if self.rope_heads == 1 else by_head(t, self.n_heads, self.n_kv_heads)
            for t in self.rope.tables(length, qk, positions, offset=call.past)
        )
        return cos, sin

    def _rotated(self, qk: Tensor, tables: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.rope is None or tables is None:
            return qk
        # Scores then depend on distances alone: q_m · k_n turned by θ(m − n) (RoFormer, arXiv 2104.09864, eq. 16).
        width, layout = self.rope.d_k // self.rope_heads, self.rope.layout
        turned = rotate(qk if width == self.head_dim else qk[..., :width], *tables, layout)
        # What is not rotated stays as it is, such as the last number of an odd width (a vein's).
        return turned if width == self.head_dim else torch.cat([turned, qk[..., width:]], dim=-1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return the attention of the new tokens to the cache and themselves: [B, H, T, v_dim], and weights if asked
        for."""
        padding_mask, attn_mask, hidden, beside = call.padding_mask, call.attn_mask, 0, None
        if call.cache is not None:
            # Keys are kept as the cache keeps them, and queries meet them in that type.
            dtype = call.cache.dtype
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
            keeps_first = isinstance(call.cache, SinkCache)
            shown = call.cache.append(k=k, v=v, **({"padding_mask": padding_mask} if keeps_first else {}))
            # A prompt meets itself as it was made: SDPA would bring what lies lengthwise back into tokens.
            if call.past or not call.cache.lengthwise:
                k, v = shown
            # A windowed cache shows no more than the new tokens can see; the caller's masks cover all tokens.
            hidden = call.past + q.shape[2] - k.shape[2]
            if keeps_first:
                beside = sinks_beside(call.cache, hidden, lambda first: (first["k"], first["v"]))
            if hidden or beside is not None:
                shape = (*q.shape[:3], hidden + k.shape[2])
                padding_mask, attn_mask = visible(hidden, padding_mask, attn_mask, shape, beside)
        mixed, weights = attend(
            q,
            k,
            v,
            causal=bool(call.causal),
            padding_mask=padding_mask,
            attn_mask=attn_mask,
            # A context is not a neighbourhood: its positions have no distance from x.
            window=self.window if call.context is None else None,
            # A cache has kept the first tokens, and shows them where a window has left them.
            sinks=self.sinks if call.cache is None else 0,
            beside=beside,
            documents=None if call.documents is None else call.documents.positions,
            kernel=self.kernel,
            dropout=self.attn_dropout.p if self.training else 0.0,
            dropout_keys=self.attn_dropout.keys,
            return_weights=call.return_weights,
        )
        if weights is None or not (hidden or beside is not None):
            return mixed, weights
        return mixed, over_all(weights, hidden, beside)

    def _output(self, mixed: Tensor) -> Tensor:
        """Return mixed values, heads side by side [B, T, H · v_dim] -> [B, T, d_model]."""
        return self.output_proj(mixed)

    def empty_cache(self, batch: int, max_len: int | None, placement: Placement) -> LayerCache:
        slots = {"k": (self.n_kv_heads, self.head_dim), "v": (self.n_kv_heads, self.v_dim)}
        if self.window is not None and self.sinks:
            return SinkCache(batch, slots, window=self.window, sinks=self.sinks, max_len=max_len, **placement)
        if self.window is not None:
            return WindowCache(batch, slots, window=self.window, max_len=max_len, **placement)
        # Half precision reads tokens whole (`nn.attention`), as an accelerator's kernels do: measured is a CPU alone.
        thin = max(self.head_dim, self.v_dim) <= LENGTHWISE_UP_TO
        lengthwise = thin and placement["dtype"] not in HALF and placement["device"].type == "cpu"
        return LayerCache(batch, slots, max_len=max_len, **placement, lengthwise=lengthwise)

    def cost(self, tokens: int) -> Cost:
        shapes = [(p.weight.shape[1], p.weight.shape[0]) for p in (*self._projections(), self.output_proj)]
        projections = (*self._projections(), self.output_proj)
        biases = sum(p.weight.shape[0] for p in projections if p.bias is not None)
        gains = sum(norm.weight.numel() for norm in (self.q_norm, self.k_norm) if isinstance(norm, RMSNorm))
        return Cost(
            parameters=sum(a * b for a, b in shapes) + biases + gains,
            flops=linear_flops(tokens, *shapes) + self.score_flops(tokens),
            cache_bytes_per_token=self.n_kv_heads * (self.head_dim + self.v_dim) * 4,
            pair_flops=self.score_flops(tokens) if self.window is None else 0,
        )

    def score_flops(self, tokens: int) -> int:
        """Return FLOPs of scores and weighted means over one sequence."""
        return 2 * self.n_heads * (self.head_dim + self.v_dim) * self._pairs(tokens)

    def _pairs(self, tokens: int) -> int:
        """Return query-key pairs that are scored."""
        # A dense count, as the counter has it: causality earns no credit.
        if self.window is None or self.kernel == "flex":
            return tokens * tokens
        return windowed_pairs(tokens, self.window, self.causal, self.sinks)

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        widths = f"head_dim={self.head_dim}" + (f", v_dim={self.v_dim}" if self.v_dim != self.head_dim else "")
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, {widths}, causal={self.causal}"


def _stacks(x: Tensor) -> bool:
    """Return whether x [B, T, d] has enough rows for one product with stacked weights; a graph that is exported is of
    all shapes, and has the three."""
    return not torch.compiler.is_exporting() and x.shape[0] * x.shape[1] >= _STACK_FROM
