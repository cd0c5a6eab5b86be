"""What spectral mixing is made of: gate anchors spread over frequency bins, and the kernels that they stand for.

SPECTRE, "The FFT Strikes Back" (arXiv 2502.18394, Fein-Ashley et al.): a gate has few complex *anchors* (buckets) along
the frequency axis, and the bins between them are interpolated. The interpolation is linear in the anchors, so it is a
fixed matrix, and every impulse response is a sum of fixed ones, two per anchor.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.derivatives import outlasting

Spacing = Literal["linear", "log"]
Interpolation = Literal["linear", "cubic"]


def smooth_length(n: int) -> int:
    """The smallest length of at least n with no prime factor above 5.

    A transform of prime-like length costs five to nine times as much per element.
    """
    best = 1 << (n - 1).bit_length()
    fives = 1
    while fives < best:
        # Every 3^i 5^j, doubled until it is long enough.
        odd = fives
        while odd < best:
            best = min(best, odd << (-(-n // odd) - 1).bit_length())
            odd *= 3
        fives *= 5
    return best


def default_buckets(bins: int) -> int:
    """Anchors for so many bins: ⌊√bins⌋, at least 4."""
    return max(4, math.isqrt(bins))


def anchor_bins(bins: int, buckets: int, spacing: Spacing) -> Tensor:
    """Return where the anchors lie on the axis of bins: float64 [buckets], from 0 to bins − 1, rising."""
    # Where they lie is asked while models are made whose weights are elsewhere, or nowhere yet.
    u = torch.linspace(0, 1, buckets, dtype=torch.float64, device="cpu")
    growth = _growth(bins, buckets) if spacing == "log" else 0.0
    warped = u if growth == 0 else torch.expm1(growth * u) / math.expm1(growth)
    return warped * (bins - 1)


def anchor_matrix(bins: int, buckets: int, interpolation: Interpolation, spacing: Spacing) -> Tensor:
    """The interpolation as a matrix: float64 [buckets, bins], anchors @ matrix = bins; its columns sum to 1.

    Args:
        bins: frequencies 0 to π in equal steps, n_fft // 2 + 1 of them.
        buckets: number of anchors.
        interpolation: between neighbouring anchors: linear, or cubic (Catmull-Rom).
        spacing: of the anchors: linear, or log, whose first step is one bin and whose steps grow geometrically.
    """
    f = torch.arange(bins, dtype=torch.float64, device="cpu") / max(1, bins - 1)
    growth = _growth(bins, buckets) if spacing == "log" else 0.0
    place = (f if growth == 0 else torch.log1p(f * math.expm1(growth)) / growth) * (buckets - 1)
    left = place.floor().clamp(max=max(0, buckets - 2))
    # Where a bin lies between its neighbouring anchors.
    t = place - left
    if interpolation == "linear":
        weights = {0: 1 - t, 1: t}
    else:
        weights = {
            # Catmull-Rom: through the anchors, with slopes from the anchors on both sides.
            -1: (-t + 2 * t**2 - t**3) / 2,
            0: (2 - 5 * t**2 + 3 * t**3) / 2,
            1: (t + 4 * t**2 - 3 * t**3) / 2,
            2: (t**3 - t**2) / 2,
        }
    matrix = torch.zeros(buckets, bins, dtype=torch.float64, device="cpu")
    for offset, weight in weights.items():
        # Beyond the ends the outermost anchors repeat.
        row = (left.long() + offset).clamp(0, buckets - 1)
        matrix.scatter_add_(0, row[None], weight[None])
    return matrix


def _growth(bins: int, buckets: int) -> float:
    """Exponent a of (e^(au) − 1) / (e^a − 1) such that the first of the steps is one bin wide; 0 = equal steps."""
    steps, wanted = buckets - 1, 1 / max(1, bins - 1)
    if wanted >= 1 / steps:
        return 0.0
    low, high = 0.0, 64.0
    # Bisection, since the first step shrinks as a grows; 80 halvings end below what float64 resolves.
    for _ in range(80):
        a = (low + high) / 2
        first = math.expm1(a / steps) / math.expm1(a)
        low, high = (a, high) if first > wanted else (low, a)
    return (low + high) / 2


@lru_cache(maxsize=32)
def _basis(buckets: int, window: int, interpolation: Interpolation, spacing: Spacing) -> Tensor:
    matrix = anchor_matrix(window + 1, buckets, interpolation, spacing)
    # A real and an imaginary 1 in each anchor: irfft is linear, so every gate's kernel is a sum of these.
    both = torch.cat([matrix.to(torch.complex128), 1j * matrix])
    return torch.fft.irfft(both, n=2 * window)[:, :window].contiguous()


@lru_cache(maxsize=32)
def kernel_basis(
    buckets: int, window: int, interpolation: Interpolation, spacing: Spacing, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The causal kernels of unit anchors, [2·buckets, window]: h = [Re a, Im a] @ basis, h = irfft(gate, 2L)[:L].

    Plain tensors shared by all layers, not buffers: those would be rounded by `model.to(torch.bfloat16)`.
    """
    with outlasting():
        return _basis(buckets, window, interpolation, spacing).to(dtype=dtype, device=device)


@lru_cache(maxsize=64)
def bin_matrix(
    buckets: int, bins: int, interpolation: Interpolation, spacing: Spacing, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`anchor_matrix` in the wanted precision and place, kept."""
    with outlasting():
        return anchor_matrix(bins, buckets, interpolation, spacing).to(dtype=dtype, device=device)


def kernel_span(kernels: Tensor, lags: Tensor, energy: float = 0.95) -> Tensor:
    """The smallest |lag| within which a kernel has its energy: [...] integers.

    Args:
        kernels: impulse responses [..., n].
        lags: the lag of every element, [n]; negative ones look ahead.
        energy: the fraction, above 0 and at most 1.
    """
    if not 0 < energy <= 1:
        raise InputError(f"energy={energy} should be above 0 and at most 1")
    distance = lags.abs()
    order = distance.argsort(stable=True)
    running = kernels.double().square()[..., order].cumsum(-1)
    # A hair of slack, so that rounding does not push energy=1 beyond the end.
    reached = running >= (energy - 1e-12) * running[..., -1:]
    return distance[order][reached.to(torch.uint8).argmax(-1)]
