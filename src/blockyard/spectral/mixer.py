"""Spectral mixing: the values of a head are filtered in the frequency domain by a gate computed from the queries.

After SPECTRE, "The FFT Strikes Back" (Fein-Ashley et al., arXiv 2502.18394) and the spectre-nlp document. It is a
content-adaptive Toeplitz mixing: there is no key, so no token is matched with another. What a position gets from
another depends on their distance and on a summary of the sequence, never on the two tokens.

Definition in loops and float64: tests/spectral/twin.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.nn.attention_kernels import as_given
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear, plain
from blockyard.nn.products import linear, suits
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.mixer import Call, Mixer, Placement, check_heads
from blockyard.registry.register import Traits, register_attn
from blockyard.spectral.basis import Interpolation, Spacing, anchor_bins, default_buckets, kernel_span
from blockyard.spectral.causal import CausalMixing, GateKind
from blockyard.spectral.encoder import EncoderMixing
from blockyard.spectral.gate import SpectralGate
from blockyard.spectral.padding import Compacted
from blockyard.spectral.pooling import PoolingType

# The transform length that the number of buckets goes by when inputs may have any length.
_USUAL_LENGTH = 1024


@register_attn(
    "spectral",
    group="spectral",
    traits=Traits(causal=True, bidirectional=True, cache="recurrent", padding=True, order=True),
)
class SpectralMixer(Mixer):
    """Mixing in the frequency domain, O(N log N) for encoders, with a causal form for language models (SPECTRE).

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads; each computes its own gates.
        causal: build the causal form; the forward argument cannot change it, since the two have different parameters.
        gate: causal form: a kernel per chunk (the default) or per token (slower, an oracle).
        window: causal form: tokens that a kernel reaches back; None = 1024.
        chunk: causal form: tokens that share a kernel; None = window / 16.
        n_fft: encoder form: transform length; None = the next 2-3-5-smooth length of each input.
        pooling_type: encoder form: what sums up the queries, mean, attention or dct; None = dct.
        num_groups: gates per head, dividing the head's width.
        num_buckets: complex anchors per gate, at least 4; None = the square root of the number of bins.
        bucket_spacing: of the anchors along the frequencies: linear (local kernels) or log (long memory).
        interpolation: between anchors: linear or cubic.
        d_gate: hidden width of the gate's network.
        use_toeplitz: convolve the anchors with nine learnt complex taps.
        memory_size: encoder form: lowest bins to which a spectrum is added, the same for every input; 0 = none.
        memory_frozen: keep that spectrum as `set_memory` or `fit_memory` made it, instead of learning it.
        wavelet_on_rate: encoder form: probability that a sample gets the wavelet branch in training; 0 = no branch.
        wavelet_detach: no gradient through the wavelet branch to what comes before it.
        dropout: probability of dropping an element of the mixed values in training.

    Shapes: x [B, T, d_model] -> [B, T, d_model].
    Raises: InputError when heads or groups do not divide, for sizes below 1, an n_fft below the input's length, and
        options of the other form.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        causal: bool = False,
        gate: GateKind | None = None,
        window: int | None = None,
        chunk: int | None = None,
        n_fft: int | None = None,
        pooling_type: PoolingType | None = None,
        num_groups: int = 4,
        num_buckets: int | None = None,
        bucket_spacing: Spacing = "linear",
        interpolation: Interpolation = "linear",
        d_gate: int = 256,
        use_toeplitz: bool = False,
        memory_size: int = 0,
        memory_frozen: bool = False,
        wavelet_on_rate: float = 0.0,
        wavelet_detach: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model, self.n_heads, self.causal = d_model, n_heads, causal
        head_dim = check_heads(d_model, n_heads)
        if num_groups < 1 or head_dim % num_groups:
            fitting = [n for n in range(1, head_dim + 1) if head_dim % n == 0][:8]
            raise InputError(
                f"num_groups={num_groups} does not divide the head's width {head_dim} = d_model / n_heads; "
                f"use {', '.join(map(str, fitting))}"
            )
        at_least(1, n_fft=n_fft, window=window, chunk=chunk, d_gate=d_gate)
        at_least(4, ", or none", num_buckets=num_buckets)
        if not 0.0 <= wavelet_on_rate <= 1.0:
            raise InputError(f"wavelet_on_rate={wavelet_on_rate} should be between 0 and 1")
        at_least(0, memory_size=memory_size)
        _check_form(
            causal,
            causal_only={"gate": gate, "window": window, "chunk": chunk},
            encoder_only={
                "n_fft": n_fft,
                "pooling_type": pooling_type,
                "memory_size": memory_size or None,
                "wavelet_on_rate": wavelet_on_rate or None,
            },
        )
        window = 1024 if window is None else window
        # A causal kernel of L taps is the first half of a circular one of 2L, which has L + 1 bins.
        bins = window + 1 if causal else (n_fft or _USUAL_LENGTH) // 2 + 1
        if memory_size > bins:
            raise InputError(f"memory_size={memory_size} should be at most the {bins} bins of n_fft")
        buckets = num_buckets or default_buckets(bins)
        self.form: CausalMixing | EncoderMixing
        if causal:
            chunk = max(1, window // 16) if chunk is None else chunk
            if chunk > window:
                raise InputError(f"chunk={chunk} should be at most window={window}")
            self.form = CausalMixing(
                d_model,
                gate_kind=gate or "chunk",
                window=window,
                chunk=chunk,
                buckets=buckets,
                interpolation=interpolation,
                bucket_spacing=bucket_spacing,
            )
        else:
            self.form = EncoderMixing(
                n_heads,
                head_dim,
                n_fft=n_fft,
                pooling_type=pooling_type or "dct",
                interpolation=interpolation,
                bucket_spacing=bucket_spacing,
                memory_size=memory_size,
                memory_frozen=memory_frozen,
                wavelet_on_rate=wavelet_on_rate,
                wavelet_detach=wavelet_detach,
            )
        self.q_proj, self.v_proj, self.output_proj = (Linear(d_model, d_model) for _ in range(3))
        self.gate = SpectralGate(
            n_heads,
            head_dim,
            num_groups,
            buckets,
            d_gate,
            toeplitz=use_toeplitz,
            frequencies=torch.pi * anchor_bins(bins, buckets, bucket_spacing) / (bins - 1),
            reach=bins / 8 if bucket_spacing == "log" else buckets / 2,
            causal=causal,
        )
        self.dropout = Dropout(dropout)

    def mix(self, x: Tensor, call: Call) -> tuple[Tensor, Tensor | None]:
        if torch.compiler.is_exporting() and (call.padding_mask is not None or not self.causal):
            raise InputError(
                "spectral mixing is exported where it hides the future and rows are whole: both ways, or without their "
                "padding, rows are transformed at lengths of their own"
            )
        if call.padding_mask is None:
            return self._filter(x, None, None, call.cache, x.shape[1]), None
        # Padding would count as distance, so rows are filtered without it.
        kept = Compacted(x, call.padding_mask[:, call.past :])
        return kept.restore(self._filter(kept.x, kept.counts, kept.valid, call.cache, x.shape[1])), None

    def _filter(
        self, x: Tensor, counts: Tensor | None, valid: Tensor | None, cache: RingCache | None, seen: int
    ) -> Tensor:
        """Compute [B, N, D] -> [B, N, D], rows without padding in front, of a piece of `seen` tokens with it."""
        v = self._values(x)
        if valid is not None:
            # An adapter with a bias would put values where a row has ended.
            v = torch.where(valid[:, None], v, 0)
        # Transforms know no half precision, so what lies between the projections is an island of float32 or float64.
        with as_given(x.device):
            if isinstance(self.form, CausalMixing):
                mixed = self.form(x, v, self._query, self.gate, counts, cache, seen)
            else:
                mixed = self.form(x, v, self._query, self.gate, counts)
        return self.output_proj(self.dropout(mixed.transpose(1, 2).to(x.dtype)))

    def _values(self, x: Tensor) -> Tensor:
        """Return [B, D, N], channels first: transforms run along contiguous memory (strided they take twice as
        long)."""
        # Of one token there is nothing to transpose; a graph that is exported is of all lengths.
        one = not torch.compiler.is_exporting() and x.shape[1] == 1
        if plain(self.v_proj) and not one:
            # W xᵀ has channels in front at once; to project first would mean to transpose behind it.
            # Of all samples at once: [D, B · N], seen with the samples in front.
            rows, weight = x.reshape(-1, x.shape[-1]), self.v_proj.weight
            fast = suits(rows.shape[0], *weight.shape, weight, rows)
            v = (linear(weight, rows) if fast else weight @ rows.mT).unflatten(1, x.shape[:2]).transpose(0, 1)
        else:
            v = self.v_proj(x).transpose(1, 2)
        return v.to(_wide(x.dtype))

    def _query(self, rows: Tensor) -> Tensor:
        """Return the query projection of summaries or tokens, [..., D] -> [..., D] in at least float32."""
        # The weights may be bfloat16, or an adapter's; summaries are float32.
        weight = next(self.q_proj.parameters())
        return self.q_proj(rows.to(weight.dtype)).to(_wide(rows.dtype))

    def check_call(self, x: Tensor, call: Call) -> None:
        """Refuse what spectral mixing has no meaning for, too."""
        if call.causal is not None and call.causal != self.causal:
            raise InputError(
                f"causal={call.causal}, but this mixer was built with causal={self.causal}, another form; rebuild it"
            )
        for name, given, reason in (
            ("attn_mask", call.attn_mask is not None, "no pair of positions is scored; use padding_mask"),
            ("positions", call.positions is not None, "distances are counted in tokens"),
            ("context", call.context is not None, "there is no query that could look elsewhere"),
            ("return_weights", call.return_weights, "there are no weights; see kernels()"),
        ):
            if given:
                raise InputError(f"spectral mixing takes no {name}: {reason}")
        cache = call.cache
        if cache is not None and not isinstance(cache, RingCache):
            raise InputError(f"cache is a {type(cache).__name__}; use the mixer's new_cache()")
        if cache is not None and not self.causal:
            raise InputError("a cache needs the causal form; build the mixer with causal=True")
        if cache is not None and cache.batch != x.shape[0]:
            raise InputError(f"the cache has batch {cache.batch}, x has {x.shape[0]}")
        super().check_call(x, call)

    def empty_cache(self, batch: int, max_len: int | None, placement: Placement) -> RingCache:
        if not isinstance(self.form, CausalMixing):
            raise InputError("the encoder form has no cache; build the mixer with causal=True")
        # The kernels of the chunks that rows lie in follow from their anchors.
        return RingCache(batch, self.d_model, self.form.window, derived=("kernel",), max_len=max_len, **placement)

    def kernels(self, x: Tensor | None = None, *, length: int = _USUAL_LENGTH) -> tuple[Tensor, Tensor]:
        """Return impulse responses that an input is filtered with, and the lag of each of their elements.

        Args:
            x: [B, T, d_model]; causal: the kernels of what follows x. None = those of an average input.
            length: encoder form: length of the input, where x does not tell it.

        Returns: kernels [n_heads, num_groups, n], or with x [B, n_heads, num_groups, n]; lags [n], negative = ahead.
        """
        with torch.no_grad():
            anchors = self.gate.average() if x is None else self._anchors_after(x)
            if isinstance(self.form, CausalMixing):
                kernels, lags = self.form.kernels(anchors)
            else:
                kernels, lags = self.form.kernels(anchors, length if x is None else x.shape[1])
        return kernels.unflatten(-2, (self.n_heads, -1)), lags

    def _anchors_after(self, x: Tensor) -> Tensor:
        if isinstance(self.form, EncoderMixing):
            return self.gate(self.form.pooling(x, self._query, None, _wide(x.dtype)))
        return self.gate(self._query(x.mean(1, dtype=_wide(x.dtype))))

    def kernel_span(self, x: Tensor | None = None, *, length: int = _USUAL_LENGTH, energy: float = 0.95) -> Tensor:
        """Return how far the kernels reach: the smallest |lag| that holds `energy` of each, [(B,) n_heads, num_groups].

        Args:
            x: see `kernels`.
            length: see `kernels`.
            energy: fraction of the sum of squares.
        """
        return kernel_span(*self.kernels(x, length=length), energy)

    def set_memory(self, spectrum: Tensor) -> None:
        """Set the spectral memory: complex [d_model, memory_size], added to the lowest bins of every rfft(v)."""
        memory = self._memory()
        if tuple(spectrum.shape) != tuple(memory.shape[:2]) or not spectrum.is_complex():
            raise InputError(
                f"spectrum is {spectrum.dtype} {tuple(spectrum.shape)}, expected complex {tuple(memory.shape[:2])}"
            )
        with torch.no_grad():
            memory.copy_(torch.view_as_real(spectrum.resolve_conj()))

    def fit_memory(self, x: Tensor) -> None:
        """Set the spectral memory to the mean low spectrum of the values of x [B, T, d_model]."""
        memory = self._memory()
        assert isinstance(self.form, EncoderMixing)
        with torch.no_grad():
            spectrum = torch.fft.rfft(self._values(x), self.form.transform_length(x.shape[1])).mean(0)
        size = memory.shape[1]
        self.set_memory(nn.functional.pad(spectrum, (0, max(0, size - spectrum.shape[1])))[:, :size])

    def _memory(self) -> Tensor:
        memory = getattr(self.form, "memory", None)
        if memory is None:
            raise InputError("this mixer has no spectral memory; build it with memory_size=1 or more")
        return memory

    def cost(self, tokens: int) -> Cost:
        rows = self.form.query_rows(tokens)
        square = (self.d_model, self.d_model)
        return Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            flops=linear_flops(tokens, square, square)
            + linear_flops(rows, square)
            + self.form.flops(tokens, self.gate),
            cache_bytes_per_token=4 * self.d_model if self.causal else 0,
        )

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.output_proj.weight)

    def extra_repr(self) -> str:
        form = (
            f"window={self.form.window}, chunk={self.form.chunk}" if isinstance(self.form, CausalMixing) else "encoder"
        )
        return f"n_heads={self.n_heads}, causal={self.causal}, {form}"


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_form(causal: bool, causal_only: dict[str, Any], encoder_only: dict[str, Any]) -> None:
    """Refuse options of the form that is not built."""
    wrong, word = (
        (encoder_only, "encoder form (causal=False)") if causal else (causal_only, "causal form (causal=True)")
    )
    for name, value in wrong.items():
        if value is not None:
            raise InputError(f"{name}={value!r} is an option of the {word} of spectral mixing")
