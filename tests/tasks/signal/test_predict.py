"""`classify` with a signal model: files in, rows out, the SNR told by option or annotation."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile

import numpy as np
import pytest
import torch

from blockyard.tasks.run import load_run, train
from blockyard.tasks.signal.model import predict
from blockyard.tasks.signal.task import SignalData
from tests.fixtures.signals import DATA, TRAIN, iq


def test_classify_reads_files_and_prints_rows(run, trained, tmp_path):
    data = SignalData(load_run(trained).run.data).source.validation
    best = data.snr == 20
    np.save(tmp_path / "x.npy", data.iq[best].numpy())
    done = run("classify", str(trained), str(tmp_path / "x.npy"), "--format", "json", "--top", "2")
    rows = [json.loads(line) for line in done.out.splitlines()]
    assert len(rows) == int(best.sum()) and len(rows[0]["is"]) == 2
    right = [r["is"][0]["class"] == ("bpsk", "qpsk")[m] for r, m in zip(rows, data.modulation[best].tolist())]
    assert sum(right) / len(right) > 0.85
    assert run("classify", str(trained), str(tmp_path / "x.npy")).out.splitlines()[-1].startswith("likeliest: ")
    csv = run("classify", str(trained), str(tmp_path / "x.npy"), "--format", "csv").out.splitlines()
    assert csv[0] == "frame,sample,class_1,probability_1" and len(csv) == len(rows) + 1
    np.save(tmp_path / "loud.npy", 1e3 * data.iq[best].numpy())
    loud = run("classify", str(trained), str(tmp_path / "loud.npy"), "--format", "json")
    # The noise of 10 dB beside signal power 1, the middle of 0 to 20 dB.
    assert loud.status == 0 and "scaled to 1.1 " in loud.err
    found = [json.loads(line)["is"][0]["class"] for line in loud.out.splitlines()]
    assert sum(a == b["is"][0]["class"] for a, b in zip(found, rows)) > 0.9 * len(rows)


def test_classify_reads_a_pipe_as_a_file_and_says_when_and_which_recording(run, trained, tmp_path, monkeypatch):
    iq = SignalData(load_run(trained).run.data).source.validation.iq[:40].reshape(-1)
    raw = iq.numpy().astype("<c8").tobytes()
    (tmp_path / "x.cf32").write_bytes(raw)

    def classified(name, *more):
        return run("classify", str(trained), name, "--data.sample_rate", "1000", "--format", "json", *more)

    file = classified(str(tmp_path / "x.cf32"))
    assert file.status == 0, file.err
    rows = [json.loads(line) for line in file.out.splitlines()]
    assert [row["sample"] for row in rows] == [16 * n for n in range(40)]
    assert rows[3]["seconds"] == 0.048 and "recording" not in rows[0]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert classified("-", "--data.format", "cf32").out == file.out
    # Blocks of any size give the same answers.
    monkeypatch.setattr("blockyard.tasks.signal.recordings.recording.BLOCK_SAMPLES", 50)
    assert classified(str(tmp_path / "x.cf32")).out == file.out
    for name in ("a", "b"):
        sigmf(tmp_path / name, iq.numpy()[:33], [])
    with tarfile.open(tmp_path / "two.sigmf", "w") as archive:
        for name in ("a", "b"):
            for suffix in (".sigmf-meta", ".sigmf-data"):
                archive.add(tmp_path / (name + suffix), f"{name}/{name}{suffix}")
    table = run("classify", str(trained), str(tmp_path / "two.sigmf"), "--format", "csv").out.splitlines()
    assert table[0] == "recording,frame,sample,class_1,probability_1" and len(table) == 5
    named = [row.split(",")[0].rpartition(":")[2] for row in table[1:]]
    assert named == ["a/a.sigmf-meta"] * 2 + ["b/b.sigmf-meta"] * 2


def test_what_is_wrong_in_the_middle_leaves_no_file(run, trained, tmp_path, monkeypatch):
    iq = np.ones(16 * 50, np.complex64)
    iq[700] = np.nan
    np.save(tmp_path / "x.npy", iq)
    monkeypatch.setattr("blockyard.tasks.signal.recordings.recording.BLOCK_SAMPLES", 160)
    done = run("classify", str(trained), str(tmp_path / "x.npy"), "--out", str(tmp_path / "out.csv"), "--format", "csv")
    assert done.status == 2 and "the first is number 700" in done.err and not (tmp_path / "out.csv").exists()


def test_data_signal_says_what_a_recording_is(run, tmp_path):
    count = 8000
    iq = (0.5 * np.exp(2j * np.pi * 0.125 * np.arange(count))).astype(np.complex64)
    iq[4000:5000] = 0
    notes = [{"core:sample_start": 0, "core:label": "beacon"}]
    captures = [{"core:sample_start": 0, "core:frequency": 868e6}, {"core:sample_start": 5000}]
    iq.tofile(tmp_path / "r.sigmf-data")
    about = {"core:datatype": "cf32_le", "core:sample_rate": 1e6}
    (tmp_path / "r.sigmf-meta").write_text(json.dumps({"global": about, "captures": captures, "annotations": notes}))
    done = run("data", "signal", str(tmp_path / "r.sigmf-meta"))
    assert done.status == 0 and done.out.splitlines()[0].endswith("SigMF, cf32_le, 8,000 samples, 0.008 s")
    for part in (
        "sample rate: 1,000,000 Hz", "stretch: samples 0 … 4,999, at 868,000,000 Hz", "stretch: samples 5,000 … 7,999",
        "centre +0.125 (", "annotations: 1: beacon", "12.5 % of the samples are exactly 0",
    ):  # fmt: skip
        assert part in done.out, part
    found = json.loads(run("data", "signal", str(tmp_path / "r.sigmf-meta"), "--json").out)
    assert found["level"]["power"] == pytest.approx(0.25 * 7 / 8, rel=1e-3)
    assert found["level"]["bandwidth"] < 0.01 and found["stretches"][1]["start"] == 5000
    for words, message in ((["-"], "a pipe is read once"), ([str(tmp_path / "no.npy")], "no such file")):
        bad = run("data", "signal", *words)
        assert bad.status == 2 and message in bad.err and len(bad.err.splitlines()) == 1


def test_options_of_recordings_are_none_of_texts(run, tmp_path, trained):
    done = run("classify", str(trained), "x.npy", "--data.format", "cu9")
    assert done.status == 2 and "data.format='cu9' is none of" in done.err


def test_classify_says_what_is_wrong_in_one_line(run, trained, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros(3, np.complex64))
    for words, message in (
        (["classify", str(trained)], "which run and which file?"),
        (["classify", str(trained), str(tmp_path / "no.npy")], "no such file"),
        (["classify", str(trained), str(tmp_path / "short.npy")], "a frame has 16"),
        (["classify", str(tmp_path), str(tmp_path / "short.npy")], "holds no run"),
    ):
        done = run(*words)
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A small model that is told the SNR."""
    out = tmp_path_factory.mktemp("told") / "run"
    groups = {
        "model": {"d_model": 16, "n_heads": 2, "condition": "snr"},
        "data": {**DATA, "length": 32, "samples_per_symbol": 2, "val_frames": 10},
        "train": {**TRAIN, "steps": 40, "eval_every": 40},
    }
    train(groups, out, task="signal")
    return out


