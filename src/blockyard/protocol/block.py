"""Blocks: a mixer and an FFN around the residual stream, built from a layer specification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.segments import Segments
from blockyard.protocol.costs import Cost, cost_of
from blockyard.protocol.mixer import NORM_EPS, Mixer, make_norm_of
from blockyard.registry.options import check_options, options_of
from blockyard.registry.pattern import LayerSpec
from blockyard.registry.register import (
    MODEL_PARAMETERS,
    Entry,
    accepted_arguments,
    causal_by,
    find_block,
    fold_members,
    implementation,
    owners,
)

Aux = dict[str, Any]
BlockNorm = Literal["rms", "layer", "whiten"]
# Where the norms of a block stand: before each sublayer, after each addition, or on what a sublayer adds (OLMo 2's).
NormPosition = Literal["pre", "post", "branch"]


def fed_arguments(ffn: Any) -> frozenset[str]:
    """Return what an FFN wants to know beside x: one that cares for padding, or for tokens that come in pieces, names
    it."""
    # By name, like mixers: a foreign FFN that knows nothing of padding is not to be handed a mask.
    return accepted_arguments(ffn.with_aux if hasattr(ffn, "with_aux") else ffn.forward)


def feed(ffn: Any, x: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Aux | None]:
    """Return an FFN's output and what else it has to say, given those of its `fed_arguments` that are not None."""
    arguments = {name: value for name, value in given.items() if value is not None}
    if hasattr(ffn, "with_aux"):
        return ffn.with_aux(x, **arguments)
    return ffn(x, **arguments), None


