"""The dual-stream block: two sequences, each attending to itself, and the first to the second.

The complex-block document's block: x_in with self-attention, cross-attention to x_out and FFN; x_out with
self-attention and FFN; a residual around each. With it its list of variants: the order of the two streams, shared
weights, a gate on the cross-attention, mixture-of-experts FFNs, gradient checkpointing. The streams may differ in
length: a received signal and its pilot, say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blockyard.complex.linear import magnitude
from blockyard.complex.norms import make_complex_norm
from blockyard.errors import InputError
from blockyard.nn.derivatives import transformed
from blockyard.nn.norms import make_norm
from blockyard.nn.roles import Role
from blockyard.protocol.block import Aux, BlockNorm, common_domain, construct, fed_arguments, feed
from blockyard.protocol.cache import ModelCache
from blockyard.protocol.costs import Cost
from blockyard.registry.pattern import LayerSpec, parse_choice
from blockyard.registry.register import accepted_arguments, implementation

Order = Literal["sequential", "interleaved"]


class DualStreamBlock(nn.Module):
    """x_in attends to itself and to x_out, x_out to itself; an FFN on each.

    Args:
        d_model: width of both streams (in complex numbers for a complex mixer).
        n_heads: number of heads.
        attn: the mixer of all three attentions, with options in brackets: `complex[score=phase]`, `standard`.
        ffn: the FFN of both streams, likewise: `complex_swiglu`, `moe[expert=complex_swiglu,n_experts=8,k=2]`.
        order: sequential processes x_in first, whose cross-attention reads x_out as it came; interleaved alternates:
            both self-attentions, then the cross-attention to the updated x_out, then both FFNs.
        share_weights: one self-attention, FFN and pair of norms for both streams.
        cross_gate: multiply what the cross-attention adds by σ(w · |x| + b), learnt, one number per position.
        causal: every attention hides the future; the cross-attention, too, so both streams run on one clock.
        norm: rms, layer, or for complex mixers whiten.
        norm_position: pre, x + f(norm(x)); or post as in the document's figure, x + norm(f(x)).
        norm_groups: normalise so many equal parts of d_model each by itself, such as the heads (complex only).
        rope_theta: base of the rotary wavelengths.
        dropout: probability of dropping, in mixers and FFNs.
        checkpoint: recompute every sublayer in the backward pass instead of keeping its activations.

    Shapes: x_in [B, T, d_model], x_out [B, S, d_model] -> (x_in, x_out, aux | None).
    Raises: InputError for a mixer that cannot attend to a context, or members of which some are complex.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        attn: str = "complex",
        ffn: str = "complex_swiglu",
        order: Order = "sequential",
        share_weights: bool = False,
        cross_gate: bool = False,
        causal: bool = False,
        norm: BlockNorm = "rms",
        norm_position: Literal["pre", "post"] = "pre",
        norm_groups: int = 1,
        rope_theta: float = 10_000.0,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if order not in ("sequential", "interleaved"):
            raise InputError(f"order={order!r} should be sequential or interleaved")
        if norm_position not in ("pre", "post"):
            raise InputError(f"norm_position={norm_position!r} should be pre or post")
        spec = _one_layer(attn, ffn)
        if not implementation("attn", spec.attn).traits.cross:
            raise InputError(f"attention {spec.attn!r} cannot attend to a context, so it cannot join two streams")
        self.d_model, self.order, self.causal, self.checkpoint = d_model, order, causal, checkpoint
        self.share_weights, self.pre = share_weights, norm_position == "pre"
        from_model = {
            "d_model": d_model,
            "n_heads": n_heads,
            "causal": causal,
            "rope_theta": rope_theta,
            "dropout": dropout,
        }

        def mixer() -> Any:
            return construct(implementation("attn", spec.attn), from_model, spec.attn_options)

        def feed() -> Any:
            return construct(implementation("ffn", spec.ffn), from_model, spec.ffn_options)

        self.cross = mixer()
        if causal and not getattr(self.cross, "causal_cross", False):
            raise InputError(f"causal=True: attention {spec.attn!r} has no causal cross-attention; complex has it")
        streams = [(mixer(), feed()) for _ in range(1 if share_weights else 2)]
        self.complex_valued = common_domain(self.cross, *streams[0])

        def norm_of() -> nn.Module:
            if self.complex_valued:
                return make_complex_norm(norm, d_model, groups=norm_groups)
            if norm_groups != 1:
                raise InputError(f"norm_groups={norm_groups}: only complex norms have groups")
            return make_norm(norm, d_model)

        # With shared weights there is one stream module, so that no parameter has two names.
        self.streams: Any = nn.ModuleList(_Stream(*members, norm_of(), norm_of(), self.pre) for members in streams)
        self.norm_cross = norm_of()
        # Pre-norm normalises what is read, too.
        self.norm_context = norm_of() if self.pre else nn.Identity()
        self.gate = _CrossGate(d_model, self.complex_valued) if cross_gate else None

    def forward(
        self,
        x_in: Tensor,
        x_out: Tensor,
        *,
        padding_mask_in: Tensor | None = None,
        padding_mask_out: Tensor | None = None,
        pe_in: Tensor | None = None,
        pe_out: Tensor | None = None,
        cache: ModelCache | None = None,
    ) -> tuple[Tensor, Tensor, Aux | None]:
        """Process both streams.

        Args:
            x_in: [B, T, d_model].
            x_out: [B, S, d_model]; S = T when causal.
            padding_mask_in: [B, T], nonzero = keep; with a cache [B, past + T].
            padding_mask_out: the same for x_out.
            pe_in: complex [..., T, d_model], added to queries and keys of x_in (complex mixers only); breaks the phase
                symmetry.
            pe_out: the same for x_out.
            cache: from `new_cache`; x_in and x_out are then the new steps of both streams.
        """
        caches: Any = [None] * 3 if cache is None else cache.layers
        mine, other = self.streams[0], self.streams[-1]

        def self_in(x: Tensor) -> Tensor:
            return mine.attend(x, padding_mask_in, pe_in, caches[0])

        def self_out(x: Tensor) -> Tensor:
            return other.attend(x, padding_mask_out, pe_out, caches[1])

        def across(x: Tensor, context: Tensor) -> Tensor:
            return self._cross(x, context, padding_mask_out, pe_in, pe_out, caches[2])

        def feed_in(x: Tensor) -> tuple[Tensor, Aux | None]:
            return mine.feed(x, padding_mask_in, caches[0])

        def feed_out(x: Tensor) -> tuple[Tensor, Aux | None]:
            return other.feed(x, padding_mask_out, caches[1])

        run = self._run if cache is None else _call
        if self.order == "sequential":
            # The first stream is done before the second begins, so it reads that as it came.
            x_in, aux_in = run(feed_in, run(across, run(self_in, x_in), x_out))
            x_out, aux_out = run(feed_out, run(self_out, x_out))
        else:
            # Both have read themselves before one reads the other.
            x_in, x_out = run(self_in, x_in), run(self_out, x_out)
            x_in, aux_in = run(feed_in, run(across, x_in, x_out))
            x_out, aux_out = run(feed_out, x_out)
        return x_in, x_out, _merge(aux_in, aux_out)

    def _run(self, sublayer: Callable[..., Any], *inputs: Tensor) -> Any:
        # Transforms of torch.func cannot recompute.
        if self.checkpoint and torch.is_grad_enabled() and not transformed():
            return checkpoint(sublayer, *inputs, use_reentrant=False, preserve_rng_state=True)
        return sublayer(*inputs)

    def _cross(
        self,
        x: Tensor,
        context: Tensor,
        padding_mask: Tensor | None,
        pe_in: Tensor | None,
        pe_out: Tensor | None,
        cache: Any,
    ) -> Tensor:
        read = self.norm_cross(x) if self.pre else x
        given = {"padding_mask": padding_mask, "pe": pe_in, "context_pe": pe_out, "cache": cache}
        change = _mix(self.cross, read, context=self.norm_context(context), causal=self.causal, **given)
        if not self.pre:
            change = self.norm_cross(change)
        return x + (change if self.gate is None else self.gate(read) * change)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ModelCache:
        """Return three empty caches, owned by the caller: self-attention of x_in and of x_out, and x_out as x_in reads
        it.

        Raises:
            InputError: when the block is not causal: no position could be final before the last one is known.
        """
        if not self.causal:
            raise InputError("a cache needs causal attention: build the block with causal=True")
        # The third holds the context: what x_out looked like to x_in.
        mixers = (self.streams[0].attn, self.streams[-1].attn, self.cross)
        return ModelCache([mixer.new_cache(batch, max_len, dtype, device) for mixer in mixers])

    def cost(self, tokens: int) -> Cost:
        """Return the cost of both streams with `tokens` positions each."""
        # Counted once each: shared streams would be added up twice.
        parameters = sum(p.numel() for p in self.parameters())
        streams = [self.streams[0], self.streams[-1]]
        parts = [self.cross.cost(tokens), *(m.cost(tokens) for s in streams for m in (s.attn, s.ffn))]
        total = sum(parts, Cost())
        return Cost(parameters, total.flops, total.cache_bytes_per_token, total.pair_flops)

    def zero_init_output(self) -> None:
        """Make the block the identity (with pre-norm, or a norm without bias)."""
        for member in [self.cross, *(m for stream in self.streams for m in (stream.attn, stream.ffn))]:
            if hasattr(member, "zero_init_output"):
                member.zero_init_output()

    def extra_repr(self) -> str:
        return f"order={self.order}, share_weights={self.share_weights}, causal={self.causal}, pre={self.pre}"


