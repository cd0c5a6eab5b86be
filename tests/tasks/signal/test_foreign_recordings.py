"""The recordings of another program are what it says of them: measured here by numpy alone."""

from __future__ import annotations

import math

import numpy as np
import pytest

from blockyard.tasks.signal import open_recordings
from tests.fixtures.foreign_recordings import (
    ROLLOFF,
    constellation,
    pulse,
    to_cu8,
    wideband,
    write_recordings,
    write_wideband,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("foreign")
    return folder, write_recordings(folder, seed=3, symbols=4096)


def test_every_kind_oversampling_and_level_is_there(folder):
    path, found = folder
    assert len(found) == 4 * 2 * 2 + 2 * 2 + 1
    for truth in found:
        (recording,) = open_recordings(path / truth.file)
        assert (recording.count, recording.sample_rate) == (truth.sample_count, truth.sample_rate)
        assert recording.annotations[0].label == truth.label


def matched(samples: np.ndarray, per_symbol: int, offset: float) -> np.ndarray:
    """Symbols at the instants of most power, after the pulse's own filter and the known carrier offset."""
    turned = samples * np.exp(-2j * np.pi * offset * np.arange(len(samples)))
    fine = 8
    taps = np.arange(-11 * per_symbol, 11 * per_symbol + 1)
    best: tuple[float, np.ndarray] | None = None
    for late in range(fine):
        filtered = np.convolve(turned, pulse((taps + late / fine) / per_symbol, ROLLOFF), "same") / per_symbol
        for first in range(per_symbol):
            symbols = filtered[first::per_symbol][20:-20]
            power = float(np.mean(np.abs(symbols) ** 2))
            if best is None or power > best[0]:
                best = power, symbols
    assert best is not None
    return best[1]


@pytest.mark.parametrize("name", ["bpsk", "qpsk", "8psk", "16qam"])
def test_a_matched_filter_finds_the_points_at_the_stated_es_n0(folder, name):
    path, found = folder
    for truth in (t for t in found if t.label == name):
        (recording,) = open_recordings(path / truth.file)
        symbols = matched(recording.read().numpy().astype(complex), int(truth.samples_per_symbol), truth.offset)
        points = constellation(name)
        es_n0 = 10 ** (truth.es_n0 / 10)
        # E|y|² = Es + N0 after the filter; the angle by trial.
        symbols = symbols / math.sqrt(np.mean(np.abs(symbols) ** 2) / (1 + 1 / es_n0))
        errors = []
        for angle in np.arange(0, np.pi, np.pi / 90):
            apart = np.abs(symbols[:1500, None] * np.exp(1j * angle) - points).min(1)
            errors.append(np.mean(apart**2))
        # Wrong decisions make the nearest point nearer than the sent one; so they do for points and noise alone.
        drawn = np.random.default_rng(0)
        noise = (drawn.normal(size=20_000) + 1j * drawn.normal(size=20_000)) * math.sqrt(0.5 / es_n0)
        expected = np.mean(np.abs(drawn.choice(points, 20_000)[:, None] + noise[:, None] - points).min(1) ** 2)
        assert 10 * math.log10(expected / min(errors)) == pytest.approx(0, abs=0.35), truth.file


def test_the_symbol_rate_is_a_line_in_the_spectrum_of_the_power(folder):
    path, found = folder
    for truth in (t for t in found if t.samples_per_symbol):
        (recording,) = open_recordings(path / truth.file)
        power = np.abs(recording.read().numpy()) ** 2
        lines = np.abs(np.fft.rfft(power - power.mean()))
        lines[: len(lines) // 20] = 0
        assert np.argmax(lines) / len(power) == pytest.approx(1 / truth.samples_per_symbol, abs=2 / len(power))


def test_a_wideband_recording_holds_its_bursts_where_it_says(tmp_path):
    name, bursts = write_wideband(tmp_path, seed=1)
    (recording,) = open_recordings(tmp_path / name)
    samples = recording.read().numpy() / 0.01
    assert len(bursts) == 10 and len(recording.annotations) == 10
    for burst in bursts:
        part = samples[burst.start : burst.start + burst.count]
        spectrum = np.abs(np.fft.fft(part)) ** 2 / len(part)
        frequency = np.fft.fftfreq(len(part), 1 / recording.sample_rate)
        inside = spectrum[(frequency > burst.lower) & (frequency < burst.upper)]
        width = (burst.upper - burst.lower) / (1 + ROLLOFF)
        # Noise has density 1; a symbol's energy over it, over the band of the symbol rate.
        found = (inside.sum() - len(inside)) / (width / recording.sample_rate * len(part))
        assert 10 * math.log10(found) == pytest.approx(burst.snr, abs=1.0)
    quiet, none = wideband(0.05, bursts=0)
    assert none == [] and np.mean(np.abs(quiet) ** 2) == pytest.approx(1, abs=0.02)


def test_bytes_have_their_middle_at_128(tmp_path):
    name, _ = write_wideband(tmp_path, seconds=0.05, kind="cu8")
    (recording,) = open_recordings(tmp_path / name)
    samples = recording.read()
    assert abs(complex(samples.mean())) < 0.01 and 0.03 < float(samples.abs().square().mean()) < 0.2
    assert len(to_cu8(np.zeros(4, complex) + 1)) == 8
