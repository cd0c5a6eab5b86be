"""The recall task: a model learns to answer, random tokens stay at the floor, choices are compared."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.models.lm import TransformerLM
from blockyard.tasks.run import load_run, train


def groups(task: str, steps: int, **data: Any) -> dict[str, Any]:
    train_options = {"steps": steps, "batch_size": 32, "compile": "off", "threads": 1, "progress": False,
                     "device": "cpu", "eval_every": 0, "precision": "fp32"}  # fmt: skip
    return {
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2},
        "data": {"task": task, **data},
        "train": train_options,
    }


def last_row(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_model_learns_to_answer_and_is_loaded_again(tmp_path: Path) -> None:
    out = train(groups("lag", 150, length=16, vocab_size=16, sizes=(3,)), tmp_path / "run", task="recall")
    assert last_row(out)["val_accuracy"] > 0.9
    model, assets, run = load_run(out)
    assert isinstance(model, TransformerLM) and assets == {"vocab_size": 16, "context": 16}
    assert run.model.context == 16 and run.task == "recall"


def test_random_tokens_stay_at_the_floor(tmp_path: Path) -> None:
    out = train(groups("random", 60, length=32, vocab_size=16), tmp_path / "run", task="recall")
    assert last_row(out)["val_loss"] > math.log(16) - 0.005


def test_recall_is_compared_by_accuracy_over_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    config = CompareConfig(
        "standard;standard[window=2]", budget_value=8 * 16 * 12, seeds=2, evaluations=2, measure_memory=False
    )
    options = groups("mqar", 1, length=16, vocab_size=17, sizes=(2, 4), val_rows=16)
    shared = {**options, "train": {"batch_size": 8, "compile": "off", "threads": 1, "device": "cpu"}}
    found = compare("recall", config, shared, tmp_path / "out", show=False)
    assert found["quality"]["key"] == "val_accuracy"
    for choice in found["choices"]:
        for run in choice["runs"]:
            assert run["figures"]["sizes"] == [2, 4]
            assert run["final_quality"] == pytest.approx(sum(run["figures"]["accuracy"]) / 2, abs=1e-6)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How much it recalls" in page and "Accuracy over key-value pairs" in page
    assert "zoology&#x27;s: random tokens between questions, power_a 0.01" in page
    assert "recall-sizes" in page and (tmp_path / "out" / "recall-sizes.png").stat().st_size > 0
    assert "## How much it recalls" in (tmp_path / "out" / "report.md").read_text()