class _Stream(nn.Module):
    """Self-attention and FFN of one stream, with their norms and residuals."""

    def __init__(self, attn: nn.Module, ffn: nn.Module, norm_attn: nn.Module, norm_ffn: nn.Module, pre: bool) -> None:
        super().__init__()
        # Any: foreign members have no declared interface beyond being called.
        self.attn: Any = attn
        self.ffn: Any = ffn
        self.norm_attn, self.norm_ffn, self.pre = norm_attn, norm_ffn, pre
        self._feeds = fed_arguments(ffn)

    def attend(self, x: Tensor, padding_mask: Tensor | None, pe: Tensor | None, cache: Any) -> Tensor:
        if self.pre:
            return x + _mix(self.attn, self.norm_attn(x), padding_mask=padding_mask, pe=pe, cache=cache)
        return x + self.norm_attn(_mix(self.attn, x, padding_mask=padding_mask, pe=pe, cache=cache))

    def feed(self, x: Tensor, padding_mask: Tensor | None, cache: Any) -> tuple[Tensor, Aux | None]:
        read = self.norm_ffn(x) if self.pre else x
        given = {"padding_mask": padding_mask, "cache": cache}
        change, aux = feed(self.ffn, read, {name: value for name, value in given.items() if name in self._feeds})
        return x + (change if self.pre else self.norm_ffn(change)), aux


