"""Signals: what is generated, what is read from files, and the maximum-likelihood bound."""

from __future__ import annotations

import cmath
import json
import math

import numpy as np
import pytest
import torch

from blockyard import InputError
from blockyard.tasks.signal.bound import log_likelihoods, maximum_likelihood_bound
from blockyard.tasks.signal.files import RecordedSignals, frames_of, read_iq
from blockyard.tasks.signal.generator import GeneratedSignals, SignalDataConfig, SignalGenerator, root_raised_cosine
from blockyard.tasks.signal.modulations import (
    MODULATIONS,
    USUAL,
    constellation,
    parse_modulations,
    product_levels,
    symmetry_order,
)

SIZES = {"bpsk": 2, "pam4": 4, "qpsk": 4, "8psk": 8, "16qam": 16, "64qam": 64, "16apsk": 16, "32apsk": 32,
         "32qam": 32, "128qam": 128, "256qam": 256, "ook": 2, "32psk": 32}  # fmt: skip


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def frames(n=64, seed=0, snr=None, **options):
    made = SignalGenerator(SignalDataConfig(**options))
    return made.generate(n, generator(seed), snr=None if snr is None else torch.full((n,), float(snr)))


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


def test_unknown_or_too_few_modulations_are_refused():
    assert parse_modulations("usual") == USUAL and len(parse_modulations("all")) == len(MODULATIONS)
    with pytest.raises(InputError, match=r"no modulation named '16qma' \(did you mean '16qam'\?\)"):
        parse_modulations("16qma,bpsk")
    with pytest.raises(InputError, match="at least two different names"):
        parse_modulations("bpsk,bpsk")


# Generation


def test_batches_are_pure_functions_of_seed_and_step_whoever_takes_which_rows():
    data = GeneratedSignals(SignalDataConfig(length=16))
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
        ({"frequency": 0.7}, "half a cycle"),
    ):
        with pytest.raises(InputError, match=message):
            SignalDataConfig(**options)


def test_validation_holds_equally_many_frames_of_every_class_and_snr():
    data = GeneratedSignals(SignalDataConfig(length=8, val_frames=3, snr_min=-4, snr_max=7, snr_step=5))
    v = data.validation
    assert sorted(set(v.snr.tolist())) == [-4, 1, 6] and len(v.iq) == 3 * 6 * 3
    assert torch.bincount(v.modulation).tolist() == [9] * 6
    again = GeneratedSignals(SignalDataConfig(length=8, val_frames=3, snr_min=-4, snr_max=7, snr_step=5)).validation
    assert torch.equal(v.iq, again.iq)


# The bound


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


# Files


@pytest.fixture
def samples():
    return (np.random.default_rng(0).normal(size=(40, 2)) / 4).astype(np.float32)


def test_npy_holds_complex_numbers_or_pairs(tmp_path, samples):
    z = samples[:, 0] + 1j * samples[:, 1]
    for name, array in (("a", z), ("b", samples), ("c", z.reshape(4, 10)), ("d", z.astype(np.complex128))):
        np.save(tmp_path / f"{name}.npy", array)
        found = read_iq(tmp_path / f"{name}.npy")
        assert found.dtype == torch.complex64 and np.allclose(found.numpy().ravel(), z)
    np.savez(tmp_path / "e.npz", iq=z, other=1)
    assert np.allclose(read_iq(tmp_path / "e.npz").numpy(), z)


def write_sigmf(folder, name, datatype, raw):
    (folder / f"{name}.sigmf-meta").write_text(json.dumps({"global": {"core:datatype": datatype}}))
    raw.tofile(folder / f"{name}.sigmf-data")
    return folder / f"{name}.sigmf-meta"


