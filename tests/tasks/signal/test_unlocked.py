"""The bound of unknown phase and timing, beside the matched filter and the likelihood in loops."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.bound import maximum_likelihood_bound
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.generator import SignalGenerator
from blockyard.tasks.signal.modulations import constellation
from blockyard.tasks.signal.unlocked import average_likelihood_bound, log_likelihood, matched
from tests.fixtures.signals import generator
from tests.tasks.signal import twin


def unlocked(n=3, snr=100.0, **options):
    config = SignalDataConfig(scenario="unlocked", **{"modulations": "bpsk,qpsk", "length": 64, **options})
    return SignalGenerator(config).generate(n, generator(), snr=torch.full((n,), float(snr)))


def test_the_matched_filter_at_the_right_instant_gives_back_the_symbols():
    made = unlocked(timing=0.0, phase=0.0)
    found = matched(made.iq, torch.zeros(1), 4, 0.35)[:, 0]
    points = torch.zeros(2, 4, dtype=torch.complex128)
    points[0, :2], points[1] = constellation("bpsk"), constellation("qpsk")
    sent = points[made.modulation[:, None], made.symbols].to(torch.complex64)
    torch.testing.assert_close(found, sent, atol=1e-3, rtol=0)


@pytest.mark.parametrize("late", [0.0, 0.3])
def test_the_matched_filter_is_the_sum_over_pulses(late):
    made = unlocked(1, snr=10)
    found = matched(made.iq, torch.tensor([late]), 4, 0.35)[0, 0]
    expected = torch.tensor(twin.matched(made.iq[0].tolist(), late, 4, 0.35), dtype=torch.complex64)
    # The pulses of the slow way end after 16 symbols.
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("name", ["bpsk", "qpsk", "8psk"])
@pytest.mark.parametrize("snr", [-3.0, 6.0])
def test_the_likelihood_is_the_mean_over_phases_and_timings_term_by_term(name, snr):
    iq = unlocked(1, snr=snr, length=32).iq.to(torch.complex128)
    variance, points, terms = 10 ** (-snr / 10), constellation(name).tolist(), []
    lates = [k / 40 for k in range(40)]
    outputs = matched(iq, torch.tensor(lates, dtype=torch.float64), 4, 0.35)[0].tolist()
    for z in outputs:
        for k in range(96):
            turn = cmath.exp(-2j * math.pi * k / 96)
            total = 0.0
            for value in z:
                inner = [math.exp((2 * (s.conjugate() * value * turn).real - abs(s) ** 2) / variance) for s in points]
                total += math.log(sum(inner) / len(inner))
            terms.append(total)
    most = max(terms)
    slow = most + math.log(sum(math.exp(t - most) for t in terms) / len(terms))
    found = float(log_likelihood(iq.to(torch.complex64), name, snr, 4, 0.35)[0])
    # The other grid is as fine as the likelihood is wide: the means agree to a few hundredths.
    assert found == pytest.approx(slow, abs=0.05)


def test_two_passes_give_what_one_fine_pass_does():
    """At 12 dB the grid is gone through coarsely first; a likelihood that is told a finer one by hand agrees."""
    iq = unlocked(4, snr=12, length=128).iq
    fast = log_likelihood(iq, "qpsk", 12.0, 4, 0.35)
    from blockyard.tasks.signal.unlocked import _grid

    late, turns = torch.arange(160) / 160, math.pi / 2 * torch.arange(120) / 120
    slow = _grid(matched(iq, late, 4, 0.35), turns, "qpsk", 10**-1.2).flatten(1).logsumexp(1) - math.log(160 * 120)
    torch.testing.assert_close(fast, slow, atol=0.05, rtol=0)


def test_the_bound_lies_below_the_coherent_one_and_rises():
    classes, snr = ("bpsk", "qpsk", "8psk"), (-6.0, 0.0, 6.0)
    found = average_likelihood_bound(classes, 128, snr, frames=200)
    known = maximum_likelihood_bound(classes, 32, snr, frames=2000)
    assert not found.coherent and list(found.accuracy) == sorted(found.accuracy)
    assert all(a <= b + 0.08 for a, b in zip(found.accuracy, known.accuracy)) and found.accuracy[-1] > 0.85
    with pytest.raises(InputError, match="multiple of samples_per_symbol"):
        average_likelihood_bound(classes, 30, snr)
