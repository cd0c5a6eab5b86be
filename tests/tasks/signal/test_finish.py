"""What follows a training: calibration, tables, pictures; and what runs from before have not."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from blockyard.cli import main
from blockyard.tasks.run import load_run, train
from blockyard.tasks.settings import resolve
from blockyard.tasks.signal.calibration import answered
from blockyard.tasks.signal.finish import finish_run
from blockyard.tasks.signal.task import NEWER
from tests.fixtures.signals import DATA, TRAIN

BLIND = {"length": 256, "modulations": "bpsk,qpsk,tone,noise", "snr_min": 5.0, "snr_max": 15.0, "val_frames": 6}


def words(groups):
    return [f"--{group}.{key}={value}" for group, options in groups.items() for key, value in options.items()]


@pytest.fixture(scope="module")
def blind(tmp_path_factory):
    out = tmp_path_factory.mktemp("blind") / "run"
    small = {"data": BLIND, "model": {"d_model": 16, "n_heads": 2}, "train": {**TRAIN, "steps": 12, "eval_every": 0}}
    assert main(["train", "signal", "--out", str(out), *words(small)]) == 0
    return out


def test_a_blind_training_ends_with_a_table_and_pictures_in_its_folder(blind, capsys):
    said = finish_run(blind)
    for word in ("SNR, dB (Es/N0)", "SNR of a sample, dB", "right, % (24 frames per SNR)", "cumulant classifier, %",
                 "expected calibration error", "unknown is said of signals that training never saw"):  # fmt: skip
        assert word in said, said
    for name in ("accuracy.png", "confusion.png", "calibration.png"):
        assert (blind / name).stat().st_size > 5000
    found = json.loads((blind / "evaluation.json").read_text())
    assert found["snr"] == [5.0, 10.0, 15.0] and len(found["baseline"]["accuracy"]) == 3
    assert set(found["unknown"]["kinds"]) == {"cpfsk", "tones", "pulses", "4ask"}
    assert 0 <= found["calibration"]["calibrated"]["ece"] <= 1


def test_the_run_has_its_calibration_and_what_its_frames_looked_like(blind):
    model, assets, run = load_run(blind)
    assert assets.calibration.answers == ("bpsk", "qpsk", "tone", "noise", "unknown") and assets.blind
    assert assets.familiar.samples_per_symbol == (4.0, 16.0) and assets.familiar.normalised
    assert assets.familiar.bandwidth == pytest.approx((1.118 / 16, 1.295 / 4), rel=1e-3)
    with torch.inference_mode():
        found = answered(model, assets.calibration, torch.randn(5, 256, dtype=torch.complex64))
    assert found.shape == (5, 5) and torch.allclose(found.sum(1), torch.ones(5), atol=1e-5)
    assert run.data.scenario == "blind" and run.data.length == 256


def test_a_calibration_of_other_weights_does_not_survive_a_new_end(blind):
    (blind / "calibration.json").write_text("{ damaged")
    finish_run(blind)
    assert load_run(blind).assets.calibration is not None


def test_a_synchronised_training_ends_beside_the_coherent_bound(trained):
    said = finish_run(trained)
    assert "maximum likelihood (coherent), %" in said and "SNR of a sample" not in said and "unknown" not in said
    assets = load_run(trained).assets
    assert assets.calibration.answers == ("bpsk", "qpsk") and not assets.blind
    assert assets.familiar.bandwidth is None


def test_a_training_on_recordings_is_calibrated_on_its_validation_frames(tmp_path):
    import numpy as np

    for number, name in enumerate(("low", "high")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(3):
            turned = np.exp(2j * np.pi * (0.05 + 0.2 * number) * np.arange(64 * 30 + k))
            np.save(tmp_path / "data" / name / f"{k}.npy", turned.astype(np.complex64))
    small = {
        "data": {"path": str(tmp_path / "data"), "length": 64},
        "model": {"d_model": 16, "n_heads": 2},
        "train": {**TRAIN, "steps": 10, "eval_every": 0},
    }
    train(small, tmp_path / "run", task="signal")
    said = finish_run(tmp_path / "run")
    assert "of the validation frames" in said and "expected calibration error" in said
    assert load_run(tmp_path / "run").assets.calibration.answers == ("high", "low")


def test_runs_of_versions_before_mean_the_synchronised_scenario(tmp_path, capsys):
    groups = {"data": DATA, "model": {"d_model": 16, "n_heads": 2}, "train": {**TRAIN, "steps": 4, "eval_every": 0}}
    train(groups, tmp_path / "run", task="signal")
    before = load_run(tmp_path / "run")
    file = tmp_path / "run" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for name in NEWER:
        del config["data"][name]
    for name in ("features", "samples"):
        del config["model"][name]
    file.write_text(yaml.safe_dump(config))
    stored = json.loads((tmp_path / "run" / "signal.json").read_text())
    del stored["blind"]
    (tmp_path / "run" / "signal.json").write_text(json.dumps(stored))
    capsys.readouterr()
    model, assets, run = load_run(tmp_path / "run")
    assert run.data == before.run.data and run.data.scenario == "synchronised"
    assert assets.calibration is None and assets.familiar is None and not assets.blind
    assert "does not say" not in capsys.readouterr().err
    x = torch.randn(3, 16, dtype=torch.complex64)
    assert torch.equal(model(x).logits, before.model(x).logits)
    train(groups, tmp_path / "run", resume=True, task="signal")
    assert load_run(tmp_path / "run").run.data.scenario == "synchronised"


def test_the_default_is_blind_and_what_it_comes_to_is_written_down(tmp_path):
    run = resolve({}, "signal")
    assert (run.data.scenario, run.data.length, run.data.frequency) == ("blind", 1024, 0.01)
    fitted = run.kind.fit(run.model, run.kind.load_data(run.data, run.model).assets)
    assert fitted.blind and fitted.normalises and fitted.feature_kinds == "all" and fitted.frame == 1024