class _CrossGate(nn.Module):
    """σ(w · |x| + b) for complex x, σ(w · x + b) for real x: how much of the other stream a position takes in."""

    def __init__(self, d_model: int, complex_valued: bool) -> None:
        super().__init__()
        self.complex_valued = complex_valued
        # Half open at the start, the same at every position.
        self.weight = nn.Parameter(torch.zeros(d_model))
        self.bias = nn.Parameter(torch.zeros(1))

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("vector"), "bias": Role("vector")}

    def forward(self, x: Tensor) -> Tensor:
        features = magnitude(x, 1e-6) if self.complex_valued else x
        return torch.sigmoid((features * self.weight).sum(-1, keepdim=True) + self.bias)


def _one_layer(attn: str, ffn: str) -> LayerSpec:
    layers = parse_choice(f"{attn}+{ffn}")
    if len(layers) != 1:
        raise InputError(f"attn={attn!r} and ffn={ffn!r} should each name one implementation")
    return layers[0]


def _call(function: Callable[..., Any], *inputs: Tensor) -> Any:
    return function(*inputs)


def _mix(mixer: Any, x: Tensor, **given: Any) -> Tensor:
    """Return the mixer's output, given what is not None."""
    arguments = {name: value for name, value in given.items() if value is not None}
    unknown = arguments.keys() - accepted_arguments(mixer.forward)
    if unknown:
        raise InputError(f"{type(mixer).__name__} does not take {', '.join(sorted(unknown))}")
    out = mixer(x, **arguments)
    return out[0] if isinstance(out, tuple) else out


def _merge(first: Aux | None, second: Aux | None) -> Aux | None:
    """Return losses of both FFNs added, statistics under the name of their stream."""
    if first is None and second is None:
        return None
    losses: dict[str, Tensor] = {}
    stats: dict[str, Any] = {}
    for name, aux in (("in", first or {}), ("out", second or {})):
        for loss, value in aux.get("losses", {}).items():
            # Added, not averaged: each FFN has a router of its own to balance, or is asked twice.
            losses[loss] = losses[loss] + value if loss in losses else value
        if aux.get("stats"):
            stats[name] = aux["stats"]
    return {"losses": losses, "stats": stats}
