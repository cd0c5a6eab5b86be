"""The maximum-likelihood bound: likelihoods as defined, and who knows less does no better."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.bound import log_likelihoods, maximum_likelihood_bound
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.generator import SignalGenerator
from blockyard.tasks.signal.modulations import (
    USUAL,
    constellation,
)
from tests.fixtures.signals import frames


def slow_likelihood(frame, name, variance, phases):
    """ln of the mean over phases of Π mean_s exp(−|y e^{−iφ} − s|² / σ²), term by term."""
    points, total = constellation(name).tolist(), []
    for phase in phases:
        total.append(
            sum(
                math.log(sum(math.exp(-(abs(y * cmath.exp(-1j * phase) - s) ** 2) / variance) for s in points))
                - math.log(len(points))
                for y in frame
            )
        )
    top = max(total)
    return top + math.log(sum(math.exp(t - top) for t in total) / len(total))


@pytest.mark.parametrize("name, snr", [("bpsk", 4), ("pam4", 4), ("8psk", 4), ("16qam", 4), ("ook", 4), ("bpsk", 14)])
def test_likelihoods_equal_the_definition(name, snr):
    iq = frames(3, seed=4, length=5, snr=snr).iq.to(torch.complex128)
    variance = 10 ** (-snr / 10)
    for coherent, phases in ((True, [0.0]), (False, [2 * math.pi * i / 720 for i in range(720)])):
        found = log_likelihoods(iq, [name], float(snr), coherent=coherent)[:, 0]
        density = 5 * math.log(variance)
        expected = [slow_likelihood(row, name, variance, phases) - density for row in iq.tolist()]
        torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=1e-5)


def test_the_bound_rises_with_snr_and_falls_without_the_phase():
    snr = (-10, 0, 10)
    coherent = maximum_likelihood_bound(USUAL, 32, snr, frames=1500)
    blind = maximum_likelihood_bound(USUAL, 32, (0,), frames=1500, coherent=False)
    assert list(coherent.accuracy) == sorted(coherent.accuracy)
    assert coherent.accuracy[0] > 1 / 6 and blind.accuracy[0] < coherent.accuracy[1] + 0.02
    # 20,000 frames gave 43.9 and 91.3 per cent at 0 and 10 dB.
    assert coherent.accuracy[1] == pytest.approx(0.439, abs=4 * coherent.standard_error[1])
    assert coherent.accuracy[2] == pytest.approx(0.913, abs=4 * coherent.standard_error[2])
    assert all(sum(row) == pytest.approx(1) for row in coherent.confusion[1])


def test_who_does_not_know_the_snr_does_no_better_and_pays_most_where_noise_hides_in_a_fine_constellation():
    known = maximum_likelihood_bound(USUAL, 128, (10,), frames=600)
    unknown = maximum_likelihood_bound(USUAL, 128, (10,), frames=600, snr_range=(-10, 20))
    # The same frames: 4,000 of them gave 92.2 and 96.2 per cent.
    assert unknown.accuracy[0] < known.accuracy[0]
    assert unknown.accuracy[0] == pytest.approx(0.922, abs=4 * unknown.standard_error[0])
    # A range of one level is that level.
    assert maximum_likelihood_bound(USUAL, 32, (5,), frames=200, snr_range=(5, 5)).accuracy == (
        maximum_likelihood_bound(USUAL, 32, (5,), frames=200).accuracy
    )


def test_a_range_of_snr_the_wrong_way_round_is_refused():
    with pytest.raises(InputError, match="lower one first"):
        maximum_likelihood_bound(USUAL, 32, (5,), frames=10, snr_range=(20, -10))


def test_two_modulations_reach_the_textbook_error_rate():
    # BPSK against QPSK of one sample at high SNR: right unless noise crosses over; at 60 dB always.
    assert maximum_likelihood_bound(("bpsk", "qpsk"), 1, (60,), frames=500).accuracy == (1.0,)


def test_the_bound_is_not_beaten_by_knowing_less():
    """The likelihood that averages over phases cannot be right more often than the one that knows it."""

    made = SignalGenerator(SignalDataConfig(scenario="synchronised", length=64, snr_min=5, snr_max=5))
    frames = made.generate(600, torch.Generator().manual_seed(1))
    right = [
        (log_likelihoods(frames.iq, USUAL, 5.0, coherent=coherent).argmax(-1) == frames.modulation).float().mean()
        for coherent in (True, False)
    ]
    assert right[1] < right[0] + 0.03
