"""Bursts in time and frequency, against recordings of another program that say where they are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.frontend import Detector
from blockyard.tasks.signal.frontend.cutting import Cut, Wanted, between, bursts_of
from blockyard.tasks.signal.frontend.detection import BINS, ROW, Burst
from blockyard.tasks.signal.frontend.regions import Regions
from blockyard.tasks.signal.recordings.recording import Recording, Span
from tests.fixtures.foreign_recordings import constellation, noise, shaped, wideband

scipy = pytest.importorskip("scipy.signal", reason="extra signals")
RATE = 2e6


class Numbers:
    """Samples in memory, as a recording has them."""

    channels = 1

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples.astype(np.complex64)

    def read(self, start: int, count: int, channel: int) -> np.ndarray:
        return self.samples[start : start + count].copy()


def recording(samples: np.ndarray, *spans: tuple[int, int]) -> Recording:
    cut = tuple(Span(start, count) for start, count in spans) or (Span(0, len(samples)),)
    return Recording("x", "numbers", Numbers(samples), cut, RATE)


def white(count: int, seed: int = 0) -> np.ndarray:
    return noise(count, np.random.default_rng(seed))


def detected(samples: np.ndarray, size: int = 1 << 18) -> list[Burst]:
    detector, found = Detector(), {}
    wide = torch.from_numpy(samples.astype(np.complex64))
    for start in range(0, len(wide), size):
        found |= {burst.number: burst for burst in detector.push(start, wide[start : start + size])}
    found |= {burst.number: burst for burst in detector.finish()}
    assert not any(burst.is_open for burst in found.values())
    return sorted(found.values(), key=lambda burst: burst.start)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    """What two stretches share, over what they cover together."""
    return max(min(a[1], b[1]) - max(a[0], b[0]), 0.0) / (max(a[1], b[1]) - min(a[0], b[0]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1 << 16, 1 << 20], ids=["small blocks", "one block"])
def test_every_burst_is_found_where_it_is_and_nothing_else(seed: int, size: int) -> None:
    samples, bursts = wideband(0.4, seed=seed)
    found = detected(samples, size)
    assert len(found) == len(bursts)
    for truth in bursts:
        band = (truth.lower / RATE, truth.upper / RATE)
        (one,) = [b for b in found if overlap((b.lower, b.upper), band) > 0.3
                  and overlap((b.start, b.stop), (truth.start, truth.start + truth.count)) > 0.3]  # fmt: skip
        # A row is 2048 samples: its first and last are told to half of it by their power.
        assert abs(one.start - truth.start) < ROW / 2 and abs(one.stop - truth.start - truth.count) < ROW / 2
        # The stated edges are where the pulses' spectrum is 0, the found ones where it is a tenth; bins are 1/512.
        assert overlap((one.lower, one.upper), band) > 0.7
        assert abs(one.centre - (band[0] + band[1]) / 2) < 0.1 * (band[1] - band[0]) + 1 / BINS
        # SNR in the band at a tenth, 1.2 symbol rates wide, is lower than Es/N0 by as much.
        assert one.snr == pytest.approx(truth.snr - 10 * math.log10(1.2), abs=1.5)


def test_weak_bursts_are_found() -> None:
    """QPSK at 50 kBd for 10 ms in noise of 2 MS/s, at an Es/N0 of 3 dB: 14 dB below the noise of the whole band."""
    count, per_symbol = 20_000, 40.0
    for seed in range(8):
        samples, drawn = white(1 << 18, seed), np.random.default_rng(100 + seed)
        burst = shaped(constellation("qpsk"), count, per_symbol, drawn) * 10 ** (3 / 20) / per_symbol**0.5
        samples[60_000:80_000] += burst * np.exp(2j * np.pi * 0.13 * np.arange(count))
        (found,) = detected(samples)
        assert found.lower < 0.13 < found.upper
        # Cells of noise beside so weak a burst may be taken for its first or last.
        assert abs(found.start - 60_000) < 3 * ROW and abs(found.stop - 80_000) < 3 * ROW


def test_noise_alone_gives_no_burst() -> None:
    """The thresholds are made for less than one false alarm in a billion samples; here are thirty million."""
    detector = Detector()
    for block in range(30):
        samples = torch.from_numpy(white(1 << 20, block).astype(np.complex64))
        assert detector.push(block << 20, samples) == []


def test_a_receivers_passband_is_no_signal() -> None:
    """Noise that falls by 12 dB towards the edges of the band, as behind a receiver's filter."""
    taps = scipy.firwin(63, 0.8)
    assert detected(scipy.lfilter(taps, 1, white(1 << 21))) == []


def test_what_is_always_there_is_found_all_the_same() -> None:
    count = 1 << 20
    tone = 0.3 * np.exp(2j * np.pi * 0.123 * np.arange(count))
    (found,) = detected(white(count) + tone)
    assert found.start == 0 and count - found.stop < ROW
    assert found.lower < 0.123 < found.upper and found.width < 8 / BINS


def test_silence_and_short_recordings_give_nothing() -> None:
    assert detected(np.zeros(1 << 18)) == [] and detected(white(ROW - 1)) == [] and detected(white(3 * ROW)) == []


def test_zeros_before_the_samples_are_no_noise_floor() -> None:
    # A squelch that opens: what follows is noise, not signals all over the band.
    samples = np.concatenate([np.zeros(40 * ROW), white(60 * ROW)])
    assert detected(samples) == [] and detected(samples, size=8 * ROW) == []