def sigmf(path, iq, annotations):
    iq.astype(np.complex64).tofile(path.with_suffix(".sigmf-data"))
    meta = {"global": {"core:datatype": "cf32_le"}, "captures": [], "annotations": annotations}
    path.with_suffix(".sigmf-meta").write_text(json.dumps(meta))


def test_classify_tells_the_model_the_snr_of_the_option_or_of_the_annotations(run, told, tmp_path):
    model, assets, _ = load_run(told)
    assert model.config.condition == "snr" and assets.snr == (0.0, 20.0)
    frames = SignalData(load_run(told).run.data).source.validation.iq[:4]
    np.save(tmp_path / "x.npy", frames.numpy())

    def probabilities(*words):
        done = run("classify", str(told), *words, "--format", "json", "--scale", "none")
        assert done.status == 0, done.err
        return [json.loads(line)["is"][0]["probability"] for line in done.out.splitlines()]

    def expected(*levels):
        with torch.no_grad():
            return predict(model, frames, torch.tensor(levels)).softmax(-1).amax(-1).tolist()

    given = probabilities(str(tmp_path / "x.npy"), "--snr", "4.5")
    assert given == pytest.approx(expected(4.5, 4.5, 4.5, 4.5), abs=1e-4)
    # Two samples per symbol: an SNR per sample is 3 dB lower than that per symbol.
    notes = [
        {"core:sample_start": 0, "capture_details:SNRdB": 3},
        {"core:sample_start": 64, "core:sample_count": 40, "capture_details:SNRdB": 10.5},
        {"core:sample_start": 0, "core:label": "no SNR here"},
    ]
    sigmf(tmp_path / "a", frames.numpy().ravel(), notes)
    double = 10 * math.log10(2)
    found = probabilities(str(tmp_path / "a.sigmf-meta"))
    assert found == pytest.approx(expected(3 + double, 3 + double, 10.5 + double, 3 + double), abs=1e-4)
    assert probabilities(str(tmp_path / "a.sigmf-data"), "--snr", "4.5") == given, "the option goes before"
    # The power that frames of this SNR have is known, too.
    np.save(tmp_path / "quiet.npy", 1e-3 * frames.numpy())
    quiet = run("classify", str(told), str(tmp_path / "quiet.npy"), "--snr", "0")
    assert quiet.status == 0 and "expected 3 to 3; scaled to 3 " in quiet.err
    beyond = run("classify", str(told), str(tmp_path / "x.npy"), "--snr", "35", "--scale", "none")
    assert beyond.status == 0 and "trained at 0 to 20 dB" in beyond.err


