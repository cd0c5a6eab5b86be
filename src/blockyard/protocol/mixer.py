"""The mixer protocol: what every module that mixes positions takes, returns and can say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.attention_masks import check_padding_mask
from blockyard.nn.norms import make_norm
from blockyard.nn.segments import Segments
from blockyard.protocol.cache import LayerCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.costs import Cost, measured_cost
from blockyard.registry.register import accepted_arguments

# What norms of the stream add to a mean square unless a model says otherwise.
NORM_EPS = 1e-5


# Slots: one is made at every call, of every layer, for every token.
@dataclass(slots=True)
class Call:
    """What a call of a mixer asks beside x: the arguments of `Mixer.forward`, as one record for the steps of a mixer.

    Attributes:
        causal: as given; after `Mixer.check_call` whether the future is hidden.
        documents: in whose rows they stand side by side, none seeing another; for attention that takes them.
        values: what standard attention reads values from, where not from what it reads keys from.
        past: tokens in the cache before the new ones; known after `Mixer.check_call`.
    """

    padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    causal: bool | None = None
    positions: Tensor | None = None
    context: Tensor | None = None
    # Any: every wing has its own kind of cache.
    cache: Any = None
    return_weights: bool = False
    values: Tensor | None = None
    documents: Segments | None = None
    # Filled in once, so that no step of a mixer asks the cache again.
    past: int = 0

    @property
    def is_bare(self) -> bool:
        """Whether nothing is asked but what a cache and the mixer's own settings say."""
        # Asked for every token that is written: a loop over the names would take a microsecond more.
        if self.padding_mask is not None or self.attn_mask is not None or self.positions is not None:
            return False
        if self.documents is not None or self.values is not None:
            return False
        return self.causal is None and self.context is None and not self.return_weights


class Placement(TypedDict):
    """How a cache is stored."""

    dtype: torch.dtype
    device: torch.device


