"""The parts of spectral mixing: lengths, anchors, kernels, wavelets, pooling, the ring."""

import math

import pytest
import torch

from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache, ModelCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.spectral.basis import anchor_bins, anchor_matrix, kernel_basis, kernel_span, smooth_length
from blockyard.spectral.gate import starting_gates
from blockyard.spectral.haar import WaveletRefinement, haar, inverse_haar
from blockyard.spectral.mixer import SpectralMixer
from blockyard.spectral.pooling import QueryPooling


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


@pytest.mark.parametrize("length", [1, 2, 7, 12, 64, 100, 1009])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_haar_reconstructs_any_length_and_keeps_the_energy(length, levels):
    x = torch.randn(2, 3, length, dtype=torch.float64)
    bands = haar(x, levels)
    torch.testing.assert_close(inverse_haar(bands, length), x)
    torch.testing.assert_close(sum(band.square().sum() for band in bands), x.square().sum())


def test_haar_is_the_pairwise_difference_and_sum():
    detail, rest = haar(torch.tensor([1.0, 3.0, 2.0, 2.0]), 1)
    torch.testing.assert_close(detail, torch.tensor([-math.sqrt(2), 0.0]))
    torch.testing.assert_close(rest, torch.tensor([math.sqrt(8), math.sqrt(8)]))


def test_a_detached_wavelet_branch_passes_no_gradient_but_learns():
    for detach in (False, True):
        branch, x = WaveletRefinement(3, 1.0, detach=detach), torch.randn(2, 3, 8, requires_grad=True)
        with torch.no_grad():
            branch.gates.fill_(0.5)
        branch(x).square().sum().backward()
        assert branch.gates.grad.all() and (x.grad is None) == detach


def test_a_wavelet_rate_of_zero_is_off_everywhere():
    branch, x = WaveletRefinement(3, 0.0), torch.randn(2, 3, 8)
    with torch.no_grad():
        branch.gates.fill_(1)
    assert not branch.train()(x).any() and not branch.eval()(x).any()


def test_pooling_is_what_it_says():
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    counts = torch.tensor([10, 6])
    x[1, 6:] = 0
    matrix = torch.randn(8, 8, dtype=torch.float64)

    def project(rows):
        return rows @ matrix

    for row, n in ((0, 10), (1, 6)):
        q = x[row, :n] @ matrix
        mean = QueryPooling("mean", 2, 4)
        torch.testing.assert_close(mean(x, project, counts, torch.float64)[row], q.mean(0))
        attention = QueryPooling("attention", 2, 4).double()
        heads = q.view(n, 2, 4)
        weights = ((heads * attention.query).sum(-1) / 2).softmax(0)
        expected = (weights[..., None] * heads).sum(0).flatten()
        torch.testing.assert_close(attention(x, project, counts, torch.float64)[row], expected)
        dct = QueryPooling("dct", 2, 4).double()
        time = torch.arange(n).double() + 0.5
        expected = sum(
            (torch.cos(math.pi * m * time / n)[:, None, None] * heads).mean(0) * dct.orders[m, :, None]
            for m in range(4)
        )
        torch.testing.assert_close(dct(x, project, counts, torch.float64)[row], expected.flatten())


def test_the_ring_keeps_the_last_tokens_of_each_row():
    torch.manual_seed(0)
    cache, seen = RingCache(3, 2, 70), [torch.zeros(2, 0) for _ in range(3)]
    for size in [3, 1, 1, 60, 1, 40, 1, 1, 90, 2, 1]:
        values, new = torch.randn(3, 2, size), torch.randint(0, size + 1, (3,))
        cache.write(values, None if size == 40 else new)
        for row in range(3):
            kept = size if size == 40 else int(new[row])
            seen[row] = torch.cat([seen[row], values[row, :, :kept]], dim=1)
        for columns in (1, 5, 70):
            last = cache.last(columns)
            for row in range(3):
                wide = torch.cat([torch.zeros(2, columns), seen[row]], dim=1)
                assert torch.equal(last[row], wide[:, -columns:])
        for row in range(3):
            for slot, age in enumerate(cache.ages()[row].tolist()):
                expected = seen[row][:, -1 - age] if age < seen[row].shape[1] else torch.zeros(2)
                assert torch.equal(cache.ring[row, :, slot], expected)
    assert cache.length == 201 and cache.nbytes == 3 * 70 * 2 * 4 and cache.bytes_per_token == 8


def test_the_ring_goes_back_to_held_snapshots_only():
    cache = RingCache(1, 1, 4)
    cache.write(torch.tensor([[[1.0, 2.0]]]))
    early = cache.snapshot()
    cache.write(torch.tensor([[[3.0, 4.0, 5.0]]]))
    late = cache.snapshot()
    cache.write(torch.tensor([[[6.0]]]))
    with pytest.raises(InputError, match=r"cannot go back to 3.*snapshot"):
        cache.crop(3)
    cache.crop(5)
    assert cache.length == 5 and cache.last(4).flatten().tolist() == [2, 3, 4, 5]
    cache.crop(2)
    assert cache.last(4).flatten().tolist() == [0, 0, 1, 2]
    with pytest.raises(InputError, match="no longer valid"):
        cache.rollback(late)
    cache.write(torch.tensor([[[9.0]]]))
    cache.rollback(early)
    cache.write(torch.tensor([[[8.0]]]))
    assert cache.last(4).flatten().tolist() == [0, 1, 2, 8]
    del early
    with pytest.raises(InputError, match=r"crop\(2\)"):
        cache.crop(2)
    cache.crop(0)
    assert cache.length == 0 and not cache.last(4).any()


def test_a_model_cache_crops_all_layers_or_none():
    plain, ring = LayerCache(1, {"k": (1,)}), RingCache(1, 1, 4)
    cache = ModelCache([plain, ring])
    plain.append(k=torch.randn(1, 3, 1))
    ring.write(torch.randn(1, 1, 3))
    with pytest.raises(InputError, match="running state"):
        cache.crop(2)
    assert plain.length == ring.length == 3
    point = cache.snapshot()
    plain.append(k=torch.randn(1, 3, 1))
    ring.write(torch.randn(1, 1, 3))
    cache.crop(3)
    assert plain.length == ring.length == 3
    cache.rollback(point)


def test_the_ring_refuses_what_does_not_fit():
    cache = RingCache(2, 3, 4, max_len=5)
    with pytest.raises(InputError, match="expected"):
        cache.write(torch.zeros(2, 2, 1))
    with pytest.raises(InputError, match="no_grad"):
        cache.write(torch.zeros(2, 3, 1, requires_grad=True))
    cache.write(torch.zeros(2, 3, 5))
    with pytest.raises(InputError, match="max_len=5"):
        cache.write(torch.zeros(2, 3, 1))
    with pytest.raises(InputError, match="window=0"):
        RingCache(1, 1, 0)


def test_a_ring_has_half_the_bytes_of_keys_and_values():
    mixer = SpectralMixer(64, 2, causal=True, window=256)
    cache = mixer.new_cache(2)
    with torch.no_grad():
        mixer(torch.randn(2, 200, 64), cache=cache)
    state = sum(t.nbytes for t in cache.state.values())
    assert cache.nbytes == 2 * 200 * 64 * 4 + state
    # The running sum, and the anchors of the current chunk's kernels.
    assert state == 2 * 4 * (64 + 8 * 2 * mixer.gate.buckets)
