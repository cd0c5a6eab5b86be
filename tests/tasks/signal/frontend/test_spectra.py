"""What spectra tell of recordings whose truth is known: floors, bands, SNRs of frames, symbol rates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blockyard.tasks.signal.frontend import frame_snr, symbol_rate
from blockyard.tasks.signal.frontend.spectra import BINS, averaged, noise_floor, occupied_band, windows_of
from tests.fixtures.foreign_recordings import constellation, noise, shaped


def received(name: str, per_symbol: float, es_n0: float, count: int = 65_536, seed: int = 0, offset: float = 0.004):
    drawn = np.random.default_rng(seed)
    sent = shaped(constellation(name), count, per_symbol, drawn) * np.exp(2j * np.pi * offset * np.arange(count))
    samples = sent + noise(count, drawn) * 10 ** (-es_n0 / 20) * per_symbol**0.5
    return torch.from_numpy(samples.astype(np.complex64))


def band_of(samples: torch.Tensor):
    return occupied_band(averaged(samples, BINS), windows_of(len(samples), BINS))


def test_noise_of_power_one_has_a_spectrum_of_one_and_a_line_its_power_times_the_bins() -> None:
    white = torch.from_numpy(noise(1 << 18, np.random.default_rng(0)).astype(np.complex64))
    assert averaged(white, 64).mean() == pytest.approx(1, abs=0.01)
    floor, share = noise_floor(averaged(white.view(-1, 1024), 64), windows_of(1024, 64))
    # Four deviations leave out next to nothing, and so next to no bias.
    assert float(floor.mean()) == pytest.approx(1, abs=0.02) and float(share.mean()) > 0.95
    tone = torch.exp(2j * torch.pi * 8 / 64 * torch.arange(4096)).to(torch.complex64)
    assert float(averaged(tone, 64).max()) == pytest.approx(64 * 2 / 3, rel=1e-3)


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("per_symbol", [4, 6.5, 8, 16])
@pytest.mark.parametrize("name", ["qpsk", "16qam"])
def test_the_snr_of_a_frame_is_right_to_a_decibel_and_a_half(name: str, per_symbol: float, length: int) -> None:
    for es_n0 in (5.0, 10.0, 20.0):
        frames = received(name, per_symbol, es_n0).view(-1, length)
        known = frame_snr(frames, per_symbol)
        blind = frame_snr(frames)
        for found in (known, blind):
            assert float(found.isnan().double().mean()) < 0.02
            found = found[~found.isnan()]
            assert float(found.median()) == pytest.approx(es_n0, abs=1.0), (es_n0, per_symbol)
            inside = (found - es_n0).abs() < 1.5
            # A frame of 32 symbols has more energy than the next, or less: one in seven by more than that.
            least = 0.9 if es_n0 > 5 and length / per_symbol > 60 else 0.7
            assert float(inside.double().mean()) > least, (es_n0, per_symbol)


def test_where_nothing_can_be_said_of_the_snr_nothing_is_said() -> None:
    # A sample a symbol: the signal fills the band, and looks as noise does.
    full = received("qpsk", 1, 10.0).view(-1, 1024)
    found = frame_snr(full)
    assert float(found.isnan().double().mean()) > 0.8 and float(found.nan_to_num(-9.0).max()) < 1
    white = torch.from_numpy(noise(65_536, np.random.default_rng(1)).astype(np.complex64)).view(-1, 1024)
    assert float(frame_snr(white).isnan().double().mean()) > 0.9
    # Frames too short for a spectrum, and silence.
    assert bool(frame_snr(full[:, :64]).isnan().all()) and bool(frame_snr(torch.zeros_like(full)).isnan().all())


@pytest.mark.parametrize("per_symbol", [4, 8, 11.3, 32])
def test_band_and_symbol_rate_are_those_that_were_sent(per_symbol: float) -> None:
    samples = received("qpsk", per_symbol, 12.0, 1 << 18)
    band = band_of(samples)
    assert band is not None
    # The band at a tenth of its level lies between the symbol rate and all of 1.35 of it.
    assert 1.0 < band.width * per_symbol < 1.36 and band.centre == pytest.approx(0.004, abs=0.05 / per_symbol + 1e-3)
    line = symbol_rate(samples, band)
    assert line is not None and line.rate == pytest.approx(1 / per_symbol, rel=1e-4) and line.above > 10


def test_what_has_no_symbols_has_no_line() -> None:
    count, drawn = 1 << 17, np.random.default_rng(2)
    white = torch.from_numpy(noise(count, drawn).astype(np.complex64))
    assert band_of(white) is None
    turned = np.cumsum(np.convolve(drawn.normal(size=count), np.ones(40) / 40, "same")) * 0.5
    spoken = torch.from_numpy((np.exp(1j * turned) + 0.1 * noise(count, drawn)).astype(np.complex64))
    band = band_of(spoken)
    assert band is not None and symbol_rate(spoken, band) is None


@pytest.mark.parametrize("snr", [10.0, 30.0, 60.0, 300.0])
def test_a_line_is_as_narrow_however_strong_it_is(snr: float) -> None:
    # Between two bins, where the window's sidelobes are highest.
    count = 1 << 16
    line = np.exp(2j * np.pi * (20.5 / BINS) * np.arange(count))
    samples = line + noise(count, np.random.default_rng(0)) * 10 ** (-snr / 20)
    band = band_of(torch.from_numpy(samples.astype(np.complex64)))
    assert band is not None and band.width < 5 / BINS and abs(band.centre - 20.5 / BINS) < 1 / BINS
