"""Spectral mixing in direct sums and float64: the definitions that the fast paths are compared with.

    q, v = W_q x, W_v x;   out = W_o y
    gate = interpolation over the bins of modReLU(MLP(LN(q̄)) + base), q̄ a summary of q, head by head
    encoder:  y = irfft(gate · (rfft(v) + memory))                           q̄ from all tokens; circular
    causal:   y_t = Σ_{l<L} h_t[l] · v_{t−l},  h_t = irfft(gate_t, 2L)[:L]   q̄ from the tokens up to t,
                                                                             or before t's chunk

The encoder's form is SPECTRE's ("The FFT Strikes Back", Fein-Ashley et al. 2025, arXiv 2502.18394); the causal one is
this library's, which never sees ahead. modReLU(z) = ReLU(|z| + b) · z/|z| (arXiv 1511.06464).
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor

from blockyard.spectral.mixer import SpectralMixer


def interpolated(anchors: list[complex], bins: int) -> list[complex]:
    """Linear interpolation of anchors at equal distances."""
    found = []
    for f in range(bins):
        place = f * (len(anchors) - 1) / max(1, bins - 1)
        left = min(int(place), len(anchors) - 2)
        found.append(anchors[left] + (place - left) * (anchors[left + 1] - anchors[left]))
    return found


def inverse_real_dft(spectrum: list[complex], n: int) -> list[float]:
    """The real sequence of length n with bins 0 … n//2; the imaginary parts of bins 0 and n/2 count nothing."""
    out = []
    for s in range(n):
        total = spectrum[0].real
        for f in range(1, len(spectrum)):
            term = (spectrum[f] * cmath.exp(2j * math.pi * f * s / n)).real
            total += term if 2 * f == n else 2 * term
        out.append(total / n)
    return out


def complex_anchors(stacked: Tensor) -> list[complex]:
    """[2K], real parts first -> K complex numbers."""
    re, im = stacked.tolist()[: len(stacked) // 2], stacked.tolist()[len(stacked) // 2 :]
    return [complex(a, b) for a, b in zip(re, im)]


def gate_anchors(mixer: SpectralMixer, descriptor: Tensor) -> Tensor:
    """modReLU(MLP(LN(q̄)) + base) of one descriptor [D] -> [kernels, 2K], head by head."""
    gate = mixer.gate
    rows = []
    for head, q in enumerate(descriptor.view(mixer.n_heads, -1)):
        q = (q - q.mean()) / (q.var(unbiased=False) + 1e-5).sqrt() * gate.norm_weight + gate.norm_bias
        hidden = gate.hidden_weight @ q + gate.hidden_bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        raw = (gate.out_weight @ hidden).view(gate.groups, 2, gate.buckets) + gate.base[head]
        for group in range(gate.groups):
            z = torch.complex(raw[group, 0], raw[group, 1])
            if gate.taps is not None:
                taps = torch.complex(gate.taps[0], gate.taps[1])
                z = torch.stack(
                    [
                        z[k] + sum(taps[k - j + 4] * z[j] for j in range(len(z)) if abs(j - k) <= 4)
                        for k in range(len(z))
                    ]
                )
            size = (z.abs() ** 2 + 1e-12).sqrt()
            z = z * torch.relu(size + gate.mod_bias[head, group]) / size
            rows.append(torch.cat([z.real, z.imag]))
    return torch.stack(rows)


def causal(mixer: SpectralMixer, x: Tensor) -> Tensor:
    """y_t = Σ_l h_t[l] · v_{t−l} for one row x [T, D], each token with its own kernel, by direct sums."""
    form, length = mixer.form, x.shape[0]
    v, q = x @ mixer.v_proj.weight.T, x @ mixer.q_proj.weight.T
    per_kernel = x.shape[1] // (mixer.n_heads * mixer.gate.groups)
    mixed, kernels = torch.zeros_like(v), {}
    for t in range(length):
        seen = t + 1 if form.gate_kind == "token" else t // form.chunk * form.chunk
        if seen not in kernels:
            descriptor = form.first if seen == 0 else q[:seen].mean(0)
            kernels[seen] = [
                inverse_real_dft(interpolated(complex_anchors(a), form.window + 1), 2 * form.window)
                for a in gate_anchors(mixer, descriptor)
            ]
        for channel in range(x.shape[1]):
            h = kernels[seen][channel // per_kernel]
            mixed[t, channel] = sum(h[lag] * v[t - lag, channel] for lag in range(min(t, form.window - 1) + 1))
    return mixed @ mixer.output_proj.weight.T


def encoder(mixer: SpectralMixer, x: Tensor, n: int) -> Tensor:
    """irfft(gate · (rfft(v) + memory)) of one row x [N, D] with mean pooling, by direct sums over n places and bins."""
    v = x @ mixer.v_proj.weight.T
    memory = torch.view_as_complex(mixer.form.memory.detach())
    anchors = gate_anchors(mixer, mixer.q_proj.weight @ x.mean(0))
    per_kernel = v.shape[1] // len(anchors)
    mixed = torch.zeros_like(v)
    for channel in range(v.shape[1]):
        gate = interpolated(complex_anchors(anchors[channel // per_kernel]), n // 2 + 1)
        values, low = v[:, channel].tolist(), memory[channel].tolist()
        spectrum = []
        for f in range(n // 2 + 1):
            bin_ = sum(value * cmath.exp(-2j * math.pi * f * s / n) for s, value in enumerate(values))
            spectrum.append(gate[f] * (bin_ + (low[f] if f < len(low) else 0)))
        mixed[:, channel] = torch.tensor(inverse_real_dft(spectrum, n)[: len(values)], dtype=v.dtype)
    return mixed @ mixer.output_proj.weight.T
