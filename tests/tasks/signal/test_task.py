"""The signal task: training, evaluation over SNR, and comparison beside the bound."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.tasks.run import load_run
from blockyard.tasks.signal.config import SignalDataConfig
from blockyard.tasks.signal.data import SignalData
from blockyard.tasks.signal.figures import signal_figures
from blockyard.tasks.signal.model import SignalConfig, predict
from blockyard.tasks.signal.report import SignalParts
from blockyard.tasks.signal.task import SignalTask
from blockyard.training.config import TrainConfig
from tests.fixtures.signals import DATA, SMALL


def test_training_reaches_far_more_than_chance_and_the_run_loads(trained):
    model, assets, run = load_run(trained)
    assert assets.classes == ("bpsk", "qpsk") and assets.length == 16 and run.task == "signal"
    data = SignalData(run.data)
    with torch.no_grad():
        figures = signal_figures(data, model)
    assert figures["accuracy"][-1] > 0.85
    assert figures["bound"]["frames"] >= 20_000 and figures["bound"]["coherent"]
    assert all(a <= b + 0.15 for a, b in zip(figures["accuracy"], figures["bound"]["accuracy"]))
    for shares in figures["confusion"].values():
        assert all(sum(row) == pytest.approx(1) for row in shares)
    json.dumps(figures)


def test_a_trained_complex_model_says_the_same_of_turned_frames(trained):
    model, _, run = load_run(trained)
    frames = SignalData(run.data).source.validation.iq
    turned = frames * complex(math.cos(1.1), math.sin(1.1))
    torch.testing.assert_close(predict(model, turned), predict(model, frames), rtol=1e-3, atol=1e-3)


def test_evaluation_covers_all_snrs_and_classes_even_in_part():
    data = SignalData(SignalDataConfig(**{**DATA, "val_frames": 40}))
    first = next(data.validation_batches(100, 1))
    assert 30 < int(first["targets"].sum()) < 70 and len(first["snr"].unique()) == 5
    assert sum(len(batch["targets"]) for batch in data.validation_batches(64, 999)) == 5 * 2 * 40


def test_losses_of_blocks_are_part_of_the_tasks_loss():
    blocks = "complex+moe[expert=complex_swiglu,n_experts=4,k=2]"
    data = SignalData(SignalDataConfig(**DATA))
    task = SignalTask(SignalConfig(**{**SMALL, "frame": 16, "n_classes": 2}, blocks=blocks), data, TrainConfig())
    loss, stats = task.loss(task.model, task.batch(0, slice(0, 4)))
    assert loss > stats["class_loss"] and stats["loss/balance"] > 0


def test_symbols_of_a_frame_can_be_the_target():
    options = {"modulations": "qpsk,bpsk", "target": "symbols", "length": 16, "samples_per_symbol": 2, "val_frames": 4}
    config = SignalDataConfig(scenario="synchronised", **options)
    data = SignalData(config)
    assert data.assets.symbols == 8 and len(data.assets.classes) == 4
    model = SignalConfig(d_model=16, n_heads=2, frame=16, symbols=8, n_classes=4, patch=2)
    task = SignalTask(model, data, TrainConfig(batch_size=4))
    loss, _ = task.loss(task.model, task.batch(0, slice(0, 4)))
    loss.backward()
    task.model.eval()
    with torch.no_grad():
        assert 0 <= task.evaluate(task.model)["val_accuracy"] <= 1
        assert "bound" not in signal_figures(data, task.model)


def test_signal_models_are_compared_over_snr_beside_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    config = CompareConfig("standard;complex", budget_value=6 * 8 * 16, seeds=2, evaluations=2, measure_memory=False)
    shared = {
        "model": {"d_model": 8, "n_heads": 2, "condition": "snr"},
        "data": {**DATA, "snr_step": 10.0, "val_frames": 10, "test_phase": 3.1416},
        "train": {"batch_size": 8, "compile": "off", "threads": 1, "device": "cpu"},
    }
    found = compare("signal", config, shared, tmp_path / "out", show=False)
    assert (found["quality"]["key"], found["quality"]["better"]) == ("val_accuracy", "higher")
    assert [choice["name"] for choice in found["choices"]] == ["standard", "complex"]
    bounds = set()
    for choice in found["choices"]:
        assert [run["status"] for run in choice["runs"]] == ["finished"] * 2
        for run in choice["runs"]:
            figures = run["figures"]
            assert figures["snr"] == [0.0, 10.0, 20.0] and figures["frames_per_snr"] == 20
            assert sum(figures["accuracy"]) / 3 == pytest.approx(run["final_quality"], abs=1e-6)
            # Shares of each class that was sent; both classes are sent equally often.
            for level, accuracy in zip(figures["snr"], figures["accuracy"]):
                shares = figures["confusion"][f"{level:g}"]
                assert (shares[0][0] + shares[1][1]) / 2 == pytest.approx(accuracy)
            assert set(figures["constellations"]) == {"bpsk", "qpsk"}
            bounds.add((figures["bound"]["frames"], *figures["bound"]["accuracy"]))
    ((frames, *accuracy),) = bounds
    assert frames >= 20_000 and 0.9 < accuracy[0] < accuracy[1] <= accuracy[2] == 1
    page = (tmp_path / "out" / "report.html").read_text()
    words = (
        "Accuracy over SNR",
        "maximum likelihood",
        "What is taken for what",
        "Constellations",
        "20,000 frames per SNR",
        "The models are told the SNR, too.",
    )
    assert all(word in page for word in words)
    assert "| maximum likelihood |" in (tmp_path / "out" / "report.md").read_text()
    for name in ("accuracy-over-snr", "constellations"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 0
    for choice in found["choices"]:
        for run in choice["runs"]:
            run["figures"]["condition"] = "none"
    assert any("models are not told the SNR" in line for line in SignalParts().how_to_read(found))
    # Given again, with a third seed, the runs that are done stay as they are.
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").rglob("*.safetensors")}
    again = compare("signal", replace(config, seeds=3), shared, tmp_path / "out", show=False)
    assert len(before) >= 4 and all(p.stat().st_mtime_ns == then for p, then in before.items())
    for choice, grown in zip(found["choices"], again["choices"]):
        for new, old in zip(grown["runs"], choice["runs"]):
            assert new["figures"] == {**old["figures"], "condition": "snr"}
        assert len(grown["runs"]) == 3
