"""`train lm --data.pack documents` from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig
from blockyard.tasks.lm.beside import rows_of
from blockyard.tasks.lm.task import LMTask
from blockyard.tasks.run import load_run, make_task, open_trainer, train_lm
from blockyard.tasks.settings import resolve
from blockyard.text import TextDataConfig, load_text
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import Decisions
from blockyard.training.distributed import Ranks
from blockyard.training.engine import Engine

CONTEXT = 16


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "records.jsonl"
    texts = ("".join(chr(97 + (n * i + i // 3) % 26) for i in range(1 + n * 7 % 29)) for n in range(160))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def groups(path: Path, blocks: str | None = None, **train: Any) -> dict[str, Any]:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": CONTEXT}
    return {
        "model": model if blocks is None else {**model, "pattern": blocks},
        "data": {"path": str(path), "cache_dir": str(path.parent / "cache"), "pack": "documents"},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "eval_every": 3,
            "eval_batches": 3,
            "log_every": 1,
            "threads": 1,
            "precision": "fp32",
            "progress": False,
            **train,
        },
    }


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_compiles_nothing_says_why_and_resumes_exactly(tmp_path: Path, records: Path, capsys) -> None:
    counters.clear()
    whole = train_lm(groups(records), tmp_path / "whole")
    told = capsys.readouterr().err
    assert "note: training: " in told and "slots hold no text" in told
    assert not counters["frames"] and not counters["stats"]
    why = json.loads((whole / "environment.json").read_text())["decisions"]["why"]
    assert any("compile: no, with data.pack=documents mixers see" in reason for reason in why)
    assert yaml.safe_load((whole / "config.yaml").read_text())["data"]["pack"] == "documents"
    out = tmp_path / "parts"
    run = resolve(groups(records, save_every=3))
    trainer = open_trainer(run, make_task(run), out, resume=False)
    for _ in range(4):
        trainer._one_step()
    trainer.save()
    trainer.close()
    train_lm(groups(records, save_every=3), out, resume=True)
    assert losses(out)[-1] == losses(whole)[-1]
    first, second = (load_run(folder).model.state_dict() for folder in (whole, out))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_compilation_of_the_whole_model_is_refused(tmp_path: Path, records: Path) -> None:
    with pytest.raises(InputError, match=r"train\.compile=model: with data\.pack=documents mixers see other lengths"):
        train_lm(groups(records, compile="model"), tmp_path / "run")


@pytest.mark.parametrize(
    "blocks",
    ["standard", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tva+vft", "spectral+moe[n_experts=4]"))],
)
def test_compiled_blocks_are_compiled_once_for_all_batches(records: Path, blocks: str) -> None:
    """By what the compiler captures alone: the code that it makes of that takes minutes."""
    torch._dynamo.reset()
    model = LMConfig(vocab_size=256, d_model=16, n_heads=2, n_layers=2, context=CONTEXT, blocks=blocks)
    task = task_of(records, model)
    expected = [float(task.loss(task.model, task.batch(step, slice(0, 8)))[0]) for step in range(6)]
    for layer in task.model.layers:
        layer.compile(backend="eager", dynamic=False)
    captured = []
    counters.clear()
    for step in range(6):
        loss, _ = task.loss(task.model, task.batch(step, slice(0, 8)))
        assert float(loss) == pytest.approx(expected[step], rel=1e-5)
        captured.append((counters["stats"]["unique_graphs"], counters["frames"]["total"]))
    assert captured[0][0] > 0
    # With filling and without it, where experts count it.
    assert len(set(captured)) <= 2 and captured[-1] == captured[2], captured


def test_a_run_from_before_the_option_resumes_with_plain_rows(tmp_path: Path, records: Path) -> None:
    plain = groups(records, compile="off")
    del plain["data"]["pack"]
    out = train_lm(plain, tmp_path / "run")
    written = yaml.safe_load((out / "config.yaml").read_text())
    assert written["data"].pop("pack") == "stream"
    (out / "config.yaml").write_text(yaml.safe_dump(written))
    plain["train"]["steps"] = 8
    train_lm(plain, out, resume=True)
    packed = groups(records, compile="off", steps=10)
    with pytest.raises(InputError, match=r"data\.pack"):
        train_lm(packed, out, resume=True)


def task_of(path: Path, model: LMConfig | None = None, **train: Any) -> LMTask:
    data = load_text(TextDataConfig(path=str(path), cache_dir=str(path.parent / "c"), pack="documents"), CONTEXT)
    shape = {"d_model": 16, "n_heads": 2, "n_layers": 1, "context": CONTEXT}
    model = LMConfig(vocab_size=256, zero_init_outputs=False, **shape) if model is None else model
    return LMTask(model, data, TrainConfig(batch_size=8, compile="off", eval_batches=3, device="cpu", **train))


def test_the_gradient_of_a_step_is_the_same_in_one_pass_and_in_several(records: Path) -> None:
    found = []
    for accumulate in (1, 4):
        task = task_of(records, accumulate=accumulate)
        task.model.double()
        engine = Engine(task, task.config, Ranks(0, 1, torch.device("cpu")), Decisions("fp32", "highest", "no"))
        loss, _ = engine.forward_backward(0)
        found.append((float(loss), [p.grad.clone() for p in task.model.parameters() if p.grad is not None]))
    (one, first), (several, second) = found
    assert several == pytest.approx(one, rel=1e-6)
    for a, b in zip(first, second):
        # Shares are float32.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_figures_are_means_over_what_is_predicted_one_document_at_a_time(records: Path) -> None:
    task = task_of(records)
    model = task.model.eval()
    total, count = 0.0, 0
    by_place: dict[int, list[float]] = {}
    with torch.no_grad():
        for batch in task.data.val_batches(8, CONTEXT, 3):
            for ids, targets, numbers in zip(batch["input_ids"], batch["targets"], batch["segments"]):
                for number in range(int(numbers.max()) + 1):
                    part = numbers == number
                    logits = model(ids[part][None]).logits[0]
                    each = torch.nn.functional.cross_entropy(logits, targets[part], reduction="none")
                    total, count = total + float(each.sum()), count + len(each)
                    for place, loss in enumerate(each.tolist()):
                        by_place.setdefault(max(place, 0).bit_length() if place else 0, []).append(loss)
        assert task.evaluate(model)["val_loss"] == pytest.approx(total / count, abs=1e-5)
        run = resolve(groups(records, batch_size=8))
        figures = run.kind.figures(run, task.data, model)
    assert figures["positions"] == [1, 2, 4, 8, 16]
    expected = [sum(by_place[n]) / len(by_place[n]) for n in sorted(by_place)]
    assert figures["position_loss"] == pytest.approx(expected, abs=2e-5)


def test_another_model_is_given_documents_and_not_rows(records: Path) -> None:
    run = resolve(groups(records, batch_size=8))
    data = load_text(run.data, CONTEXT)
    texts = {json.loads(line)["text"] for line in records.read_text().splitlines()}
    found = list(rows_of(run, data))
    assert len(found) > 12 and all(any(found_text in text for text in texts) for found_text in found)
