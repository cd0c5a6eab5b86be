"""Generated signals: points, pulses, noise, offsets and fading as they are defined, by seed and step."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.generator import GeneratedSignals
from blockyard.tasks.signal.modulations import (
    MODULATIONS,
    USUAL,
    constellation,
    parse_modulations,
    product_levels,
    symmetry_order,
)
from blockyard.tasks.signal.synchronised import root_raised_cosine
from tests.fixtures.signals import frames

SIZES = {"bpsk": 2, "pam4": 4, "qpsk": 4, "8psk": 8, "16qam": 16, "64qam": 64, "16apsk": 16, "32apsk": 32,
         "32qam": 32, "128qam": 128, "256qam": 256, "ook": 2, "32psk": 32}  # fmt: skip


# Modulations


@pytest.mark.parametrize("name", MODULATIONS)
def test_points_are_distinct_and_of_unit_power(name):
    points = constellation(name)
    assert len(points) == SIZES.get(name, len(points))
    assert float(points.abs().square().mean()) == pytest.approx(1)
    distance = (points[:, None] - points).abs() + 9 * torch.eye(len(points))
    assert distance.min() > 0.05
    order = symmetry_order(name)
    turned = points * cmath.exp(2j * math.pi / order)
    assert (turned[:, None] - points).abs().amin(1).max() < 1e-9


def test_grids_are_known_as_products_and_symmetries_as_turns():
    assert {n for n in MODULATIONS if product_levels(n)} >= {"bpsk", "pam4", "qpsk", "16qam", "64qam", "ook"}
    assert product_levels("8psk") is None and product_levels("32qam") is None
    assert [symmetry_order(n) for n in ("ook", "bpsk", "16qam", "8psk")] == [1, 2, 4, 8]


def test_rings_of_dvb_s2_lie_where_the_standard_has_them():
    def angles(name, ring):
        points = constellation(name)
        radii = sorted({round(float(r), 6) for r in points.abs()})
        chosen = points[(points.abs() - radii[ring]).abs() < 1e-5]
        return sorted(round(float(a) / math.pi * 24) % 48 for a in chosen.angle()), len(radii)

    assert angles("16apsk", 0) == ([6, 18, 30, 42], 2)
    assert angles("16apsk", 1) == (list(range(2, 48, 4)), 2)
    # In 24ths of a half turn: quarters from 45 degrees, twelfths from 15, sixteenths from 0.
    assert angles("32apsk", 0) == ([6, 18, 30, 42], 3)
    assert angles("32apsk", 1) == (list(range(2, 48, 4)), 3)
    assert angles("32apsk", 2) == (list(range(0, 48, 3)), 3)


def test_a_run_whose_points_were_others_does_not_go_on():
    was = GeneratedSignals(SignalDataConfig(scenario="synchronised", modulations="bpsk,qpsk")).fingerprint
    now = GeneratedSignals(SignalDataConfig(scenario="synchronised", modulations="bpsk,32apsk")).fingerprint
    assert not any(key.endswith("sha256") for key in was) and "points_of_32apsk_sha256" in now


def test_unknown_or_too_few_modulations_are_refused():
    assert parse_modulations("usual") == USUAL and len(parse_modulations("all")) == len(MODULATIONS)
    with pytest.raises(InputError, match=r"no modulation named '16qma' \(did you mean '16qam'\?\)"):
        parse_modulations("16qma,bpsk")
    with pytest.raises(InputError, match="at least two different names"):
        parse_modulations("bpsk,bpsk")


# Generation


def test_batches_are_pure_functions_of_seed_and_step_whoever_takes_which_rows():
    data = GeneratedSignals(SignalDataConfig(scenario="synchronised", length=16))
    whole = data.batch(3, 7, 8, slice(0, 8))
    parts = [data.batch(3, 7, 8, rows) for rows in (slice(0, 3), slice(3, 8))]
    for key in whole:
        assert torch.equal(whole[key], torch.cat([p[key] for p in parts]))
    assert not torch.equal(whole["iq"], data.batch(3, 8, 8, slice(0, 8))["iq"])
    assert not torch.equal(whole["iq"], data.batch(4, 7, 8, slice(0, 8))["iq"])


@pytest.mark.parametrize("sps", [1, 4])
def test_the_snr_is_symbol_energy_over_noise_density(sps):
    options = {"length": 64 * sps, "samples_per_symbol": sps}
    clean, noisy = frames(200, snr=100, **options), frames(200, snr=3, **options)
    signal, noise = clean.iq.abs().square().mean(), (noisy.iq - clean.iq).abs().square().mean()
    assert float(signal) == pytest.approx(1, rel=0.05)
    assert float(10 * torch.log10(sps * signal / noise)) == pytest.approx(3, abs=0.15)


def test_at_one_sample_per_symbol_samples_are_the_points():
    made = frames(20, snr=100, length=9)
    points = torch.stack([torch.nn.functional.pad(constellation(n), (0, 64 - len(constellation(n)))) for n in USUAL])
    expected = points[made.modulation[:, None], made.symbols].to(torch.complex64)
    torch.testing.assert_close(made.iq, expected, atol=1e-3, rtol=0)


def test_a_matched_filter_gives_back_the_symbols():
    sps, span = 8, 6
    made = frames(1, snr=100, modulations="qpsk,bpsk", target="symbols", length=64 * sps, samples_per_symbol=sps)
    times = torch.arange(-span * sps, span * sps + 1) / sps
    pulse = root_raised_cosine(times, 0.35)
    assert float(pulse.square().sum() / sps) == pytest.approx(1, rel=1e-3)
    sent = constellation("qpsk")[made.symbols[0]]
    for n in range(span, 64 - span):
        window = made.iq[0, n * sps - span * sps : n * sps + span * sps + 1]
        found = (window * pulse).sum() / sps
        assert abs(complex(found) - complex(sent[n])) < 0.03


def test_the_pulse_is_smooth_at_its_singular_points():
    for rolloff in (0.2, 0.35, 1.0):
        for t in (0.0, 1 / (4 * rolloff)):
            at = root_raised_cosine(torch.tensor([t - 1e-4, t, t + 1e-4]), rolloff)
            assert float(at.max() - at.min()) < 1e-3


def test_offsets_turn_and_shift_what_is_sent():
    base = {"length": 32, "samples_per_symbol": 4, "snr_min": 100, "snr_max": 100}
    plain = frames(8, **base)
    phased = frames(8, **base, phase=3.0)
    ratio = phased.iq / plain.iq
    torch.testing.assert_close(ratio.abs(), torch.ones(8, 32), atol=1e-2, rtol=0)
    assert ratio.angle().std(dim=1).max() < 1e-2 and ratio.angle()[:, 0].std() > 0.5
    turning = (frames(8, **base, frequency=0.05).iq / plain.iq).angle()
    steps = torch.polar(torch.ones(8, 31), turning.diff(dim=1)).angle()
    assert steps.std(dim=1).max() < 2e-2 and steps.abs().max() < 2 * math.pi * 0.05 + 1e-2
    assert not torch.allclose(frames(8, **base, timing=0.5).iq, plain.iq, atol=0.05)


@pytest.mark.parametrize("fading", ["rayleigh", "rician"])
def test_fading_has_unit_mean_power_and_varies_from_frame_to_frame(fading):
    power = frames(4000, snr=100, length=16, fading=fading).iq.abs().square().mean(1)
    assert float(power.mean()) == pytest.approx(1, rel=0.06)
    assert float(power.std()) > 0.2


def test_settings_that_make_no_signal_are_refused_by_name():
    for options, message in (
        ({"length": 0}, "data.length=0"),
        ({"rolloff": 0.0}, "data.rolloff=0.0"),
        ({"snr_min": 5, "snr_max": 0}, "data.snr_min=5"),
        ({"timing": 0.3}, "data.samples_per_symbol to 2"),
        ({"length": 10, "samples_per_symbol": 4}, "multiple of data.samples_per_symbol"),
        ({"phase": -1.0}, "data.phase=-1.0"),
        ({"fading": "flat"}, "none, rayleigh or rician"),
        ({"frequency": 0.7}, "in cycles per sample, at most 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            SignalDataConfig(**{"scenario": "synchronised", **options})


def test_validation_holds_equally_many_frames_of_every_class_and_snr():
    grid = {"scenario": "synchronised", "length": 8, "val_frames": 3, "snr_min": -4, "snr_max": 7, "snr_step": 5}
    v = GeneratedSignals(SignalDataConfig(**grid)).validation
    assert sorted(set(v.snr.tolist())) == [-4, 1, 6] and len(v.iq) == 3 * 6 * 3
    assert torch.bincount(v.modulation).tolist() == [9] * 6
    again = GeneratedSignals(SignalDataConfig(**grid)).validation
    assert torch.equal(v.iq, again.iq)
