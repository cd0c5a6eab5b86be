"""One bad block costs the others nothing: what is not finite, raises or is killed is reported beside the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard.compare import measure
from blockyard.compare.compare import compare_lm
from blockyard.compare.plan import folder_of
from blockyard.compare.settings import CompareConfig
from tests.fixtures.folders import PLUGINS


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, value in (("ROUND_SECONDS", 0.005), ("ROUNDS", 3), ("DECODE_ROUNDS", 1)):
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNRULY_FOLDER", str(tmp_path))
    # Worker processes find the plug-in where this one does.
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    yield
    torch.set_num_threads(threads)


def compared(tmp_path: Path, blocks: str, **terms: Any) -> dict[str, Any]:
    """The report of a tiny comparison, by choice."""
    draw = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(draw.choice(["yard", "block", "vein", "of", "the", "a"]) for _ in range(1500)))
    groups = {
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "context": 16},
        "train": {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 2, "warmup": 2},
        "data": {"path": str(text)},
        "plugins": ["unruly_blocks"],
    }
    budget = {"budget_unit": "tokens", "budget_value": 16 * 64, "slice_steps": 5, "measure_memory": False}
    config = CompareConfig(blocks, match="none", seeds=1, **{**budget, **terms})
    found = compare_lm(config, groups, tmp_path / "out", show=False)
    assert (tmp_path / "out" / "report.html").exists()
    return {**found, "by_name": {choice["name"]: choice for choice in found["choices"]}}


def status(found: dict[str, Any], name: str) -> str:
    return found["by_name"][name]["runs"][0]["status"]


def test_choices_that_raise_or_are_not_finite_stand_beside_the_rest_in_the_report(tmp_path: Path) -> None:
    found = compared(tmp_path, "standard;raises;gives_nan;raises_at_once;relu2")
    assert [status(found, n) for n in found["by_name"]] == ["finished", "failed", "diverged", "failed", "finished"]
    assert [row["name"] for row in found["ranking"] if row["rank"] is not None] != []
    assert all(row["rank"] is None for row in found["ranking"] if row["name"] in ("raises", "gives_nan"))
    run = found["by_name"]["raises"]["runs"][0]
    assert run["note"] == "RuntimeError: shapes 3 and 4" and run["steps"] == 6
    # Its author finds where.
    assert "misbehave" in (folder_of(tmp_path / "out", "raises", 0) / "error.txt").read_text()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "raises failed in 1 of 1 runs (seed 0; RuntimeError: shapes 3 and 4): it is not ranked." in text
    assert "gives\\_nan diverged in 1 of 1 runs" in text and "1 failed" in text
    # One that raises at once has no speed, and the report says so; the others have theirs.
    assert found["by_name"]["raises_at_once"]["speed"] is None and found["by_name"]["standard"]["speed"]
    assert any("The speed of raises_at_once could not be measured" in note for note in found["notes"])


def test_a_failed_run_is_tried_again_when_the_command_is_given_again(tmp_path: Path) -> None:
    import unruly_blocks

    terms = {"blocks": "standard;raises_at_once", "lengths": (16, 32)}
    before = compared(tmp_path, **terms)
    assert status(before, "raises_at_once") == "failed" and before["by_name"]["raises_at_once"]["speed"] is None
    mended = unruly_blocks.Raises.misbehave
    unruly_blocks.Raises.misbehave = unruly_blocks.Unruly.mean
    try:
        now = compared(tmp_path, **terms)
        assert status(now, "raises_at_once") == "finished"
        # And so are its figures, which were missing.
        choice = now["by_name"]["raises_at_once"]
        assert choice["speed"] is not None and None not in choice["scaling"]["tokens_per_second"]
        assert not any("could not be measured" in note for note in now["notes"])
    finally:
        unruly_blocks.Raises.misbehave = mended


def test_a_budget_in_seconds_is_planned_around_a_choice_that_cannot_be_timed(tmp_path: Path) -> None:
    found = compared(tmp_path, "standard;raises_at_once", budget_unit="seconds", budget_value=0.4)
    assert (status(found, "standard"), status(found, "raises_at_once")) == ("finished", "failed")


def test_lengths_are_measured_around_a_choice_that_fails(tmp_path: Path) -> None:
    found = compared(tmp_path, "standard;raises_at_once", lengths=(16, 32))
    speeds = {name: choice["scaling"]["tokens_per_second"] for name, choice in found["by_name"].items()}
    assert speeds["raises_at_once"] == [None, None] and all(speeds["standard"])


def test_when_every_choice_fails_the_report_still_says_why(tmp_path: Path) -> None:
    found = compared(tmp_path, "raises;raises_at_once")
    assert found["verdict"]["kind"] == "none"
    assert "RuntimeError: shapes 3 and 4" in (tmp_path / "out" / "report.md").read_text()


def test_a_worker_that_is_killed_is_begun_again_and_a_run_that_kills_it_twice_is_named(tmp_path: Path) -> None:
    found = compared(tmp_path, "standard;kills_at_once;relu2;glu", workers=2, lengths=(16, 32))
    assert [status(found, name) for name in found["by_name"]] == ["finished", "killed", "finished", "finished"]
    assert (tmp_path / "deaths").read_text() == "xx"
    run = found["by_name"]["kills_at_once"]["runs"][0]
    assert run["note"] == "its process died of SIGKILL twice, the second time by itself"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "kills\\_at\\_once was killed in 1 of 1 runs (seed 0; its process died of SIGKILL twice" in text


@pytest.mark.slow  # the run that kills its worker twice begins with the same
def test_a_worker_that_was_killed_by_accident_costs_nothing(tmp_path: Path) -> None:
    found = compared(tmp_path, "kills_once;standard;relu2", workers=2)
    assert [status(found, name) for name in found["by_name"]] == ["finished"] * 3
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "complete"
