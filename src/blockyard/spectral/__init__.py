"""Spectral mixing: the values of a head are filtered in the frequency domain by a gate computed from the queries.

    v = W_v x, q = W_q x;   gate = interpolated anchors of an MLP of the pooled, normalised q
    encoder (both ways)   y = irfft(gate · (rfft(v) + memory)), circular, one gate per row
    causal                y_t = Σ_{l<L} h_t[l] · v_{t−l},  h_t = irfft(gate_t, 2L)[:L], the gate from the tokens before:
                          one kernel per chunk of tokens (gate=chunk) or per token (gate=token)

There is no key, so no token is matched with another: a convolution whose kernel adapts to the content. After SPECTRE
(arXiv 2502.18394) and the spectre-nlp document; the causal forms are this library's, as theirs sees the future.

Files, in reading order:

    mixer.py      SpectralMixer ("spectral"): projections, options, cache; hands on to one of
    encoder.py    EncoderMixing; filter.py: its filter as one operation that recomputes spectra in the backward pass
    causal.py     CausalMixing; chunks.py and tokens.py: causal convolution with a kernel per chunk or per token
    exported.py   both in real products, for graphs that other programs run
    gate.py       SpectralGate: from a summary of the queries to anchors; pooling.py makes the summary
    basis.py      anchors spread over frequency bins, the kernels they stand for, how far a kernel reaches
    haar.py       the wavelet branch of the encoder form
    padding.py    rows without their padding, so that it costs and changes nothing
    training.py   optimizer groups with a decay of the gates' own

The definitions in loops and float64, which every fast form is compared with: tests/spectral/twin.py.

Use it for long sequences whose content is in trends and local patterns, and as the majority of layers in a hybrid. It
cannot look things up: for recall, copying and pointing keep layers of attention.

What it sees, costs, figures and the sources' errors: docs/spectral.md; where it fails: docs/recall.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.spectral.mixer import SpectralMixer as SpectralMixer
    from blockyard.spectral.training import param_groups as param_groups
else:
    __all__ = exports(
        __name__,
        {
            "mixer": "SpectralMixer",
            "training": "param_groups",
        },
    )