@pytest.mark.parametrize(
    "datatype, make, tolerance",
    [
        ("cf32_le", lambda s: s.astype("<f4"), 1e-6),
        ("cf64_be", lambda s: s.astype(">f8"), 1e-6),
        ("ci16_le", lambda s: np.round(s * 2**15).astype("<i2"), 1e-4),
        ("ci8", lambda s: np.round(s * 2**7).astype("i1"), 1e-2),
        ("cu8", lambda s: np.round(s * 2**7 + 2**7).astype("u1"), 1e-2),
    ],
)
def test_sigmf_types_are_read(tmp_path, samples, datatype, make, tolerance):
    clipped = samples.clip(-0.9, 0.9)
    meta = write_sigmf(tmp_path, "a", datatype, make(clipped).ravel())
    expected = clipped[:, 0] + 1j * clipped[:, 1]
    for path in (meta, meta.with_suffix(".sigmf-data")):
        assert np.abs(read_iq(path).numpy() - expected).max() < tolerance


def test_bad_files_are_one_line_each(tmp_path, samples):
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    (tmp_path / "words.npy").write_text("hello")
    (tmp_path / "broken.npz").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    meta = write_sigmf(tmp_path, "two", "cf32_le", samples.ravel())
    meta.write_text(json.dumps({"global": {"core:datatype": "cf32_le", "core:num_channels": "two"}}))
    write_sigmf(tmp_path, "bytes", "cf32_le", np.zeros(8 * 5 + 3, np.uint8))
    np.save(tmp_path / "real.npy", samples[:, 0])
    np.save(tmp_path / "nan.npy", np.array([1 + 1j, np.nan]))
    np.save(tmp_path / "empty.npy", np.zeros(0, np.complex64))
    (tmp_path / "a.txt").write_text("1")
    (tmp_path / "bad.sigmf-meta").write_text("{")
    write_sigmf(tmp_path, "rf", "rf32_le", samples.ravel())
    write_sigmf(tmp_path, "odd", "cf32_le", samples.ravel()[:-1])
    write_sigmf(tmp_path, "gone", "cf32_le", samples).with_suffix(".sigmf-data").unlink()
    for name, message in (
        ("missing.npy", "no such file"),
        ("broken.npy", "no npy file of numbers"),
        ("words.npy", "no npy file of numbers"),
        ("objects.npy", "no npy file of numbers"),
        ("broken.npz", "no npz file of numbers"),
        ("two.sigmf-meta", "core:num_channels='two'; one channel is wanted"),
        ("bytes.sigmf-meta", "43 bytes, no whole number of cf32_le samples"),
        ("real.npy", "expected complex numbers"),
        ("nan.npy", "NaN or infinite"),
        ("empty.npy", "no samples"),
        ("a.txt", "files are .npy, .npz or .sigmf-meta"),
        ("bad.sigmf-meta", "no readable SigMF"),
        ("rf.sigmf-meta", "is real"),
        ("odd.sigmf-meta", "cut short"),
        ("gone.sigmf-meta", "no such file, though"),
    ):
        with pytest.raises(InputError, match=message):
            read_iq(tmp_path / name)


def test_samples_are_cut_into_frames():
    assert frames_of(torch.zeros(11, dtype=torch.complex64), 4).shape == (2, 4)
    assert frames_of(torch.zeros(3, 9, dtype=torch.complex64), 4).shape == (6, 4)
    with pytest.raises(InputError, match="holds 3 samples in a row; a frame has 4"):
        frames_of(torch.zeros(3, dtype=torch.complex64), 4)


def test_a_folder_of_recordings_is_a_data_set(tmp_path):
    for name in ("bpsk", "qpsk"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", frames(30, length=8).iq.numpy())
    config = SignalDataConfig(path=str(tmp_path), length=8)
    data = RecordedSignals(config)
    assert data.classes == ("bpsk", "qpsk") and len(data.validation.iq) == 6 and len(data.iq) == 54
    batch = data.batch(0, 0, 16, slice(0, 16))
    assert batch["iq"].shape == (16, 8) and set(batch["targets"].tolist()) == {0, 1}
    held = {tuple(torch.view_as_real(row).flatten().tolist()) for row in data.validation.iq}
    assert not held & {tuple(torch.view_as_real(row).flatten().tolist()) for row in data.iq}
    with pytest.raises(InputError, match="2 or more"):
        RecordedSignals(SignalDataConfig(path=str(tmp_path / "bpsk"), length=8))
    with pytest.raises(InputError, match="at least 10"):
        np.save(tmp_path / "qpsk" / "x.npy", frames(9, length=8).iq.numpy())
        RecordedSignals(config)
