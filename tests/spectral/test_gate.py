"""Gates of a spectral mixer and the kernels they are: lengths, anchors, spans, where they start."""

import math

import pytest
import torch

from blockyard.errors import InputError
from blockyard.spectral.basis import anchor_bins, anchor_matrix, kernel_basis, kernel_span, smooth_length
from blockyard.spectral.gate import starting_gates
from blockyard.spectral.mixer import SpectralMixer


def test_smooth_lengths_have_no_prime_factor_above_five():
    smooth = sorted(2**a * 3**b * 5**c for a in range(13) for b in range(9) for c in range(6))
    assert [smooth_length(n) for n in range(1, 3000)] == [next(s for s in smooth if s >= n) for n in range(1, 3000)]


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("bins, buckets", [(1, 4), (2, 4), (5, 8), (33, 5), (513, 22)])
def test_interpolation_keeps_constants_and_meets_its_anchors(bins, buckets, interpolation, spacing):
    matrix = anchor_matrix(bins, buckets, interpolation, spacing)
    torch.testing.assert_close(matrix.sum(0), torch.ones(bins).double())
    places = anchor_bins(bins, buckets, spacing)
    assert places[0] == 0 and math.isclose(places[-1], bins - 1) and (places.diff() >= 0).all()
    for anchor, place in enumerate(places.tolist()):
        if bins > 1 and abs(place - round(place)) < 1e-9:
            expected = torch.zeros(buckets).double()
            expected[anchor] = 1
            torch.testing.assert_close(matrix[:, round(place)], expected, atol=1e-8, rtol=0)


def test_cubic_interpolation_keeps_real_and_imaginary_parts_apart():
    # The public code's cubic path mixes them with the groups: constant anchors of 1 come back as (1+1j, 1+1j, 0, 0).
    mixer = SpectralMixer(8, 1, interpolation="cubic", num_groups=4, pooling_type="mean")
    anchors = torch.cat([torch.ones(4, 22), torch.zeros(4, 22)], dim=-1)
    kernels, lags = mixer.form.kernels(anchors, 64)
    torch.testing.assert_close(kernels, (lags == 0).float().expand(4, -1), atol=1e-6, rtol=0)


def test_log_spacing_has_its_first_step_of_one_bin():
    places = anchor_bins(513, 22, "log")
    assert math.isclose(places[1], 1, rel_tol=1e-6) and places.diff()[-1] > 60
    torch.testing.assert_close(anchor_bins(9, 16, "log"), anchor_bins(9, 16, "linear"))


@pytest.mark.parametrize("length", [1024, 4096])
def test_gates_with_linear_spacing_are_short_kernels(length):
    torch.manual_seed(0)
    bins, root = length // 2 + 1, math.isqrt(length // 2 + 1)
    anchors = torch.randn(200, root, dtype=torch.complex128)
    kernels = torch.fft.irfft(anchors @ anchor_matrix(bins, root, "linear", "linear").to(torch.complex128), length)
    lags = torch.arange(length)
    lags = torch.minimum(lags, length - lags)
    near = (kernels[:, lags <= root].square().sum(1) / kernels.square().sum(1)).mean()
    assert 0.9 < near < 0.99
    assert kernel_span(kernels, lags).double().median() < 2 * root


@pytest.mark.parametrize("length", [1024, 4096])
def test_log_spacing_holds_long_memories_that_linear_spacing_cannot(length):
    bins, reach = length // 2 + 1, length / 16
    spans = {}
    lags = torch.arange(length // 2)
    for spacing in ("linear", "log"):
        frequencies = torch.pi * anchor_bins(bins, math.isqrt(bins), spacing) / (bins - 1)
        re, im = starting_gates(2, frequencies, reach, causal=True)[1].double()
        gate = torch.complex(re, im) @ anchor_matrix(bins, math.isqrt(bins), "linear", spacing).to(torch.complex128)
        spans[spacing] = int(kernel_span(torch.fft.irfft(gate, length)[: length // 2], lags))
    # An exponential of time constant τ has 95 % of its energy within 1.5 τ.
    assert spans["log"] > reach and spans["linear"] < 2 * math.isqrt(bins)


def test_kernel_span_is_the_lag_that_holds_the_energy():
    kernel = torch.zeros(2, 9)
    kernel[0, 4] = 1
    kernel[1, :] = 1
    lags = torch.arange(9) - 4
    assert kernel_span(kernel, lags).tolist() == [0, 4]
    assert kernel_span(kernel, lags, 0.5).tolist() == [0, 2]
    with pytest.raises(InputError, match="energy=0"):
        kernel_span(kernel, lags, 0)


def test_kernel_basis_is_the_kernels_of_unit_anchors():
    basis = kernel_basis(5, 12, "linear", "linear", torch.float64, torch.device("cpu"))
    anchors = torch.randn(5, dtype=torch.complex128)
    spectrum = anchors @ anchor_matrix(13, 5, "linear", "linear").to(torch.complex128)
    expected = torch.fft.irfft(spectrum, 24)[:12]
    torch.testing.assert_close(torch.cat([anchors.real, anchors.imag]) @ basis, expected)


@pytest.mark.parametrize("causal", [True, False])
def test_gates_start_as_smoothings_of_unit_energy_with_rising_spans(causal):
    frequencies = torch.linspace(0, torch.pi, 513, dtype=torch.float64)
    re, im = starting_gates(6, frequencies, 30.0, causal).double().unbind(1)
    kernels = torch.fft.irfft(torch.complex(re, im), 1024)
    torch.testing.assert_close(kernels.square().sum(1), torch.ones(6).double(), atol=1e-5, rtol=0)
    lags = torch.arange(1024)
    if causal:
        assert kernels[:, 512:].abs().max() < 1e-6
    spans = kernel_span(kernels, torch.minimum(lags, 1024 - lags))
    assert spans[0] == 0 and spans[-1] > 20 and (spans.diff() >= 0).all()