def test_a_line_without_noise_is_one_signal() -> None:
    # What rounding and the window's sidelobes leave beside it is none.
    (found,) = detected(0.3 * np.exp(2j * np.pi * 0.123 * np.arange(64 * ROW)))
    assert found.lower < 0.123 < found.upper and found.width < 0.05


def test_samples_whose_power_is_beyond_single_precision_are_refused() -> None:
    with pytest.raises(InputError, match="beyond single precision"):
        detected(1e30 * white(8 * ROW))


def test_regions_of_a_stream_are_those_of_the_whole() -> None:
    """Rectangles apart from one another, in blocks of any number of rows."""
    drawn = np.random.default_rng(0)
    rows = np.ones((400, 64), np.float32)
    expected = []
    for column in range(4):
        place = 5
        while place < 380:
            height, width = int(drawn.integers(2, 60)), int(drawn.integers(1, 9))
            height = min(height, 395 - place)
            rows[place : place + height, 16 * column + 2 : 16 * column + 2 + width] = 50
            expected.append((place, place + height - 1, 16 * column + 2, 16 * column + 1 + width))
            place += height + int(drawn.integers(8, 30))
    for size in (1, 7, 64, 400):
        regions, found = Regions(64, 2.0, 4.0, 20.0), {}
        for start in range(0, len(rows), size):
            found |= {region.number: region for region in regions.push(rows[start : start + size])}
        found |= {region.number: region for region in regions.finish()}
        assert sorted((r.first, r.last, r.lower, r.upper) for r in found.values()) == sorted(expected), size
        for region in found.values():
            assert region.spectrum == pytest.approx(rows[region.first : region.last + 1].sum(0))


def test_a_burst_in_pieces_is_the_burst_cut_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shifted, filtered and decimated in blocks, against scipy over the whole burst in double precision."""
    samples, _ = wideband(0.2, seed=5, bursts=1)
    wanted = Wanted(256, (0.075, 0.375))
    monkeypatch.setattr("blockyard.tasks.signal.frontend.cutting.ENOUGH_ROWS", 8)
    frames, burst, stop = [], None, 0
    for part in bursts_of(recording(samples), 0, wanted, size=6 * ROW):
        frames.append(part.frames)
        # What was taken in while it went on is kept, though its end is put a part of a row earlier.
        stop = max(stop, part.burst.stop)
        burst = part.burst if burst is None else burst
        last = part.burst
    assert len(frames) > 2 and burst is not None and not last.is_open
    ratio = wanted.ratio(burst)
    place = np.arange(burst.start, stop)
    shifted = samples[burst.start : stop] * np.exp(-2j * np.pi * burst.centre * place)
    whole = scipy.resample_poly(shifted, ratio.numerator, ratio.denominator)
    count = len(whole) // 256
    made = torch.cat(frames).numpy()
    assert made.shape == (count, 256)
    assert np.abs(made - whole[: count * 256].reshape(count, 256)).max() < 1e-4 * np.abs(whole).max()
    # Around 0 Hz, and as wide as the training's middle.
    spectrum = np.abs(np.fft.fft(whole)) ** 2
    frequency = np.fft.fftfreq(len(whole))
    assert abs((spectrum * frequency).sum() / spectrum.sum()) < 0.02


def test_the_ratio_brings_a_burst_to_what_the_training_had() -> None:
    wanted = Wanted(1024, (0.075, 0.375))

    def burst(width: float, count: int, is_open: bool = False) -> Burst:
        return Burst(1, 0, count, -width / 2, width / 2, 10.0, is_open, 100)

    for width in (0.01, 0.03, 0.1, 0.2):
        ratio = wanted.ratio(burst(width, 1 << 20))
        assert ratio is not None and width / float(ratio) == pytest.approx(0.27, rel=0.15)
    # A short one keeps more samples, down to the narrowest that is known, and then it is too short.
    short = wanted.ratio(burst(0.03, 5000))
    assert short is not None and 5000 * short > 1024 and 0.075 <= 0.03 / float(short) < 0.15
    assert wanted.ratio(burst(0.03, 2000)) is None and wanted.ratio(burst(0.2, 1000)) is None
    # A line may be narrower than any modulation.
    assert wanted.ratio(burst(0.003, 3000)) is not None
    given = Wanted(1024, (0.075, 0.375), (64.0, 8.0))
    assert given.ratio(burst(0.02, 1 << 20)) == Fraction(1, 8)


def test_bursts_do_not_reach_over_a_gap() -> None:
    count = 1 << 18
    samples = white(2 * count) + 2 * np.exp(2j * np.pi * 0.1 * np.arange(2 * count))
    parts = list(bursts_of(recording(samples, (0, count), (count, count)), 0, Wanted(256), size=1 << 17))
    ended = [part.burst for part in parts if not part.burst.is_open]
    assert [burst.number for burst in ended] == [1, 2]
    assert ended[0].stop <= count <= ended[1].start


def test_blocks_are_joined_where_a_burst_lies() -> None:
    held = [(0, torch.arange(5)), (5, torch.arange(5, 9)), (9, torch.arange(9, 12))]
    for start, stop in ((0, 12), (3, 10), (5, 9), (6, 7), (9, 12)):
        assert between(held, start, stop).tolist() == list(range(start, stop))
    cut = Cut(Burst(1, 0, 10, -0.1, 0.1, 0.0, True, 1), Fraction(1), 4)
    assert cut.push(torch.ones(6, dtype=torch.complex64), False).shape == (1, 4)
    assert cut.push(torch.ones(6, dtype=torch.complex64), True).shape == (2, 4)
