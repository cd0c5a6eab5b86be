"""Resampling in a stream, against scipy's resampling of the whole in double precision."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard import InputError
from blockyard.tasks.signal.familiar import AT_A_TENTH, Familiar
from blockyard.tasks.signal.frontend import Resampler
from blockyard.tasks.signal.frontend.resampling import Plan, plan_for, simple
from blockyard.tasks.signal.frontend.spectra import BINS, Band, averaged, occupied_band, windows_of
from tests.fixtures.foreign_recordings import constellation, shaped
from tests.fixtures.foreign_recordings import noise as white

signal = pytest.importorskip("scipy.signal", reason="extra signals")


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.complex64)


@pytest.mark.parametrize("ratio", ["1/2", "3/2", "2/3", "7/100", "9/4", "441/625", "1/1"])
def test_blocks_of_any_size_make_what_the_whole_makes(ratio: str) -> None:
    samples, drawn = noise(30_011), np.random.default_rng(0)
    p, q = map(int, ratio.split("/"))
    whole = signal.resample_poly(samples.numpy().astype(complex), p, q)
    resampler, parts, place = Resampler(Fraction(ratio)), [], 0
    while place < len(samples):
        size = int(drawn.integers(0, 4000))
        parts.append(resampler.push(samples[place : place + size]))
        place += size
    made = torch.cat([*parts, resampler.push(samples[:0], last=True)])
    assert len(made) == len(whole)
    # Sums of up to 1300 products in single precision, of samples near 1.
    assert np.abs(made.numpy() - whole).max() < 5e-6
    # And not one bit depends on how the blocks were cut.
    assert torch.equal(made, Resampler(Fraction(ratio)).push(samples, last=True))
    # A resampler that has ended is as new.
    assert torch.equal(made, resampler.push(samples, last=True))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_short_streams_are_whole_too(p: int, q: int, sizes: list[int]) -> None:
    ratio, samples = Fraction(p, q), noise(sum(sizes) + 1)
    whole = samples if ratio == 1 else Resampler(ratio).push(samples, last=True)
    resampler, parts, place = Resampler(ratio), [], 0
    for size in sizes:
        parts.append(resampler.push(samples[place : place + size]))
        place += size
    made = torch.cat([*parts, resampler.push(samples[place:], last=True)])
    assert len(made) == -(-len(samples) * ratio.numerator // ratio.denominator)
    assert torch.allclose(made, whole, atol=1e-6)


def test_output_stays_at_the_time_of_its_input() -> None:
    """A pulse in the middle of the input is in the middle of the output: m lies at m·q/p."""
    samples = torch.zeros(2000, dtype=torch.complex64)
    samples[1200] = 1
    made = Resampler(Fraction(3, 4)).push(samples, last=True)
    assert int(made.abs().argmax()) == 900


TRAINED = Familiar({}, samples_per_symbol=(4.0, 16.0), bandwidth=(0.075, 0.375))


@pytest.mark.parametrize(
    "per_symbol, ratio, after",
    [(4, 1, 4), (16, 1, 16), (7.3, 1, 7.3), (2, 4, 8), (32, Fraction(1, 4), 8), (100, Fraction(2, 25), 8)],
)
def test_a_symbol_rate_gives_the_ratio(per_symbol: float, ratio: Fraction, after: float) -> None:
    plan = plan_for(TRAINED, None, per_symbol, None)
    assert 4 <= plan.per_symbol <= 16 and plan.per_symbol == pytest.approx(after, rel=0.11)
    assert plan.ratio == ratio or float(plan.ratio) == pytest.approx(float(ratio), rel=0.11)
    assert f"{per_symbol:.4g} samples a symbol" in plan.why


def test_one_rate_in_training_is_met_to_a_ten_thousandth() -> None:
    plan = plan_for(Familiar({}, samples_per_symbol=(4.0, 4.0)), None, 7.37, None)
    assert plan.per_symbol == pytest.approx(4, rel=1e-4)
    # At one sample a symbol a matched filter and timing come first: resampling is neither.
    assert plan_for(None, 1.0, 4.0, None).ratio == 1
    assert "do" not in plan_for(None, None, None, None).why


@pytest.mark.parametrize(
    "width, is_resampled", [(0.2, False), (0.08, False), (0.03, True), (0.6, True), (0.002, False)],
    ids=["known", "at the edge", "narrow", "wide", "a tone"],
)  # fmt: skip
def test_a_bandwidth_beside_the_trainings_is_brought_into_it(width: float, is_resampled: bool) -> None:
    plan = plan_for(TRAINED, None, None, Band(-width / 2, width / 2, 1.0, 0.1, 0.5))
    assert (plan.ratio != 1) == is_resampled
    if is_resampled:
        assert 0.075 <= width / float(plan.ratio) <= 0.375 and "occupied bandwidth" in plan.why
    else:
        assert plan == Plan()


@given(st.floats(1e-3, 900), st.floats(1.0, 4.0))
@settings(max_examples=200, deadline=None)
def test_a_simple_ratio_lies_between_its_bounds(wanted: float, slack: float) -> None:
    ratio = simple(wanted, wanted / slack, wanted * slack)
    assert max(ratio.numerator, ratio.denominator) <= 1000
    assert float(ratio) == pytest.approx(wanted, rel=0.1001 if slack > 1.2 else 0.11)


def test_a_ratio_beyond_a_thousand_is_refused() -> None:
    with pytest.raises(InputError, match="1 to 1000"):
        Resampler(Fraction(1, 2000))


def test_a_ratio_beyond_what_filters_reach_is_refused() -> None:
    known = Familiar({}, samples_per_symbol=(4.0, 16.0))
    with pytest.raises(InputError, match="too far from the training's 4 to 16"):
        plan_for(known, None, 1e6, None)
    assert plan_for(known, None, 8000.0, None).per_symbol == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize("rolloff", [0.2, 0.35, 0.5])
def test_a_recording_of_the_one_symbol_rate_of_a_training_stays_as_it_is(rolloff: float) -> None:
    # What the run says of its frames is where their spectrum falls to a tenth, which is what is measured.
    drawn, count = np.random.default_rng(0), 1 << 18
    samples = shaped(constellation("qpsk"), count, 8, drawn, rolloff) + 0.3 * white(count, drawn)
    spectrum = averaged(torch.from_numpy(samples.astype(np.complex64)), BINS)
    known = (1 + AT_A_TENTH * rolloff) / 8
    trained = Familiar({}, samples_per_symbol=(8.0, 8.0), bandwidth=(known, known))
    band = occupied_band(spectrum, windows_of(count, BINS))
    assert band is not None and band.width == pytest.approx(known, rel=0.05)
    assert plan_for(trained, None, None, band) == Plan()
