"""Signals out of files: NumPy and SigMF, and one line for every bad one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from blockyard import InputError
from blockyard.tasks.kind import task_kind
from blockyard.tasks.signal import RecordedSignals, frames_of, read_iq
from blockyard.tasks.signal.generator import SignalDataConfig
from tests.fixtures.signals import frames


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
        ("two.sigmf-meta", "core:num_channels='two' should be a whole number"),
        ("bytes.sigmf-meta", "43 bytes, no whole number of cf32_le samples"),
        ("real.npy", "expected complex numbers"),
        ("nan.npy", "NaN or infinite"),
        ("empty.npy", "no samples"),
        ("a.txt", "files are .npy, .npz, .h5, .wav, .sigmf-meta or .sigmf"),
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


def folder_of(tmp_path, counts, length=8):
    """Recordings of two classes; each bears its number in every sample, a hundred more for the second class."""
    for row, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for number, count in enumerate(counts):
            np.save(tmp_path / name / f"{number}.npy", np.full(count * length, 100 * row + number + 1, np.complex64))
    return SignalDataConfig(path=str(tmp_path), length=length)


def numbers(frames):
    return {int(value) for value in frames[:, 0].real.tolist()}


def test_no_recording_is_in_training_and_in_validation(tmp_path):
    data = RecordedSignals(folder_of(tmp_path, [12] * 7))
    train, val = numbers(data.iq), numbers(data.validation.iq)
    assert not train & val and train | val == {*range(1, 8), *range(101, 108)}
    # A tenth of 84 frames is a recording of 12, in each class.
    assert len([n for n in val if n < 100]) == 1 and len([n for n in val if n > 100]) == 1
    assert "validation holds whole recordings, 1 or more of each class; accuracy over so few (1)" in data.notes[0]
    again = RecordedSignals(SignalDataConfig(path=str(tmp_path), length=8, val_seed=6))
    assert numbers(again.validation.iq) != val


def test_one_recording_alone_is_cut_into_two_spans_with_a_gap(tmp_path):
    config = folder_of(tmp_path, [40])
    for row, name in enumerate(("a", "b")):
        np.save(tmp_path / name / "0.npy", np.arange(320, dtype=np.complex64) + 1000 * row)
    data = RecordedSignals(config)
    starts = [sorted(int(v) for v in part[:, 0].real.tolist() if v < 1000) for part in (data.iq, data.validation.iq)]
    assert starts == [[8 * k for k in range(35)], [8 * k for k in range(36, 40)]]
    assert "a, b: one recording each, whose last tenth is for validation" in data.notes[0]


def test_a_run_of_a_version_before_keeps_its_split(tmp_path):
    kind = task_kind("signal")
    assert kind.older_data({"path": "x"})["split"] == "frame" and "split" not in kind.older_data({"path": None})
    folder_of(tmp_path, [12] * 3)
    data = RecordedSignals(SignalDataConfig(path=str(tmp_path), length=8, split="frame"))
    assert numbers(data.iq) & numbers(data.validation.iq) and len(data.validation.iq) == 8
    assert "accuracy is flattered" in data.notes[0]


def test_raw_files_of_a_format_are_recordings_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        frames(30, length=8).iq.numpy().tofile(tmp_path / name / "x.bin")
    data = RecordedSignals(SignalDataConfig(path=str(tmp_path), length=8, format="cf32"))
    assert len(data.iq) + len(data.validation.iq) == 2 * 29
    with pytest.raises(InputError, match="2 or more"):
        RecordedSignals(SignalDataConfig(path=str(tmp_path), length=8))


def test_a_folder_of_recordings_is_a_data_set(tmp_path):
    for name in ("bpsk", "qpsk"):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "x.npy", frames(30, length=8).iq.numpy())
    config = SignalDataConfig(path=str(tmp_path), length=8)
    data = RecordedSignals(config)
    assert data.classes == ("bpsk", "qpsk") and len(data.validation.iq) == 6 and len(data.iq) == 52
    batch = data.batch(0, 0, 16, slice(0, 16))
    assert batch["iq"].shape == (16, 8) and set(batch["targets"].tolist()) == {0, 1}
    held = {tuple(torch.view_as_real(row).flatten().tolist()) for row in data.validation.iq}
    assert not held & {tuple(torch.view_as_real(row).flatten().tolist()) for row in data.iq}
    with pytest.raises(InputError, match="2 or more"):
        RecordedSignals(SignalDataConfig(path=str(tmp_path / "bpsk"), length=8))
    with pytest.raises(InputError, match="at least 10"):
        np.save(tmp_path / "qpsk" / "x.npy", frames(9, length=8).iq.numpy())
        RecordedSignals(config)


def test_options_of_recordings_are_refused_where_there_are_none():
    for options, message in (
        ({"format": "cf32"}, "data.format and data.channel are of recordings: give data.path"),
        ({"channel": 1}, "data.format and data.channel are of recordings"),
        ({"format": "cs17", "path": "x"}, "data.format='cs17' is none of"),
        ({"channel": -1, "path": "x"}, "data.channel=-1 should be at least 0"),
        ({"split": "half"}, "data.split='half' is not one of: recording, frame"),
    ):
        with pytest.raises(InputError, match=message):
            SignalDataConfig(**options)
