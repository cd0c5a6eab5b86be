"""Comparisons of every kind of task but language models (test_compare.py), under every budget and match."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.report import html, write
from blockyard.report import text as report_text

TRAIN = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 2, "warmup": 2}
MODEL = {"d_model": 32, "n_layers": 1, "n_heads": 2}
# Task -> choices, options, a budget of some steps in units and in FLOPs, the word for a unit.
TASKS = {
    "recall": ("standard;mla", {}, {"task": "mqar", "length": 16, "vocab_size": 16, "sizes": (2, 4), "val_rows": 8},
               400, 1e8, "token"),
    "classify": ("standard;tva", {"context": 16}, None, 400, 5e7, "token"),
    "signal": ("complex+complex_swiglu;standard", {}, {"length": 32, "val_frames": 4}, 800, 1e8, "sample"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in (("ROUND_SECONDS", 0.002), ("ROUNDS", 2), ("DECODE_ROUNDS", 1)):
        monkeypatch.setattr(measure, name, value)
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_num_threads(threads)


def options_of(task: str, folder: Path) -> dict:
    _, model, data, *_ = TASKS[task]
    if data is None:
        path = folder / "rows.csv"
        rows = [f"{'ab' * (i % 9 + 1)} {'cd' * (i % 5)},{'xyz'[i % 3]}" for i in range(60)]
        path.write_text("text,label\n" + "\n".join(rows) + "\n")
        data = {"path": str(path)}
    return {"model": {**MODEL, **model}, "data": data, "train": TRAIN}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("unit", "match"), [("tokens", "params"), ("flops", "flops"), ("seconds", "none")])
def test_every_task_is_compared_under_every_budget_and_match(tmp_path, task, unit, match):
    blocks, _, _, tokens, flops, word = TASKS[task]
    value = {"tokens": tokens, "flops": flops, "seconds": 0.3}[unit]
    config = CompareConfig(blocks, match=match, budget_unit=unit, budget_value=value, seeds=1, slice_steps=3,
                           evaluations=2, measure_memory=False)  # fmt: skip
    found = compare(task, config, options_of(task, tmp_path), tmp_path / "out", show=False)
    for choice in found["choices"]:
        run = choice["runs"][0]
        assert run["status"] == "finished" and run["final_quality"] is not None
        per_step = run[unit if unit != "seconds" else "tokens"] / run["steps"]
        assert unit == "seconds" or abs(run[unit] - value) <= per_step
        assert match == "none" or abs(choice["match"]["miss"]) <= 0.02
        assert choice["cache_bytes_per_token"] is None and choice["sample"] is None
    text = (tmp_path / "out" / "report.md").read_text()
    ranking = text[text.index("## Ranking") : text.index("## Figures")]
    assert f"training {word}s / s" in ranking
    # Models that write nothing have neither cache nor speed of generation.
    assert "cache" not in ranking and "generated" not in ranking and "nan" not in ranking.lower()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["input_unit"] == word