def test_an_snr_that_is_missing_or_not_wanted_is_one_line(run, told, trained, tmp_path):
    np.save(tmp_path / "x.npy", np.ones(64, np.complex64))
    for name, notes in (
        ("part", [{"core:sample_start": 0, "core:sample_count": 40, "capture_details:SNRdB": 3}]),
        ("word", [{"core:sample_start": 0, "capture_details:SNRdB": "high"}]),
        ("odd", ["capture_details:SNRdB"]),
    ):
        sigmf(tmp_path / name, np.ones(64), notes)
    for words, message in (
        ([str(told), "x.npy"], "this run's model is told the SNR, and"),
        ([str(told), "x.npy", "--snr", "nan"], "should be a number of dB"),
        ([str(told), "part.sigmf-meta"], "for 1 of 2 frames; --snr for all"),
        ([str(told), "word.sigmf-meta"], "an annotation with capture_details:SNRdB cannot be read"),
        ([str(told), "odd.sigmf-meta"], "annotations should be a list of objects"),
        ([str(trained), "x.npy", "--snr", "3"], "this run's model takes no SNR"),
    ):
        done = run("classify", words[0], str(tmp_path / words[1]), *words[2:])
        assert done.status == 2 and message in done.err and len(done.err.splitlines()) == 1, done


def test_a_run_from_before_the_option_loads_and_says_the_same(trained, tmp_path):
    """Its folder names neither the condition nor the range of the SNR."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    for name, lines in (("config.yaml", ("condition:",)),):
        kept = [line for line in (old / name).read_text().splitlines() if line.strip().split(" ")[0] not in lines]
        assert len(kept) < len((old / name).read_text().splitlines())
        (old / name).write_text("\n".join(kept) + "\n")
    stored = json.loads((old / "signal.json").read_text())
    del stored["snr"]
    (old / "signal.json").write_text(json.dumps(stored))
    model, assets, _ = load_run(old)
    assert model.config.condition == "none" and assets.snr is None
    frames = iq(4, 16)
    assert torch.equal(predict(model, frames), predict(load_run(trained).model, frames))
