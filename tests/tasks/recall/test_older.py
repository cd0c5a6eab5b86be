"""Runs and comparisons from before rows of mqar were zoology's: they go on with theirs, or are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blockyard.compare.compare import compare
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.tasks.recall.config import EARLY
from blockyard.tasks.run import load_run, train
from blockyard.training import checkpoint


def groups(steps: int = 2, **data: Any) -> dict[str, Any]:
    quiet = {"batch_size": 4, "compile": "off", "threads": 1, "device": "cpu", "eval_batches": 1}
    return {
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1},
        "data": {"length": 16, "vocab_size": 16, "sizes": (2,), "val_rows": 4, **data},
        "train": {"steps": steps, "schedule": "constant", "warmup": 0, "progress": False, **quiet},
    }


def forget(run: Path) -> None:
    """Take what older versions did not know out of a run's folder."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] = {key: value for key, value in config["data"].items() if key not in EARLY}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        state["config"]["data"] = {k: v for k, v in state["config"]["data"].items() if k not in EARLY}
        state.pop(checkpoint.STATE_SUM)
        state[checkpoint.STATE_SUM] = checkpoint.state_digest(state)
        file.write_text(json.dumps(state))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).model.state_dict()


def test_an_older_run_goes_on_with_the_rows_that_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(groups(2, definition="early"), tmp_path / "old", task="recall")
    forget(tmp_path / "old")
    assert load_run(tmp_path / "old").run.data.definition == "early"
    assert "does not say" not in capsys.readouterr().err
    train(groups(4), tmp_path / "old", resume=True, task="recall")
    train(groups(4, definition="early"), tmp_path / "whole", task="recall")
    train(groups(4), tmp_path / "zoology", task="recall")
    old, whole, other = (weights(tmp_path / name) for name in ("old", "whole", "zoology"))
    assert all(torch.equal(old[name], whole[name]) for name in whole)
    assert not all(torch.equal(old[name], other[name]) for name in other)


@pytest.mark.parametrize("asked", [{"definition": "zoology"}, {"noise": "zeros"}, {"power_a": 1.0}], ids=str)
def test_an_older_run_is_not_resumed_with_other_rows(asked: dict[str, Any], tmp_path: Path) -> None:
    train(groups(2, definition="early"), tmp_path / "old", task="recall")
    forget(tmp_path / "old")
    with pytest.raises(InputError, match=rf"data\.{next(iter(asked))}"):
        train(groups(4, **asked), tmp_path / "old", resume=True, task="recall")


def test_an_older_run_of_another_task_goes_on(tmp_path: Path) -> None:
    train(groups(2, task="copy"), tmp_path / "old", task="recall")
    forget(tmp_path / "old")
    train(groups(4, task="copy"), tmp_path / "old", resume=True, task="recall")
    assert load_run(tmp_path / "old").run.data.definition == "zoology"


def compared(out: Path, blocks: str, **data: Any) -> None:
    shared = groups(1, **data)
    shared["train"] = {name: shared["train"][name] for name in ("batch_size", "compile", "threads", "device")}
    config = CompareConfig(blocks, budget_value=4 * 16 * 2, seeds=1, evaluations=1, rates="one", measure_memory=False)
    compare("recall", config, shared, out, show=False)


def test_an_older_comparison_goes_on_with_its_rows_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    compared(out, "standard", definition="early")
    terms = json.loads((out / "compare.json").read_text())["terms"]
    assert not {f"data.{name}" for name in EARLY} & terms.keys()  # as a version wrote it that did not know them
    with pytest.raises(InputError, match=r"on other terms: .*data\.definition was None, now 'zoology'"):
        compared(out, "standard;mla")
    compared(out, "standard;mla", definition="early")


def test_comparisons_of_other_tasks_have_the_terms_that_they_had(tmp_path: Path) -> None:
    compared(tmp_path / "out", "standard", task="copy")
    terms = json.loads((tmp_path / "out" / "compare.json").read_text())["terms"]
    assert {name for name in terms if name.startswith("data.")} == {
        "data.task", "data.length", "data.vocab_size", "data.sizes", "data.val_rows"
    }  # fmt: skip