class ResidualBlock(nn.Module):
    """x + attn(ln1(x)), then x + ffn(ln2(x)) (pre-norm), or the norms in other places.

    Pre-norm leaves a path from the embedding to the last norm that nothing normalises, which is what makes deep
    models train stably (arXiv 2002.04745). Post-norm is the 2017 original: ln1(x + attn(x)). On the branch a norm
    stands behind its sublayer, x + ln1(attn(x)), which keeps that path, too (OLMo 2, arXiv 2501.00656). In parallel
    both sublayers read the same x: x + attn(ln1(x)) + ffn(ln2(x)) (GPT-J, GPT-NeoX: arXiv 2204.06745).

    Args:
        attn: a mixer, ours or foreign; a foreign one is passed only the arguments that its `forward` names.
        ffn: an FFN, ours or foreign.
        d_model: width of the residual stream.
        norm: rms or layer, or another that the mixer's `norm` knows (whiten, of a complex one).
        norm_position: pre, post or branch.
        norm_eps: added to the mean square or variance in the norms.
        parallel: let both sublayers read the block's input; only pre-norm.
        causal: whether to hide the future where a foreign mixer has to be told so at every call: its `forward` names
            `causal`, `is_causal` or `attn_mask`, and its constructor none of the first two.

    Shapes: x [B, T, d_model] -> (the same, aux | None).
    Raises: InputError when one of mixer and FFN is complex and the other real, or parallel does not go with the norms.
    """

    def __init__(
        self,
        attn: nn.Module,
        ffn: nn.Module,
        d_model: int,
        *,
        norm: BlockNorm = "rms",
        norm_position: NormPosition = "pre",
        norm_eps: float = NORM_EPS,
        parallel: bool = False,
        causal: bool = True,
    ) -> None:
        super().__init__()
        check_parallel(parallel, norm_position)
        self.d_model, self.causal = d_model, causal
        self.complex_valued = common_domain(attn, ffn)
        self.ln1, self.ln2 = (make_norm_of(attn, norm, d_model, norm_eps) for _ in range(2))
        # Any: a foreign module has no declared interface beyond being called.
        self.attn: Any = attn
        self.ffn: Any = ffn
        self.norm_position, self.parallel = norm_position, parallel
        self._accepts, self._feeds = accepted_arguments(attn.forward), fed_arguments(ffn)
        self._told = told_causality(attn, self._accepts)

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
        segments: Segments | None = None,
    ) -> tuple[Tensor, Aux | None]:
        given = {"padding_mask": padding_mask, "positions": positions, "cache": cache, "segments": segments}
        # Filling between documents is to experts what padding is.
        fed = given if segments is None else {**given, "padding_mask": segments.keep}
        if self.parallel:
            change, aux = self._feed(self.ln2(x), fed)
            return self._with_mixed(x, given) + change, aux
        if self.pre:
            x = self._with_mixed(x, given)
            change, aux = self._feed(self.ln2(x), fed)
            return x + change, aux
        if self.norm_position == "branch":
            x = x + self.ln1(self.mix(x, given))
            change, aux = self._feed(x, fed)
            return x + self.ln2(change), aux
        x = self.ln1(x + self.mix(x, given))
        change, aux = self._feed(x, fed)
        return self.ln2(x + change), aux

    @property
    def pre(self) -> bool:
        """Whether the sublayers read what the norms give."""
        return self.norm_position == "pre"

    def _with_mixed(self, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Compute x + attn(ln1(x)); a mixer of ours with norm and addition inside its products (`add_to`) does it
        itself."""
        add_to = getattr(self.attn, "add_to", None) if isinstance(self.attn, Mixer) else None
        if add_to is None:
            return x + self.mix(self.ln1(x), given)
        segments, rest = _apart(given)
        if segments is not None:
            return segments.apart(lambda rows, **more: add_to(rows, self.ln1, **rest, **more), x, self.attn)
        return add_to(x, self.ln1, **rest)

    def mix(self, x: Tensor, given: Mapping[str, Any]) -> Tensor:
        """Return the mixer's output for x, the future hidden as this block does it.

        Args:
            x: [B, T, d_model], normalised as the mixer wants it.
            given: arguments of `forward`; those that are None are left out. Segments are mixed apart: the mixer, which
                need not know of them, is called with rows that are one document each.

        Raises:
            InputError: for an argument that the mixer does not take.
        """
        segments, arguments = _apart(given)
        if segments is not None:
            return segments.apart(lambda rows, **more: self.mix(rows, {**arguments, **more}), x, self.attn)
        unknown = arguments.keys() - self._accepts
        if unknown:
            raise InputError(f"{type(self.attn).__name__} does not take {', '.join(sorted(unknown))}")
        if self._told == "attn_mask":
            if self.causal:
                arguments["attn_mask"] = future_mask(x, arguments.get("cache"))
        elif self._told:
            # Told at every call, since nothing says that a foreign module remembers the last one.
            arguments[self._told] = self.causal
        # A foreign mixer may return its output alone, as most modules do.
        out = self.attn(x, **arguments)
        return out[0] if isinstance(out, tuple) else out

    def _feed(self, x: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Aux | None]:
        # Only what the FFN names: handing a mask to one that knows none would be an error of ours, not of its author.
        return feed(self.ffn, x, {name: value for name, value in given.items() if name in self._feeds})

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Let the FFN act on what the whole optimizer step counted (a router moves its bias)."""
        if hasattr(self.ffn, "after_step"):
            self.ffn.after_step(stats)

    def cost(self, tokens: int) -> Cost:
        """Return the cost of the mixer, the FFN and the two norms."""
        # FLOPs of norms are left out, as the counter leaves them out: it knows matrix products alone.
        norms = sum(p.numel() for norm in (self.ln1, self.ln2) for p in norm.parameters())
        return cost_of(self.attn, tokens, self.d_model) + cost_of(self.ffn, tokens, self.d_model) + Cost(norms)

    def zero_init_output(self) -> None:
        """Make the block the identity; members that cannot say which matrix is their last keep theirs."""
        for member in (self.attn, self.ffn):
            if hasattr(member, "zero_init_output"):
                member.zero_init_output()

    def new_cache(self, *arguments: Any) -> Any:
        """Return the mixer's cache."""
        # Asked of the mixer alone: an FFN works row by row and has nothing to keep.
        if not hasattr(self.attn, "new_cache"):
            raise InputError(f"{type(self.attn).__name__} has no cache")
        return self.attn.new_cache(*arguments)


def _apart(given: Mapping[str, Any]) -> tuple[Segments | None, dict[str, Any]]:
    """Return the segments among a call's arguments, and those of the others that are given."""
    arguments = {name: value for name, value in given.items() if value is not None}
    return arguments.pop("segments", None), arguments


def check_parallel(parallel: bool, norm_position: str) -> None:
    """Raise InputError for norms that parallel sublayers have no place for."""
    if parallel and norm_position != "pre":
        raise InputError(f"parallel=True with norm_position={norm_position!r}: both sublayers read norms of x; use pre")


def common_domain(*members: nn.Module) -> bool:
    """Return whether the members are complex-valued.

    Raises:
        InputError: when some are and others are not: there is no silent way from one to the other.
    """
    # A complex number has no one real part that an FFN should see, and a real one no phase: neither way is a default.
    domains = {type(m).__name__: bool(getattr(m, "complex_valued", False)) for m in members}
    if len(set(domains.values())) > 1:
        real = ", ".join(name for name, is_complex in domains.items() if not is_complex)
        complexes = ", ".join(name for name, is_complex in domains.items() if is_complex)
        raise InputError(
            f"{complexes} is complex-valued, {real} is real: a block is one or the other; "
            "write complex+complex_swiglu, or standard+swiglu"
        )
    return any(domains.values())


def told_causality(mixer: nn.Module, accepts: frozenset[str]) -> str | None:
    """Return the argument by which a foreign mixer is told at every call to hide the future, or None: it was
    constructed so, or knows nothing else."""
    how = causal_by(options_of(type(mixer)), accepts)
    # One that keeps a `causal` of its own was constructed with it, whatever its signature says.
    if how is None or how[0] == "constructor" or hasattr(mixer, "causal"):
        return None
    return how[1]


def future_mask(x: Tensor, cache: Any = None) -> Tensor:
    """Return what is added to scores so that nothing later is seen: 0 or −inf, [T, past + T]. It is additive because
    foreign classes read True in a boolean mask either way."""
    # With a cache the columns are the past and the new tokens; row i is token past + i.
    past = 0 if cache is None else cache.length
    blocked = torch.ones(x.shape[1], past + x.shape[1], dtype=torch.bool, device=x.device).triu(past + 1)
    return torch.zeros_like(blocked, dtype=x.dtype).masked_fill(blocked, float("-inf"))


def build_block(
    spec: LayerSpec,
    *,
    d_model: int,
    n_heads: int,
    causal: bool,
    norm: BlockNorm = "rms",
    norm_position: NormPosition = "pre",
    norm_eps: float = NORM_EPS,
    parallel: bool = False,
    rope_theta: float = 10_000.0,
    rope_scaling: str | None = None,
    dropout: float = 0.0,
    complex_valued: bool = False,
) -> nn.Module:
    """Construct the block of a layer specification.

    A mixer and FFN that are registered as a pair become their paired block; others go into a `ResidualBlock`.

    Args:
        complex_valued: whether the residual stream that the block is for is complex.

    Raises:
        InputError: for unknown names or options, a mixer whose traits lack causality when it is wanted, or a complex
            mixer for a real stream and the other way round.
    """
    from_model = {
        "d_model": d_model,
        "n_heads": n_heads,
        "causal": causal,
        # Both names, since foreign classes have one or the other; `construct` passes what the signature has.
        "is_causal": causal,
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "norm_eps": norm_eps,
        "dropout": dropout,
    }
    # All three refusals come before anything is built: a model of a gigabyte is not made to be thrown away.
    attn = implementation("attn", spec.attn)
    if attn.traits.complex_valued != complex_valued:
        has, wants = ("complex", "real") if attn.traits.complex_valued else ("real", "complex")
        raise InputError(f"attention {spec.attn!r} is {has}-valued, but this model's stream is {wants}")
    if causal and not attn.traits.causal:
        raise InputError(
            f"attention {spec.attn!r} cannot be causal (it has no causal=True): it would see what it has to predict, "
            "so it cannot model language"
        )
    if not causal and not attn.traits.bidirectional:
        raise InputError(f"attention {spec.attn!r} is only causal")
    # Registered for the very pair: the vein block shares one vein between attention and FFN, which two members cannot.
    pair = find_block(spec.attn, spec.ffn)
    _check_scaling(pair or attn, rope_scaling)
    if pair is not None:
        if parallel:
            raise InputError(f"parallel=True: {spec.attn}+{spec.ffn} is one block, whose FFN reads what it has mixed")
        extra = {"norm": norm, "norm_position": norm_position}
        options = _merge(spec)
        return construct(pair, {**from_model, **extra}, options)
    mixer = construct(attn, from_model, spec.attn_options)
    ffn = construct(implementation("ffn", spec.ffn), from_model, spec.ffn_options)
    return ResidualBlock(
        mixer,
        ffn,
        d_model,
        norm=norm,
        norm_position=norm_position,
        norm_eps=norm_eps,
        parallel=parallel,
        causal=causal,
    )


def _check_scaling(entry: Entry, rope_scaling: str | None) -> None:
    """Refuse a scaling that a mixer with rotary positions would not hear of; one that rotates nothing needs none."""
    known = options_of(entry.cls)
    if rope_scaling is not None and "rope_theta" in known and "rope_scaling" not in known:
        raise InputError(f"rope_scaling={rope_scaling!r}: {entry.name!r} takes rope_theta and no rope_scaling")


def _merge(spec: LayerSpec) -> dict[str, Any]:
    """Return options of both members of a paired block, which shares them."""
    # Written once or twice, it is one option of one block; two values would be a choice that nobody made.
    for key in spec.attn_options.keys() & spec.ffn_options.keys():
        a, b = spec.attn_options[key], spec.ffn_options[key]
        if a != b:
            raise InputError(f"{spec.attn}+{spec.ffn} is one block: {key}={a!r} and {key}={b!r} cannot both hold")
    return {**spec.attn_options, **spec.ffn_options}


def construct(entry: Entry, from_model: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Build an implementation: what the model decides where the constructor names it, and the checked options."""
    known = options_of(entry.cls)
    given = {name: value for name, value in from_model.items() if name in known}
    # A layer of another width than the stream could not be added to it.
    reserved = [name for name in options if name in MODEL_PARAMETERS]
    if reserved:
        raise InputError(f"{reserved[0]!r} is set by the model (--model.{reserved[0]}), not by {entry.name!r}")
    # Options last: `norm_position` of a paired block, say, is the model's unless the layer names it.
    every = {**given, **fold_members(options)}
    checked = check_options(known, every, f"{entry.name!r}", owners=lambda k: owners(k, entry.kind))
    return entry.cls(**checked)