class Mixer(nn.Module):
    """Base of the built-in mixers. A foreign mixer need not inherit from it, only look like it.

    `forward(x, *, padding_mask, attn_mask, causal, positions, context, cache, return_weights)` returns
    `(out, weights | None)`; a mixer that cannot honour an argument raises, never ignores it.
    """

    d_model: int
    causal: bool
    # Whether x is complex64 or complex128 and parameters are real pairs.
    complex_valued = False
    # Width of a context where it is another than x's.
    context_width: int | None = None
    # Whether a context may run on the same clock as x: causal cross-attention, with a cache of the context.
    causal_cross = False

    def forward(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        cache: Any = None,
        return_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix positions.

        Args:
            x: [B, T, d_model].
            padding_mask: [B, T], nonzero = keep; with a cache [B, past + T], with a context [B, S].
            attn_mask: bool (True = attend) or additive, broadcastable to [B, H, T, S]; combined with causality.
            causal: overrides the constructor's `causal`.
            positions: [T] or [B, T]; by default they follow from the cache and the padding mask, row by row.
            context: [B, S, d_model], attended to instead of x.
            cache: from `new_cache`; holds past tokens and receives the new ones.
            return_weights: also return the attention weights [B, H, T, S].
        """
        # Refused before anything is computed or stored: a cache that has taken half a call could not be gone on with.
        call = Call(padding_mask, attn_mask, causal, positions, context, cache, return_weights)
        self.check_call(x, call)
        return self.mix(x, call)

    def mix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        """Return what `forward` gives of a call that was checked: the part that a built-in mixer defines."""
        # Not abstract: a mixer may have a forward of its own and only borrow the checks.
        raise NotImplementedError

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> LayerCache | RingCache:
        """Return an empty cache for this layer, owned by the caller.

        Args:
            batch: number of sequences.
            max_len: capacity in tokens; None grows on demand.
            dtype: floating type, by default that of the parameters.
            device: by default that of the parameters.
        """
        return self.empty_cache(batch, max_len, self.placement(dtype, device))

    def empty_cache(self, batch: int, max_len: int | None, placement: Placement) -> LayerCache | RingCache:
        """Return what `new_cache` gives, the placement decided: the part that a built-in mixer defines."""
        raise InputError(f"{type(self).__name__} has no cache")

    @staticmethod
    def norm(kind: str, d_model: int, eps: float = NORM_EPS) -> nn.Module:
        """Return the norm, by its name, of the stream that the mixer reads and writes.

        Raises:
            InputError: for another name than rms and layer.
        """
        # A real stream's; a complex mixer overrides it, which is how blocks need not know that complex norms exist.
        return make_norm(kind, d_model, eps)

    @staticmethod
    def check_input(x: Tensor, width: int) -> None:
        """Raise InputError unless x is what the mixer reads: [B, T, width], floating."""
        check_input(x, width)

    def cost(self, tokens: int) -> Cost:
        """Return parameters, forward FLOPs for one sequence of `tokens`, and cache bytes per token; by formula where a
        mixer has one, else counted and measured, without a cache's bytes."""
        return measured_cost(self, tokens, self.d_model)

    def zero_init_output(self) -> None:
        """Make the output projection zero, so that a residual block starts as the identity; one that cannot say which
        matrix is its last keeps it."""

    def check_call(self, x: Tensor, call: Call) -> None:
        """Refuse what does not fit together, and put into the call what follows from the rest: `causal` and `past`."""
        self.check_input(x, self.d_model)
        # The argument wins over the constructor, so that one module serves an encoder's and a decoder's half.
        causal = self.causal if call.causal is None else call.causal
        context, cache = call.context, call.cache
        if context is not None:
            self._check_context(context, x, causal, call.positions, cache)
        # Padding included: positions in the text, which masks are laid over, and not tokens stored.
        past = cache.length if cache is not None else 0
        # Here, and not where values are stored: a state alone stores none.
        if cache is not None and getattr(cache, "batch", x.shape[0]) != x.shape[0]:
            raise InputError(f"the cache is of {cache.batch} sequences, x has shape {tuple(x.shape)}")
        # A single first token sees itself alone either way, so it may come without causality.
        if cache is not None and not causal and (past or x.shape[1] > 1):
            raise InputError("a cache needs causal attention: earlier positions cannot see later ones any more")
        if call.padding_mask is not None:
            # A mask says of every key whether it is one: with a cache that is the past, too.
            keys = past + (x if context is None else context).shape[1]
            check_padding_mask(call.padding_mask, x.shape[0], keys)
        call.causal, call.past = causal, past

    def check(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        cache: LayerCache | RingCache | None = None,
    ) -> tuple[bool, int]:
        """Return the same for a `forward` of one's own: whether the future is hidden, and how many tokens are
        cached."""
        # attn_mask is not among them: its shape is checked against the scores, which only the mixer knows.
        call = Call(padding_mask, causal=causal, positions=positions, context=context, cache=cache)
        self.check_call(x, call)
        return bool(call.causal), call.past

    def _check_context(self, context: Tensor, x: Tensor, causal: bool, positions: Tensor | None, cache: Any) -> None:
        self.check_input(context, self.context_width or self.d_model)
        if context.shape[0] != x.shape[0]:
            raise InputError(f"context has batch {context.shape[0]}, x has {x.shape[0]}")
        # On one clock position t of x may see positions up to t of the context: a dual stream decodes that way.
        if causal and self.causal_cross:
            if context.shape[1] != x.shape[1]:
                raise InputError(
                    f"causal=True with a context of {context.shape[1]} positions and x of {x.shape[1]}: "
                    "causal cross-attention needs both on one clock; pass causal=False"
                )
            return
        if causal:
            raise InputError("causal=True with a context: its positions have no order relative to x; pass causal=False")
        if positions is not None or cache is not None:
            raise InputError("positions and cache cannot be used with a context")

    def placement(self, dtype: torch.dtype | None, device: torch.device | str | None) -> Placement:
        """Return where and as what a cache is stored: as given, else as the parameters are."""
        # A mixer without parameters is where its input will be: on the CPU, as far as anybody has said.
        like = next(self.parameters(), torch.empty(0))
        return {"dtype": dtype or like.dtype, "device": torch.device(device or like.device)}

    # Their names in 0.1, as custom-blocks.md showed them: mixers of users call them.
    _check, _placement = check, placement


def make_norm_of(module: Any, kind: str, d_model: int, eps: float = NORM_EPS) -> nn.Module:
    """Make a norm of the stream that a mixer reads and writes (`norm_of`).

    Raises:
        InputError: for another kind than its stream has, or an eps where the mixer's norms have one of their own.
    """
    make = norm_of(module)
    if "eps" in accepted_arguments(make):
        return make(kind, d_model, eps=eps)
    if eps != NORM_EPS:
        raise InputError(f"norm_eps={eps}: the norms of {type(module).__name__} have an eps of their own; leave it out")
    return make(kind, d_model)


def norm_of(module: Any) -> Callable[..., nn.Module]:
    """Return how the stream that a mixer reads and writes is normalised: `norm(kind, d_model)` of its class, or a real
    norm.

    Raises:
        InputError: for a complex mixer that does not say.
    """
    # Asked of the class: a foreign module may keep a norm of its own under that name.
    own = getattr(type(module), "norm", None)
    if callable(own) and (isinstance(module, Mixer) or getattr(module, "complex_valued", False)):
        return own
    if getattr(module, "complex_valued", False):
        raise InputError(
            f"{type(module).__name__} is complex-valued and does not say how its stream is normalised: "
            "give it `norm = staticmethod(blockyard.complex.make_complex_norm)`"
        )
    return make_norm


def check_shape(x: Tensor, width: int) -> None:
    """Raise InputError unless x is [B, T, width] with at least one row and one position."""
    # A width that differs would be told by the first product, in numbers that name no argument.
    if x.ndim != 3 or x.shape[-1] != width:
        raise InputError(f"x has shape {tuple(x.shape)}, expected [batch, length, {width}]")
    if x.shape[0] == 0 or x.shape[1] == 0:
        raise InputError(f"x has shape {tuple(x.shape)}; batch and length should be at least 1")


def check_input(x: Tensor, width: int) -> None:
    """Raise InputError unless x is a floating [B, T, width] with at least one row and one position."""
    check_shape(x, width)
    if not x.is_floating_point():
        raise InputError(f"x has dtype {x.dtype}, expected a floating type")


def check_heads(d_model: int, n_heads: int) -> int:
    """Return the width of a head, d_model / n_heads; InputError naming the head counts that divide when it does not."""
    if d_model < 1 or n_heads < 1:
        raise InputError(f"d_model={d_model} and n_heads={n_heads} should be at least 1")
    if d_model % n_heads:
        # The smallest divisors are the ones that people mean; all of them would fill a line at d_model = 5040.
        fitting = [n for n in range(1, d_model + 1) if d_model % n == 0][:8]
        raise InputError(f"n_heads={n_heads} does not divide d_model={d_model}; use {', '.join(map(str, fitting))}, …")
    return d_model // n_heads


def default_positions(padding_mask: Tensor | None, new: int) -> Tensor | None:
    """Return positions [B, new] of the new tokens, counted over the kept tokens of each row; None without padding.

    Args:
        padding_mask: [B, past + new], nonzero = keep.
        new: number of new tokens.
    """
    if padding_mask is None:
        return None
    # So that a row padded on the left is what it would be alone: its first real token stands at 0. Clamped, since
    # padding in front of it would stand at −1, where no rotation is tabled.
    return (padding_mask.to(torch.bool).long().cumsum(-1) - 1).clamp_(min=0)[:, -new:]
