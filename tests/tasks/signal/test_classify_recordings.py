"""`classify` over recordings of another program: bursts, votes, resampling, SNR, SigMF out, a waterfall."""

from __future__ import annotations

import csv
import io
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from tests.fixtures.foreign_recordings import noise, to_cu8, write_recordings, write_sigmf, write_wideband

pytest.importorskip("scipy.signal", reason="extra signals")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    truths = write_recordings(folder, seed=1, symbols=2048, modulations=("bpsk", "qpsk"), levels=(15.0,))
    name, bursts = write_wideband(folder, seed=2, seconds=0.4)
    return folder, {truth.file.removesuffix(".sigmf-meta"): truth for truth in truths}, folder / name, bursts


def json_rows(done):
    assert done.status == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


def test_a_row_has_place_time_and_snr(run, blind, folder):
    path, *_ = folder
    rows = json_rows(
        run("classify", str(blind), str(path / "qpsk-4sps-15dB.sigmf-meta"), "--format", "json", "--top", "3")
    )
    assert [row["sample"] for row in rows] == list(range(0, 8192, 256)) and rows[2]["seconds"] == 512e-6
    levels = sorted(row["snr"] for row in rows if row["snr"] is not None)
    # A frame of 256 samples holds 64 symbols.
    assert len(levels) > 28 and levels[len(levels) // 2] == pytest.approx(15, abs=1.5)
    assert all(set(row) == {"frame", "sample", "seconds", "snr", "is"} and len(row["is"]) == 3 for row in rows)
    names = {entry["class"] for row in rows for entry in row["is"]}
    assert names <= {"bpsk", "qpsk", "16qam", "tone", "noise", "unknown"}


@pytest.mark.parametrize("threads", [1, 2])
def test_bursts_are_rows_with_their_edges(run, blind, folder, threads):
    import torch

    *_, wide, bursts = folder
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        done = run("classify", str(blind), "--detect", str(wide), "--format", "csv")
    finally:
        torch.set_num_threads(before)
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert done.status == 0 and len(rows) == len(bursts) and "labelled rows)" in done.err
    # The recording's centre is known: edges are hertz, absolute.
    for burst in bursts:
        near = 0.15 * (burst.upper - burst.lower) + 5e3
        (row,) = [r for r in rows if abs(float(r["lower"]) - 433.92e6 - burst.lower) < near
                  and abs(int(r["sample"]) - burst.start) < 1024]  # fmt: skip
        assert float(row["upper"]) - 433.92e6 == pytest.approx(
            burst.upper, abs=0.15 * (burst.upper - burst.lower) + 5e3
        )
        assert abs(int(row["samples"]) - burst.count) < 2048
        assert float(row["seconds"]) == pytest.approx(int(row["sample"]) / 2e6)
        assert float(row["duration"]) == pytest.approx(int(row["samples"]) / 2e6)
        assert float(row["snr"]) == pytest.approx(burst.snr - 0.8, abs=1.5) and int(row["frames"]) > 1
        # The file's own annotation of a burst is its truth, and the accuracy is counted.
        assert row["label"] == burst.label if burst.label != "8psk" else not row["label"]
        assert row["class_1"] and 0 < float(row["probability_1"]) <= 1


def test_where_there_is_nothing_nothing_is_classified(run, blind, tmp_path):
    samples = noise(1 << 21, np.random.default_rng(0))
    (tmp_path / "x.cu8").write_bytes(to_cu8(samples))
    for format in ("table", "csv", "json"):
        done = run("classify", str(blind), str(tmp_path / "x.cu8"), "--detect", "--format", format)
        assert (done.status, done.out) == (0, "")
        assert done.err.splitlines()[-1].startswith("nothing stands above the noise in ")


def test_a_burst_shorter_than_a_frame_is_there_without_an_answer(run, blind, tmp_path, monkeypatch):
    samples = noise(1 << 18, np.random.default_rng(0))
    # 2000 samples in a narrow band: 15 symbols.
    drawn = np.random.default_rng(1)
    symbols = np.repeat(drawn.choice([-3, 3], 20), 128)[:2000]
    samples[100_000:102_000] += np.convolve(symbols, np.ones(64) / 64, "same")
    write_sigmf(tmp_path, "short", samples, 1e6, [])
    # How short that is, is tested with the ratio.
    monkeypatch.setattr("blockyard.tasks.signal.frontend.cutting.Wanted.ratio", lambda self, burst: None)
    (row,) = json_rows(run("classify", str(blind), str(tmp_path / "short.sigmf-meta"), "--detect", "--format", "json"))
    assert (row["frames"], row["is"]) == (0, [])
    table = run("classify", str(blind), str(tmp_path / "short.sigmf-meta"), "--detect")
    assert "too short for a frame" in table.out and "likeliest" not in table.out


def test_votes_over_file_and_annotations(run, blind, folder):
    path, *_ = folder
    file = str(path / "qpsk-8sps-15dB.sigmf-meta")
    (whole,) = json_rows(run("classify", str(blind), file, "--by", "file", "--format", "json"))
    assert whole["frames"] == 2048 * 8 // 256 and set(whole) == {"frames", "snr", "is"}
    done = run("classify", str(blind), file, "--by", "annotation", "--format", "json", "--top", "2")
    (noted,) = json_rows(done)
    assert (noted["annotation"], noted["sample"], noted["samples"], noted["label"]) == (0, 0, 16384, "qpsk")
    assert noted["is"][0] == whole["is"][0] and "of 1 labelled rows" in done.err
    told = run("classify", str(blind), file)
    assert "vote over " in told.err and "annotation 0 … 16,383 (qpsk): " in told.err
    bare = run("classify", str(blind), str(path / "wideband.sigmf-data"), "--by", "annotation", "--format", "csv")
    assert "several bands are occupied, and frames hold all of them: --detect takes each by itself" in bare.err
    rows = list(csv.DictReader(io.StringIO(bare.out)))
    assert [int(row["annotation"]) for row in rows] == list(range(10))
    # Frames in their middles, by the obvious count.
    for row in rows:
        start, stop = int(row["sample"]), int(row["sample"]) + int(row["samples"])
        middles = np.arange(128, 800_000, 256)
        assert int(row["frames"]) == int(((middles >= start) & (middles < stop)).sum())


def test_a_symbol_rate_or_a_bandwidth_beside_the_trainings_is_resampled_and_said(run, blind, folder, tmp_path):
    path, *_ = folder
    file = str(path / "qpsk-8sps-15dB.sigmf-meta")
    known = run("classify", str(blind), file, "--data.symbol_rate", "125000", "--by", "file", "--format", "json")
    assert json_rows(known)[0]["frames"] == 64 and "8 samples a symbol, as in the training" in known.err
    # The same samples said to be slower: 64 a symbol, brought to 8.
    slow = run("classify", str(blind), file, "--data.symbol_rate", "15625", "--format", "json")
    rows = json_rows(slow)
    assert "64 samples a symbol; resampled by 1/8 to 8" in slow.err
    # Places stay those of the file.
    assert [row["sample"] for row in rows] == list(range(0, 16384, 2048))
    assert rows[1]["seconds"] == pytest.approx(2048e-6)
    from tests.fixtures.foreign_recordings import constellation, shaped

    drawn = np.random.default_rng(0)
    narrow = shaped(constellation("qpsk"), 1 << 17, 64, drawn) + 0.3 * noise(1 << 17, drawn)
    write_sigmf(tmp_path, "narrow", narrow, 1e6, [])
    found = run("classify", str(blind), str(tmp_path / "narrow.sigmf-meta"), "--format", "json")
    assert "occupied bandwidth 0.0" in found.err and "resampled by 1/" in found.err
    step = json_rows(found)[1]["sample"]
    assert step % 256 == 0 and 4 <= step // 256 <= 16
    bad = run("classify", str(blind), file, "--data.symbol_rate", "2e6")
    assert bad.status == 2 and "is above the sample rate" in bad.err


def test_what_was_found_is_read_back_by_the_sigmf_package(run, blind, folder, tmp_path):
    sigmf = pytest.importorskip("sigmf", reason="the sigmf package is the oracle here")
    _, _, wide, bursts = folder
    for suffix in (".sigmf-meta", ".sigmf-data"):
        shutil.copy(wide.with_suffix(suffix), tmp_path / f"wide{suffix}")
    own = (tmp_path / "wide.sigmf-meta").read_bytes()
    beside = tmp_path / "found.sigmf-meta"
    done = run("classify", str(blind), "--detect", str(tmp_path / "wide.sigmf-meta"), "--out", str(beside))
    assert (done.status, done.out) == (0, "")
    theirs = sigmf.fromfile(str(beside))
    theirs.validate()
    notes = theirs.get_annotations()
    assert len(notes) == len(bursts) and len(theirs.read_samples()) == 800_000
    assert [n["core:sample_start"] for n in notes] == sorted(n["core:sample_start"] for n in notes)
    for note in notes:
        assert note["core:label"] and note["core:comment"].startswith("probability ")
        assert 432.9e6 < note["core:freq_lower_edge"] < note["core:freq_upper_edge"] < 434.95e6
    # Read as a recording of ours it is the same one, with what was found.
    again = json_rows(run("classify", str(blind), str(beside), "--by", "annotation", "--format", "json"))
    assert len(again) == len(bursts)
    # Frames in a row are one annotation a run of one class; in another folder the samples are not named.
    apart = tmp_path / "other" / "frames.sigmf-meta"
    assert run("classify", str(blind), str(tmp_path / "wide.sigmf-meta"), "--out", str(apart)).status == 0
    alone = sigmf.fromfile(str(apart))
    alone.validate()
    runs = alone.get_annotations()
    assert alone.get_global_field("core:metadata_only") is True and alone.get_global_field("core:dataset") is None
    assert runs[0]["core:sample_start"] == 0
    for one, two in pairwise(runs):
        assert one["core:sample_start"] + one["core:sample_count"] == two["core:sample_start"]
        assert one["core:label"] != two["core:label"]
    # Raw samples are a dataset that does not conform, named whole.
    (tmp_path / "x.cu8").write_bytes(to_cu8(noise(1 << 16, np.random.default_rng(0))))
    assert run("classify", str(blind), str(tmp_path / "x.cu8"), "--out", str(tmp_path / "y.sigmf-meta")).status == 0
    raw = sigmf.fromfile(str(tmp_path / "y.sigmf-meta"))
    raw.validate()
    assert raw.get_global_field("core:dataset") == "x.cu8" and len(raw.read_samples()) == 1 << 16
    assert (tmp_path / "wide.sigmf-meta").read_bytes() == own


def test_metadata_that_are_there_are_not_written_over(run, blind, folder, tmp_path):
    path, *_ = folder
    for suffix in (".sigmf-meta", ".sigmf-data"):
        shutil.copy(path / f"noise{suffix}", tmp_path / f"n{suffix}")
    (tmp_path / "link.sigmf-meta").symlink_to(tmp_path / "n.sigmf-meta")
    (tmp_path / "mine.sigmf-meta").write_text("{}")
    for out, message in (
        ("n.sigmf-meta", "the recording's own metadata"),
        ("link.sigmf-meta", "the recording's own metadata"),
        # Rows are no less able to take the place of what was recorded.
        ("n.sigmf-data", "the recording's own samples"),
        ("mine.sigmf-meta", "exists"),
    ):
        before = (tmp_path / out).read_bytes()
        for file in ("n.sigmf-meta", "n.sigmf-data"):
            done = run("classify", str(blind), str(tmp_path / file), "--out", str(tmp_path / out))
            assert done.status == 2 and len(done.err.splitlines()) == 1, done.err
            assert message in done.err or "is the file that is read" in done.err
        assert (tmp_path / out).read_bytes() == before


def test_a_waterfall_is_drawn_beside_the_rows(run, blind, folder, tmp_path):
    pytest.importorskip("matplotlib", reason="extra report")
    *_, wide, _ = folder
    for name, words in (("a.png", ["--detect"]), ("b.svg", [])):
        done = run("classify", str(blind), str(wide), "--waterfall", str(tmp_path / name), *words)
        assert done.status == 0 and (tmp_path / name).stat().st_size > 10_000
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    bad = run("classify", str(blind), str(wide), "--waterfall", str(tmp_path / "c.xyz"))
    assert bad.status == 2 and "should end in one of" in bad.err and len(bad.err.splitlines()) == 1


def test_options_that_do_not_fit_are_one_line(run, blind, trained, folder, tmp_path):
    path, *_ = folder
    file = str(path / "noise.sigmf-meta")
    np.save(tmp_path / "x.npy", np.ones(4096, np.complex64))
    for words, message in (
        ([str(blind), file, "--detect", "--by", "file"], "with --detect a row is a burst already"),
        ([str(blind), str(tmp_path / "x.npy"), "--by", "annotation"], "has no annotations"),
        ([str(blind), str(tmp_path / "x.npy"), "--data.symbol_rate", "9600"], "give --data.sample_rate"),
        ([str(blind), file, "--data.symbol_rate", "-1"], "should be a number of symbols per second above 0"),
    ):
        done = run("classify", *words)
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1, done.err


def test_a_recording_unlike_the_training_is_told(run, blind, tmp_path):
    # Clicks: a peak far above the mean, which no training frame had.
    samples = 0.01 * noise(1 << 15, np.random.default_rng(0))
    samples[100::256] += 10
    np.save(tmp_path / "clicks.npy", samples.astype(np.complex64))
    done = run("classify", str(blind), str(tmp_path / "clicks.npy"), "--data.symbol_rate", "0.25")
    assert done.status == 0 and done.err.count("is unlike the training: peak-to-average power") == 1


def test_data_signal_says_what_stands_above_the_noise_and_what_classify_would_do(run, blind, folder):
    path, truths, wide, _ = folder
    done = run("data", "signal", str(path / "qpsk-8sps-15dB.sigmf-meta"))
    for part in ("signal: occupied bandwidth 0.1", "symbol rate: 125,000 symbols a second, 8 samples a symbol",
                 "dB in the occupied band, Es/N0 about", "classify: takes the samples as they are"):  # fmt: skip
        assert part in done.out, part
    found = json.loads(run("data", "signal", str(path / "qpsk-8sps-15dB.sigmf-meta"), "--json").out)
    level = found["level"]
    assert level["line"]["rate"] == pytest.approx(1 / 8, rel=1e-3) and level["snr"] == pytest.approx(15, abs=1)
    centre = (level["occupied"]["lower"] + level["occupied"]["upper"]) / 2
    assert centre == pytest.approx(truths["qpsk-8sps-15dB"].offset, abs=0.003)
    slow = ["--data.symbol_rate", "15625", "--run", str(blind)]
    planned = run("data", "signal", str(path / "qpsk-8sps-15dB.sigmf-meta"), *slow)
    assert "classify: 64 samples a symbol; resampled by 1/8 to 8" in planned.out
    assert "--detect takes each by itself" in run("data", "signal", str(wide)).out
    assert "no line of |x|²" in run("data", "signal", str(path / "fm-15dB.sigmf-meta")).out
    assert "nothing stands above the noise" in run("data", "signal", str(path / "noise.sigmf-meta")).out
    bad = run("data", "signal", str(wide), "--run", str(path))
    assert bad.status == 2 and len(bad.err.splitlines()) == 1
