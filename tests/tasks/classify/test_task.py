"""The classify task: it learns, resumes, classifies a file, and is compared with its confusions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.cli import main
from blockyard.compare import measure
from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.tasks.classify.task import macro_f1
from blockyard.tasks.run import load_run, train
from tests.fixtures.cli import error_of
from tests.fixtures.labelled import groups


def last_row(out: Path) -> dict[str, Any]:
    return json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])


def test_macro_f1_is_the_mean_over_classes_that_occur() -> None:
    confusion = torch.tensor([[8, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert macro_f1(confusion) == pytest.approx((16 / 19 + 2 / 5) / 2)


def test_a_classifier_learns_resumes_and_classifies_a_file(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train(groups(sounds), tmp_path / "run", task="classify")
    row = last_row(out)
    assert row["val_accuracy"] > 0.9 and row["val_macro_f1"] > 0.9
    assert load_run(out).assets.labels == ("cat", "cow", "dog")
    (tmp_path / "new.jsonl").write_text('{"sound": "it says \\"moo\\", 3 times"}\n{"sound": "it says \\"woof\\", 9"}\n')
    assert main(["classify", str(out), str(tmp_path / "new.jsonl"), "--format", "csv", "--top", "3"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["row"], row["class_1"]) for row in rows] == [("1", "cow"), ("2", "dog")]
    assert sum(float(rows[0][f"probability_{rank}"]) for rank in (1, 2, 3)) == pytest.approx(1, abs=1e-3)
    assert main(["classify", str(out), str(tmp_path / "new.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "likeliest: cow 50.0 %, dog 50.0 %"
    assert main(["classify", str(out), str(sounds), "--format", "csv", "--out", str(tmp_path / "classes.csv")]) == 0
    assert "of 60 labelled rows" in capsys.readouterr().err
    assert len((tmp_path / "classes.csv").read_text().splitlines()) == 61
    # What is for recordings is refused, not ignored.
    for words in (["--detect"], ["--waterfall", "a.png"], ["--out", str(tmp_path / "a.sigmf-meta")], ["--by", "file"]):
        assert main(["classify", str(out), str(sounds), *words]) == 2
        assert words[0] in capsys.readouterr().err


def test_a_run_cut_short_ends_with_the_same_numbers(tmp_path: Path, sounds: Path) -> None:
    from blockyard.tasks.run import make_task
    from blockyard.tasks.settings import as_groups, resolve
    from blockyard.training.trainer import Trainer

    options = groups(sounds, train={"steps": 8, "save_every": 2, "log_every": 1}, model={"dropout": 0.2})
    whole = train(options, tmp_path / "whole", task="classify")
    run = resolve(options, "classify")
    trainer = Trainer(make_task(run), run.train, tmp_path / "cut", resolved=as_groups(run))
    trainer.advance(5)
    trainer.close()
    train(options, tmp_path / "cut", resume=True, task="classify")
    first, second = (
        [json.loads(line)["loss"] for line in (out / "metrics.jsonl").open()] for out in (whole, tmp_path / "cut")
    )
    assert first == second


def test_a_language_model_does_not_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("words and words " * 50)
    options = {
        "data": {"path": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path)},
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "context": 8},
        "train": {"steps": 1, "batch_size": 2, "compile": "off", "progress": False, "eval_batches": 1},
    }
    out = train(options, tmp_path / "run")
    assert error_of(capsys, "classify", str(out), "x.csv") == "a run of `train lm` does not classify"
    assert "which run and which file" in error_of(capsys, "classify", str(out))


def test_classifiers_are_compared_with_their_confusions(
    tmp_path: Path, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    shared = groups(sounds)
    shared["train"] = {key: value for key, value in shared["train"].items() if key not in ("steps", "progress")}
    config = CompareConfig("standard,glu", budget_value=9000, seeds=1, evaluations=2, measure_memory=False)
    found = compare("classify", config, shared, tmp_path / "out", show=False)
    for choice in found["choices"]:
        figures = choice["runs"][0]["figures"]
        assert figures["labels"] == ["cat", "cow", "dog"]
        assert sum(map(sum, figures["confusion"])) == found["provenance"]["data"]["val_rows"]
    assert "Which classes are found" in (tmp_path / "out" / "report.html").read_text()
