"""Guided vein FFNs in real runs: what is dropped, what is counted, and that killing a run changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blockyard.errors import InputError
from blockyard.tasks.run import load_run, make_task, train_lm
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.checkpoint import list_checkpoints
from blockyard.training.trainer import Trainer

GUIDED, STEPS = 4, 7


def groups(text: Path, blocks: str = "tva+vft", **train: Any) -> dict[str, Any]:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16, "pattern": blocks}
    fixed = {"steps": STEPS, "batch_size": 2, "eval_batches": 1, "save_every": 1, "keep": STEPS, "progress": False}
    fixed |= {"vein_guide_steps": GUIDED, "precision": "fp32", "compile": "off", "log_every": 1, "threads": 1}
    return {"data": {"path": str(text)}, "model": model, "train": fixed | train}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("the vein runs under the yard; " * 120)
    return path


def stored(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(dict(list_checkpoints(out / "checkpoints"))[step] / "model.safetensors")


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_guides_are_trained_and_saved_for_their_steps_and_dropped_after_them(text, tmp_path):
    out = train_lm(groups(text), tmp_path / "run")
    guided = {step: any(".guide." in name for name in stored(out, step)) for step in range(1, STEPS + 1)}
    assert guided == {step: step < GUIDED for step in range(1, STEPS + 1)}
    name = "layers.0.ffn.guide.up"
    assert not torch.equal(stored(out, 1)[name], stored(out, 3)[name])
    model, _, run = load_run(out)
    assert set(model.state_dict()) == set(stored(out, STEPS)) and run.train.vein_guide_steps == GUIDED


@pytest.mark.parametrize("stop", [2, GUIDED, 5])
def test_a_guided_run_that_was_stopped_ends_with_the_same_numbers(text, tmp_path, stop):
    whole = train_lm(groups(text), tmp_path / "whole")
    run = resolve(groups(text))
    first = Trainer(make_task(run), run.train, tmp_path / "parts", resolved=as_groups(run))
    first.advance(stop)
    first.close()
    if stop < GUIDED:
        assert any(".guide." in name for name in load_run(tmp_path / "parts")[0].state_dict())
    parts = train_lm(groups(text), tmp_path / "parts", resume=True)
    a, b = stored(whole, STEPS), stored(parts, STEPS)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(parts)]


def test_the_guides_products_count_as_flops_while_they_last(text, tmp_path):
    plain = rows(train_lm(groups(text, vein_guide_steps=0), tmp_path / "plain"))
    guided = rows(train_lm(groups(text), tmp_path / "guided"))
    d, tokens, layers, hidden = 16, 2 * 16, 2, 16
    each = 3 * 2 * tokens * layers * 3 * d * hidden  # forward and backward; up, gate and down
    added = [row["flops"] - base["flops"] for row, base in zip(guided, plain)]
    assert added == [each * min(step, GUIDED) for step in range(1, STEPS + 1)]


def test_a_model_without_vein_ffns_cannot_be_guided(text, tmp_path):
    with pytest.raises(InputError, match="no vein FFN"):
        train_lm(groups(text, "standard"), tmp_path / "run")
