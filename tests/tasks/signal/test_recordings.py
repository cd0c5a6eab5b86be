"""Recordings of every kind: samples, gaps, channels and notes as the files mean them; the sigmf package as oracle."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard import InputError
from blockyard.tasks.signal.files import annotated_snr, read_iq
from blockyard.tasks.signal.recordings import Recording, RecordingOptions, open_recordings
from blockyard.tasks.signal.recordings.raw import RawPipe, raw_type
from blockyard.tasks.signal.recordings.recording import Span
from blockyard.tasks.signal.recordings.understanding import measure


def tone(count: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(count, 2)) / 8
    return (0.5 * np.exp(2j * np.pi * 0.05 * np.arange(count)) + noise @ [1, 1j]).astype(np.complex64)


def write(folder: Path, raw: bytes, about: dict, captures: list[dict] | None = None, name: str = "r", **more) -> Path:
    meta = {"global": {"core:version": "1.2.0", **about}, "captures": captures or [{"core:sample_start": 0}], **more}
    (folder / f"{name}.sigmf-data").write_bytes(raw)
    (folder / f"{name}.sigmf-meta").write_text(json.dumps({"annotations": [], **meta}))
    return folder / f"{name}.sigmf-meta"


def codes(datatype: str, count: int, channels: int = 1) -> bytes:
    """Samples of a SigMF type that use its whole range."""
    drawn = np.random.default_rng(0)
    kind, order = datatype[1:].split("_")[0], ">" if datatype.endswith("be") else "<"
    size = int(kind[1:]) // 8
    if kind[0] == "f":
        return drawn.normal(size=2 * count * channels).astype(f"{order}f{size}").tobytes()
    least, most = (0, 2 ** (8 * size)) if kind[0] == "u" else (-(2 ** (8 * size - 1)), 2 ** (8 * size - 1))
    values = drawn.integers(least, most, 2 * count * channels)
    return values.astype(f"{order}{'u' if kind[0] == 'u' else 'i'}{size}").tobytes()


@pytest.mark.parametrize("datatype", ["cu8", "ci8", "ci16_le", "ci16_be", "cu16_le", "ci32_le", "cf32_le", "cf32_be"])
@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_those_of_the_sigmf_package_bit_for_bit(tmp_path: Path, datatype: str, channels: int) -> None:
    sigmf = pytest.importorskip("sigmf", reason="the sigmf package is the oracle here")
    path = write(tmp_path, codes(datatype, 50, channels), {"core:datatype": datatype, "core:num_channels": channels})
    theirs = np.asarray(sigmf.fromfile(str(path)).read_samples()).reshape(50, channels)
    (recording,) = open_recordings(path)
    assert recording.channels == channels
    for channel in range(channels):
        assert np.array_equal(recording.read(channel).numpy(), theirs[:, channel].astype(np.complex64))
    with pytest.raises(InputError, match=f"data.channel={channels} is none of them"):
        open_recordings(path, RecordingOptions(channel=channels))


# Bytes before captures and behind the last, as the package's own examples have them, of complex samples.
LAYOUTS = {
    "two captures, header and trailer": ([(0, 32), (64, 0)], 32),
    "two headers": ([(0, 32), (64, 16)], 16),
    "three captures, two headers": ([(0, 32), (16, 0), (64, 32)], 0),
    "a capture without samples": ([(0, 0), (0, 0)], 0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bytes_that_are_no_samples_are_passed_over(tmp_path: Path, layout: str) -> None:
    sigmf = pytest.importorskip("sigmf", reason="the sigmf package is the oracle here")
    captures, trailing = LAYOUTS[layout]
    starts = [start for start, _ in captures]
    samples = codes("ci8", 96)
    raw = b""
    for (_, header), begin, end in zip(captures, starts, [*starts[1:], 96]):
        raw += b"\xfe" * header + samples[2 * begin : 2 * end]
    raw += b"\xff" * trailing
    rows = [{"core:sample_start": start, "core:header_bytes": header} for start, header in captures]
    about = {"core:datatype": "ci8", "core:trailing_bytes": trailing}
    path = write(tmp_path, raw, about, rows)
    (tmp_path / "r.iq").write_bytes(raw)
    named = write(tmp_path, b"", {**about, "core:dataset": "r.iq"}, rows, name="named")
    named.with_suffix(".sigmf-data").unlink()
    expected = np.frombuffer(samples, np.int8).astype(np.float32).view(np.complex64) / np.float32(128)
    for recording in (open_recordings(path)[0], open_recordings(named)[0]):
        assert recording.count == 96 and np.array_equal(recording.read().numpy(), expected)
    # Where core:dataset names the file, the package (1.14) counts the first header twice: it is not asked then.
    theirs = sigmf.fromfile(str(path))
    for number, (begin, end) in enumerate(zip(starts, [*starts[1:], 96])):
        if end > begin:
            block = next(block for start, block in open_recordings(path)[0].blocks() if start == begin)
            read = np.asarray(theirs.read_samples_in_capture(number)).astype(np.complex64)
            assert np.array_equal(block.numpy(), read)


def test_headers_and_trailers_of_several_channels_are_passed_over(tmp_path: Path) -> None:
    sigmf = pytest.importorskip("sigmf", reason="the sigmf package is the oracle here")
    samples = codes("cu8", 96, 2)
    rows = [{"core:sample_start": 0, "core:header_bytes": 32}, {"core:sample_start": 64}]
    about = {"core:datatype": "cu8", "core:trailing_bytes": 32, "core:num_channels": 2}
    path = write(tmp_path, b"\xfe" * 32 + samples + b"\xff" * 32, about, rows)
    (recording,) = open_recordings(path)
    assert [(span.start, span.count) for span in recording.spans] == [(0, 64), (64, 32)]
    theirs = sigmf.fromfile(str(path))
    read = np.concatenate([np.asarray(theirs.read_samples_in_capture(n)).reshape(-1, 2) for n in (0, 1)])
    assert len(read) == 96
    for channel in (0, 1):
        assert np.array_equal(recording.read(channel).numpy(), read[:, channel].astype(np.complex64))


def test_an_archive_of_several_recordings_is_read_where_they_lie(tmp_path: Path) -> None:
    first, second = tone(100, 1), tone(60, 2)
    (tmp_path / "in").mkdir()
    paths = [write(tmp_path / "in", iq.tobytes(), {"core:datatype": "cf32_le"}, name=name)
             for name, iq in (("a", first), ("b", second))]  # fmt: skip
    with tarfile.open(tmp_path / "x.sigmf", "w") as archive:
        for path in paths:
            for file in (path, path.with_suffix(".sigmf-data")):
                archive.add(file, f"{path.stem}/{file.name}")
    found = open_recordings(tmp_path / "x.sigmf")
    assert [np.array_equal(r.read().numpy(), iq) for r, iq in zip(found, (first, second))] == [True, True]
    with pytest.raises(InputError, match="holds 2 recordings"):
        read_iq(tmp_path / "x.sigmf")
    with tarfile.open(tmp_path / "y.sigmf", "w") as archive:
        archive.add(paths[0], "a/a.sigmf-meta")
    with pytest.raises(InputError, match=r"holds a/a\.sigmf-meta, but not its samples"):
        open_recordings(tmp_path / "y.sigmf")
    (tmp_path / "z.sigmf").write_bytes(b"no archive" * 100)
    with pytest.raises(InputError, match="no readable SigMF archive"):
        open_recordings(tmp_path / "z.sigmf")


def test_what_a_sigmf_file_says_of_its_samples_is_kept(tmp_path: Path) -> None:
    captures = [
        {"core:sample_start": 100, "core:frequency": 868e6, "core:datetime": "2024-03-01T10:00:00Z"},
        {"core:sample_start": 140, "core:frequency": 433e6, "core:global_index": 10_000_000},
    ]
    notes = [
        {"core:sample_start": 110, "core:sample_count": 20, "core:label": "qpsk", "capture_details:SNRdB": 7},
        {"core:sample_start": 140},
    ]
    about = {"core:datatype": "cf32_le", "core:sample_rate": 2e6, "core:offset": 90}
    path = write(tmp_path, tone(70).tobytes(), about, captures, annotations=notes)
    (recording,) = open_recordings(path)
    assert recording.sample_rate == 2e6
    assert [(s.start, s.count, s.frequency) for s in recording.spans] == [(10, 40, 868e6), (50, 20, 433e6)]
    assert recording.spans[0].time == "2024-03-01T10:00:00Z"
    assert [(a.start, a.count, a.label, a.snr_db) for a in recording.annotations] == [
        (20, 20, "qpsk", 7.0), (50, None, None, None)
    ]  # fmt: skip
    assert recording.notes == ("10 samples before the first capture are left out",)
    assert np.array_equal(recording.read().numpy(), tone(70)[10:])
    (other,) = open_recordings(path, RecordingOptions(sample_rate=1e6))
    assert other.sample_rate == 1e6 and "2e+06 samples per second; 1e+06 is taken" in other.notes[-1]


GOOD = {"core:datatype": "cf32_le"}
WRONG = [
    ({**GOOD, "core:sha512": "00"}, None, "is not what core:sha512"),
    ({**GOOD, "core:dataset": "../other.iq"}, None, "should be the name of a file beside it"),
    ({**GOOD, "core:dataset": "missing.iq"}, None, "no such file, though r.sigmf-meta says core:dataset='missing.iq'"),
    ({**GOOD, "core:metadata_only": True}, None, "there are no samples"),
    ({**GOOD, "core:num_channels": 0}, None, "core:num_channels=0 should be at least 1"),
    ({**GOOD, "core:num_channels": 3}, None, "no whole number of cf32_le samples of 3 channels"),
    ({**GOOD, "core:trailing_bytes": 9999}, None, "no whole number"),
    ({**GOOD, "core:sample_rate": -1}, None, "core:sample_rate=-1.0 should be above 0"),
    ({**GOOD, "core:sample_rate": "fast"}, None, "core:sample_rate='fast' should be a number"),
    ({"core:datatype": "rf32_le"}, None, "is real"),
    ({"core:datatype": "cs16"}, None, "should be a SigMF type"),
    ({"core:datatype": 5}, None, "should be a SigMF type"),
    (GOOD, [{"core:sample_start": 30}, {"core:sample_start": 10}], "should stand in the order"),
    (GOOD, [{"core:sample_start": 1000}], "a capture begins at sample 1000, but there are 40"),
    (GOOD, [{"core:sample_start": 1e300}], "should be a whole number"),
    (GOOD, [{"core:sample_start": 0, "core:header_bytes": 3}], "no whole number"),
    (GOOD, ["first"], "captures should be a list of objects"),
]


@pytest.mark.parametrize("about, captures, message", WRONG, ids=[message[:30] for *_, message in WRONG])
def test_what_a_sigmf_file_cannot_mean_is_one_line(tmp_path: Path, about: dict, captures, message: str) -> None:
    path = write(tmp_path, tone(40).tobytes(), about, captures)
    with pytest.raises(InputError, match=message) as raised:
        open_recordings(path)
    assert "\n" not in str(raised.value)


def test_numbers_of_any_size_are_read_or_refused(tmp_path: Path) -> None:
    for value in (1e308, -(2**80), 2**63):
        for key in ("core:sample_start", "core:sample_count"):
            note = {"core:sample_start": 0, "core:sample_count": 4, "capture_details:SNRdB": 3, key: value}
            path = write(tmp_path, tone(40).tobytes(), GOOD, annotations=[note])
            with pytest.raises(InputError, match="an annotation with capture_details:SNRdB cannot be read"):
                annotated_snr(path, 8, 4)
    huge = np.full(4096, 3e38, np.complex64)
    level = measure(open_recordings(write(tmp_path, huge.tobytes(), GOOD))[0])
    assert level.power == pytest.approx(9e76, rel=1e-6) and level.bandwidth < 0.01


def test_a_check_sum_that_fits_is_no_fault(tmp_path: Path) -> None:
    raw = tone(40).tobytes()
    path = write(tmp_path, raw, {**GOOD, "core:sha512": hashlib.sha512(raw).hexdigest()})
    assert open_recordings(path)[0].count == 40


@pytest.mark.parametrize("name", ["cu8", "cs8", "cs16", "cs16_be", "cf32", "cf64"])
def test_raw_files_and_pipes_hold_the_same(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = codes(name.replace("s", "i"), 1000)
    (tmp_path / "a.bin").write_bytes(raw)
    (recording,) = open_recordings(tmp_path / "a.bin", RecordingOptions(name, sample_rate=1e6))
    assert recording.count == 1000 and recording.sample_rate == 1e6
    sigmf_path = write(tmp_path, raw, {"core:datatype": name.replace("s", "i")})
    assert torch.equal(recording.read(), read_iq(sigmf_path))

    class Trickle(io.RawIOBase):
        """A pipe that gives a few bytes at a time."""

        place = 0

        def read(self, size: int = -1) -> bytes:
            part = raw[self.place : self.place + min(size, 7)]
            self.place += len(part)
            return part

    pipe = Recording("pipe", "raw", RawPipe(Trickle(), raw_type(name), "pipe"), (Span(0, None),))
    assert torch.equal(torch.cat([block for _, block in pipe.blocks(size=64)]), recording.read())
    if name in ("cu8", "cf32"):
        # A suffix that is a format says it.
        (tmp_path / f"b.{name}").write_bytes(raw)
        assert torch.equal(read_iq(tmp_path / f"b.{name}"), recording.read())


def test_raw_samples_that_are_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"12345")
    for options, message in (
        (("auto",), "raw samples need --data.format"),
        (("cs16",), "5 bytes, no whole number of cs16 samples: it is cut short, or of another format"),
    ):
        with pytest.raises(InputError, match=message):
            open_recordings(tmp_path / "a.bin", RecordingOptions(*options))
    for value, message in (("cs17", "is none of cu8, cs8"), ("rf32", "is real")):
        with pytest.raises(InputError, match=message):
            RecordingOptions(value)
    with pytest.raises(InputError, match=r"samples from a pipe need --data\.format"):
        open_recordings("-")


def test_a_pipe_that_ends_within_a_sample_gives_the_whole_ones(capsys) -> None:
    pipe = Recording("pipe", "raw", RawPipe(io.BytesIO(bytes(11)), raw_type("cs16"), "pipe"), (Span(0, None),))
    assert sum(len(block) for _, block in pipe.blocks()) == 2
    assert "pipe ends within a sample: its last 3 bytes are left out" in capsys.readouterr().err


def test_arrays_hold_pairs_at_the_end_or_before_it(tmp_path: Path) -> None:
    frames = tone(60).reshape(5, 12)
    last, before = frames.view(np.float32).reshape(5, 12, 2), np.stack([frames.real, frames.imag], 1)
    for name, array in (("last", last), ("before", before), ("complex", frames)):
        np.save(tmp_path / f"{name}.npy", array)
        (recording,) = open_recordings(tmp_path / f"{name}.npy")
        assert [(s.start, s.count) for s in recording.spans] == [(12 * n, 12) for n in range(5)]
        assert np.array_equal(recording.read().numpy(), frames.ravel())
        # Frames of an array are apart: eight samples of each twelve make one frame.
        found, starts = recording.frames(8)
        assert starts.tolist() == [0, 12, 24, 36, 48] and np.array_equal(found.numpy(), frames[:, :8])
    np.save(tmp_path / "flat.npy", np.stack([tone(30).real, tone(30).imag]))
    assert np.array_equal(read_iq(tmp_path / "flat.npy").numpy(), tone(30))
    np.save(tmp_path / "cube.npy", np.zeros((3, 4, 5)))
    with pytest.raises(InputError, match="with an axis of 2"):
        open_recordings(tmp_path / "cube.npy")


def test_hdf5_files_hold_frames_and_follow_no_link(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="extra signals")
    frames = tone(60).reshape(5, 12)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"], file["Y"] = frames.view(np.float32).reshape(5, 12, 2), np.zeros((5, 3))
    assert np.array_equal(read_iq(tmp_path / "a.h5").numpy(), frames)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["X"] = h5py.ExternalLink("a.h5", "X")
    with pytest.raises(InputError, match="holds nothing; name the samples iq"):
        open_recordings(tmp_path / "b.h5")
    (tmp_path / "c.h5").write_bytes(b"\x89HDF nothing")
    with pytest.raises(InputError, match="is damaged, or no HDF5 file"):
        open_recordings(tmp_path / "c.h5")


def test_wav_files_of_two_channels_are_samples(tmp_path: Path) -> None:
    wavfile = pytest.importorskip("scipy.io.wavfile", reason="extra signals")
    pairs = tone(500).view(np.float32).reshape(-1, 2).clip(-0.9, 0.9)
    whole = np.round(pairs * 2**15).astype("<i2")
    eight = np.round(pairs * 128 + 128).astype("u1")
    for name, array, tolerance in (("f", pairs, 1e-7), ("i", whole, 4e-5), ("u", eight, 6e-3)):
        wavfile.write(tmp_path / f"{name}.wav", 48_000, array)
        (recording,) = open_recordings(tmp_path / f"{name}.wav")
        assert recording.sample_rate == 48_000 and recording.count == 500
        assert np.abs(recording.read().numpy().view(np.float32).reshape(-1, 2) - pairs).max() < tolerance
    wavfile.write(tmp_path / "mono.wav", 48_000, pairs[:, 0])
    with pytest.raises(InputError, match="has 1 channel; I and Q are two"):
        open_recordings(tmp_path / "mono.wav")
    (tmp_path / "bad.wav").write_bytes(b"RIFF....WAVEfmt ")
    with pytest.raises(InputError, match="is damaged, or no wav file"):
        open_recordings(tmp_path / "bad.wav")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(1, 30), st.integers(0, 20))
def test_frames_are_those_of_each_stretch_whatever_the_blocks(counts, length, size, first) -> None:
    """Against the obvious: each stretch by itself, cut from its first sample on."""

    class Numbers:
        channels = 1

        def read(self, start: int, count: int, channel: int) -> np.ndarray:
            return np.arange(start, start + count).astype(np.complex64)

    starts = np.cumsum([first, *counts])
    spans = tuple(Span(int(start), count) for start, count in zip(starts, counts))
    recording = Recording("x", "numbers", Numbers(), spans)
    expected = [
        list(range(start + k * length, start + (k + 1) * length))
        for start, count in zip(starts.tolist(), counts)
        for k in range(count // length)
    ]
    blocks = list(recording.blocks(size=size, multiple=length))
    assert all(len(block) <= max(size, length) for _, block in blocks)
    assert [int(v.real) for _, block in blocks for v in block] == list(range(first, first + sum(counts)))
    if not expected:
        with pytest.raises(InputError, match=r"samples? in a row"):
            recording.frames(length)
        return
    found, begins = recording.frames(length)
    assert found.real.int().tolist() == expected and begins.tolist() == [row[0] for row in expected]


def test_a_sample_that_is_no_number_is_named(tmp_path: Path) -> None:
    iq = tone(40)
    iq[17] = np.nan
    np.save(tmp_path / "a.npy", iq)
    with pytest.raises(InputError, match="NaN or infinite, the first is number 17"):
        read_iq(tmp_path / "a.npy")
