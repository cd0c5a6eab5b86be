"""The receiver without weights, and what it says of frames: band, symbol rate, symbols, lines, cumulants."""

from __future__ import annotations

import math

import pytest
import torch

from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.cumulant_classifier import CumulantClassifier
from blockyard.tasks.signal.features import CUMULANTS, cumulants, features_of, width_of
from blockyard.tasks.signal.generator import GeneratedSignals, SignalGenerator
from blockyard.tasks.signal.kinds import BLIND
from blockyard.tasks.signal.receiver import SYMBOLS, receive
from tests.fixtures.signals import generator

CLEAN = {"fading": "none", "phase_noise": 0.0, "iq_gain": 0.0, "iq_phase": 0.0, "dc": 0.0, "clock": 0.0}


def received(kind, n=40, snr=30.0, **options):
    config = SignalDataConfig(modulations=f"{kind},{'noise' if kind != 'noise' else 'tone'}", **{**CLEAN, **options})
    iq = (
        SignalGenerator(config)
        .generate(n, generator(1), modulation=torch.zeros(n, dtype=torch.long), snr=torch.full((n,), snr))
        .iq
    )
    return receive(iq / iq.abs().square().mean(1, keepdim=True).sqrt())


@pytest.mark.parametrize("sps", [4, 7, 16])
def test_the_symbol_rate_of_most_frames_is_found_to_a_fifth_of_a_bin(sps):
    found = received("qpsk", samples_per_symbol=sps)
    near = (found.rate - 1 / sps).abs() < 2e-4
    assert float(near.double().mean()) > 0.7
    assert float(found.width.median()) == pytest.approx(1 / sps, rel=0.4)


def test_the_symbols_that_are_read_are_points_of_the_constellation():
    found = received("qpsk", samples_per_symbol=8, rolloff=0.35)
    upright = found.upright(keep_phase=False)
    # An angle of a quarter turn more or less is not told; the fourth power does not see it.
    fourth = upright**4
    middle = slice(8, 100)
    off = (fourth[:, middle] / fourth[:, middle].abs()).mean(1)
    assert float((off.abs() > 0.9).double().mean()) > 0.85
    assert float((off.angle().abs() < 0.3).double().mean()) > 0.85
    assert float(upright.abs()[:, middle].std()) < 0.12


def test_what_is_left_of_the_carrier_is_taken_out_of_the_symbols():
    plain, moved = (received("8psk", samples_per_symbol=8, frequency=f) for f in (0.0, 0.01))
    eighth = [(r.upright(keep_phase=True)[:, :120] ** 8) for r in (plain, moved)]
    lines = [(z / z.abs()).mean(1).abs() for z in eighth]
    assert all(float(line.median()) > 0.7 for line in lines)


@pytest.mark.parametrize(
    "kind, c20, c40, c42",
    [("bpsk", 1.0, 2.0, -2.0), ("qpsk", 0.0, 1.0, -1.0), ("8psk", 0.0, 0.0, -1.0), ("16qam", 0.0, 0.68, -0.68)],
)
def test_cumulants_of_clean_symbols_are_those_of_the_books(kind, c20, c40, c42):
    """Swami and Sadler 2000, table I."""
    found = cumulants(received(kind, samples_per_symbol=4, rolloff=0.35, snr=40.0)).median(0).values
    assert float(found[0]) == pytest.approx(c20, abs=0.1)
    assert float(found[2]) == pytest.approx(c40, abs=0.12)
    assert float(found[6]) == pytest.approx(c42, abs=0.12)


@pytest.mark.parametrize("kind, order", [("bpsk", 1), ("qpsk", 2), ("8psk", 3)])
def test_the_line_of_a_power_tells_how_many_phases_there_are(kind, order):
    best = received(kind, samples_per_symbol=4).lines.amax(2).median(0).values
    assert best[order] > 0.7 and (order == 0 or best[order - 1] < 0.4)


@pytest.mark.parametrize("features", ["cumulants", "spectra", "all"])
def test_features_are_finite_of_the_order_of_one_and_blind_to_the_phase(features):
    config = SignalDataConfig()
    n = len(BLIND) * 8
    modulation = torch.arange(len(BLIND)).repeat_interleave(8)
    iq = SignalGenerator(config).generate(n, generator(), modulation=modulation).iq.to(torch.complex128)
    iq = iq / iq.abs().square().mean(1, keepdim=True).sqrt()
    found = features_of(receive(iq), features)
    assert found.shape == (n, width_of(features)) and torch.isfinite(found).all() and found.abs().max() < 12
    turned = features_of(receive(iq * complex(math.cos(0.7), math.sin(0.7))), features)
    torch.testing.assert_close(turned, found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("frame", ["zeros", "a constant", "one sample", "noise"])
@pytest.mark.parametrize("length", [256, 300, 1024])
def test_frames_without_a_signal_give_numbers_all_the_same(frame, length):
    x = torch.zeros(2, length, dtype=torch.complex64)
    if frame == "a constant":
        x += 1
    elif frame == "one sample":
        x[:, 7] = length**0.5
    elif frame == "noise":
        x = torch.randn(2, length, generator=generator(), dtype=torch.complex64)
    found = receive(x)
    assert found.symbols.shape == (2, SYMBOLS) and torch.isfinite(features_of(found, "all")).all()


def test_a_frame_is_received_alike_whatever_stands_beside_it():
    x = torch.randn(5, 512, generator=generator(), dtype=torch.complex128)
    together = features_of(receive(x), "all")
    alone = torch.cat([features_of(receive(x[i : i + 1]), "all") for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-9)


def test_the_baseline_tells_clean_constellations_by_their_cumulants():
    config = SignalDataConfig(modulations="bpsk,qpsk,16qam", snr_min=20.0, snr_max=25.0, val_frames=20, **CLEAN)
    source = GeneratedSignals(config)
    scores = CumulantClassifier(source).scores(source.validation.iq)
    assert scores.shape == (120, 3) and CUMULANTS == 9
    assert float((scores.argmax(-1) == source.validation.modulation).double().mean()) > 0.85
