"""A comparison in stages: its end is that of one asked for at once, whatever stopped it on the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockyard.compare.compare import compare
from blockyard.compare.earlier import answer_of
from blockyard.compare.output import load_report
from blockyard.compare.settings import CompareConfig
from blockyard.compare.stages import FIRST, NOTE, SHARE, _smaller, compare_in_stages
from blockyard.errors import InputError
from blockyard.report.earlier import earlier_said
from blockyard.report.schema import Report

pytestmark = pytest.mark.usefixtures("quick")

MODEL = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16}
TRAIN = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 1, "warmup": 5}
TERMS = CompareConfig(
    "standard;relu2;tva", budget_value=20 * 4 * 16, seeds=3, rates="one", evaluations=2, sample_tokens=4,
    measure_memory=False,
)  # fmt: skip
FEW = ("standard", "relu2")


class Stopped(Exception):
    """Stands for whatever ends a command between two stages."""


def groups_for(folder: Path) -> dict[str, Any]:
    path = folder / "text.txt"
    path.write_text("a yard of blocks, a block of mixers; " * 100)
    return {"model": MODEL, "train": TRAIN, "data": {"path": str(path)}}


def losses(report: Report) -> dict[tuple[str, int], float | None]:
    return {(c["name"], run["seed"]): run["final_loss"] for c in report["choices"] for run in c["runs"]}


def test_stages_end_as_a_comparison_asked_for_at_once_however_often_they_are_stopped(tmp_path: Path) -> None:
    groups, out, heard = groups_for(tmp_path), tmp_path / "staged", []

    def told(report: Report, following: str) -> None:
        # What stands on the disk when a reader is told of it.
        heard.append((load_report(out), following))

    def stopping(report: Report, following: str) -> None:
        told(report, following)
        if len(report["choices"]) == 3 and following:
            raise Stopped

    compare_in_stages("lm", TERMS, groups, out, FEW, told, only_first=True, show=False)
    with pytest.raises(Stopped):
        compare_in_stages("lm", TERMS, groups, out, FEW, stopping, show=False)
    last = compare_in_stages("lm", TERMS, groups, out, FEW, stopping, show=False)
    (again, _), (first, _), (second, _), (third, nothing) = heard
    assert again == first and nothing == "" and losses(third) == losses(last)
    assert [c["name"] for c in first["choices"]] == list(FEW)
    assert first["budget"]["value"] == SHARE * TERMS.budget_value and first["seeds"] == [0, 1, 2]
    assert first["settings"]["train"]["warmup"] == 1
    assert first["verdict"]["details"].count(NOTE.format(few=2, all=3, share=SHARE)) == 1
    assert second["seeds"] == [0, 1] and third["seeds"] == [0, 1, 2]
    assert not [note for report in (second, third) for note in report["notes"] if note in first["notes"]]
    assert second["earlier"] == third["earlier"] == [answer_of(first)]
    at_once = compare("lm", TERMS, groups, tmp_path / "at-once", show=False)
    assert losses(last) == losses(at_once) and len(losses(last)) == 9
    assert [r["name"] for r in last["ranking"]] == [r["name"] for r in at_once["ranking"]]
    html = (out / "report.html").read_text()
    assert "Was an earlier answer right?" in html and "Was an earlier" not in (out / FIRST / "report.html").read_text()
    # Asked for the first answer alone, it gives the better one that is there.
    best = compare_in_stages("lm", TERMS, groups, out, FEW, stopping, only_first=True, show=False)
    assert best == load_report(out) and best["seeds"] == [0, 1, 2] and len(heard) == 4


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_of_something_else_is_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with pytest.raises(InputError, match=rf"{name} is there and is not this comparison's; use another --out"):
        compare_in_stages("lm", TERMS, groups_for(tmp_path), tmp_path / "out", FEW, lambda *_: None, show=False)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_earlier_comparisons_are_checked_before_anything_is_trained(tmp_path: Path) -> None:
    terms = replace(TERMS, earlier=(str(tmp_path / "nothing"),))
    with pytest.raises(InputError, match="cannot read the report"):
        compare("lm", terms, groups_for(tmp_path), tmp_path / "out", show=False)
    (tmp_path / "nothing").mkdir()
    other = {"schema": "blockyard.compare/1", "task": "recall"}
    (tmp_path / "nothing" / "report.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="is a comparison of the task 'recall', not of 'lm'"):
        compare("lm", terms, groups_for(tmp_path), tmp_path / "out", show=False)
    assert not (tmp_path / "out").exists()


def said(order: str, worse: str, now: str, worse_now: str) -> str:
    """The last sentence on an earlier answer; each choice is a letter."""
    before = {"budget": {"unit": "tokens", "value": 6e4}, "seeds": 3, "headline": "So.", "order": list(order)}
    report: Any = {
        "budget": {"unit": "tokens", "value": 3e5},
        "earlier": [{**before, "worse": list(worse)}],
        "ranking": [{"name": name, "rank": place} for place, name in enumerate(now)],
        "comparisons": [{"name": name, "verdict": "worse" if name in worse_now else "undecided"} for name in now[1:]],
    }
    (answer,) = earlier_said(report)
    assert answer["sentences"][0].startswith("After 60.0 k tokens each, with 3 seeds of ") or "60" in str(answer)
    return answer["sentences"][-1]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (("ab", "", "acb", ""), "Among these the order of the means is the same now."),
        (("ab", "b", "bca", "a"), "b and a; then it was a and b. Shown to be worse then, and not now: b."),
        (("abc", "bc", "abc", ""), "is the same now. Shown to be worse then, and not now: b and c."),
        (("abc", "c", "abc", "c"), "Among these the order of the means is the same now."),
        (("a", "", "ab", ""), "“So.”"),
    ],
)
def test_a_report_says_whether_an_earlier_answer_held(case: tuple[str, str, str, str], told: str) -> None:
    assert said(*case).endswith(told)


def test_a_report_without_earlier_ones_says_nothing() -> None:
    report: Any = {"ranking": [], "comparisons": []}
    assert earlier_said(report) == []


@pytest.mark.parametrize(
    ("given", "first"), [({"warmup": 10}, {"warmup": 2}), ({}, {}), ({"warmup": None}, {})], ids=str
)
def test_a_warm_up_that_nobody_gave_follows_the_first_answers_length_by_itself(
    given: dict[str, Any], first: dict[str, int]
) -> None:
    terms, groups = _smaller("lm", TERMS, {"model": MODEL, "train": given}, FEW)
    assert terms.budget_value == SHARE * TERMS.budget_value
    assert {k: v for k, v in groups["train"].items() if v is not None} == first
