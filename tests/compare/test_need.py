"""Seeds by need, a purpose, and a second text: comparisons end to end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from blockyard.compare.compare import compare, compare_lm
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError

STEPS, TOKENS_PER_STEP = 12, 4 * 16


pytestmark = pytest.mark.usefixtures("quick")


def written(path: Path, seed: int) -> Path:
    draw = random.Random(seed)
    words = ["".join(draw.choice("abcdefgh") for _ in range(5)) for _ in range(6)]
    path.write_text(" ".join(draw.choice(words) for _ in range(2000)))
    return path


@pytest.fixture
def groups(tmp_path: Path) -> dict[str, Any]:
    model = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16}
    train = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 1, "warmup": 2}
    return {"model": model, "train": train, "data": {"path": str(written(tmp_path / "text.txt", 0))}}


def compared(groups: dict[str, Any], out: Path, blocks: str = "standard;relu2", **changes: Any) -> dict[str, Any]:
    terms = {"budget_value": STEPS * TOKENS_PER_STEP, "seeds": 2, "evaluations": 2, "sample_tokens": 4, "rates": "one"}
    config = CompareConfig(blocks, **{**terms, "measure_memory": False, **changes})
    return dict(compare_lm(config, groups, out, show=False))


def counts(report: dict[str, Any]) -> dict[str, int]:
    return {choice["name"]: len(choice["runs"]) for choice in report["choices"]}


def answer(report: dict[str, Any], question: str) -> list[str]:
    return next(a["sentences"] for a in report["answers"] if a["question"] == question)


def test_seeds_are_added_where_the_verdict_is_undecided(groups: dict[str, Any], tmp_path: Path) -> None:
    """Two names of one function cannot be told apart; a choice without the order of positions is worse."""
    blocks = "standard;standard[window=16];standard[rope=none]+vft[rank=1]"
    found = compared(groups, tmp_path / "out", blocks, seeds="auto", most_seeds=5, match="none", margin=0.0)
    assert [look["seeds"] for look in found["looks"]] == [3, 5]
    assert counts(found)["standard"] == counts(found)["standard[window=16]"] == 5
    words = {row["name"]: row for row in found["comparisons"]}
    same = next(row for name, row in words.items() if "rank" not in name)
    assert same["verdict"] == "undecided" or same["difference"] == 0.0
    thin = words["standard[rope=none]+vft[rank=1]"]
    assert counts(found)[thin["name"]] == (3 if thin.get("seeds") == 3 else 5)
    assert any(line.startswith("Seeds by need: looked at after 3 and 5 of at most 5") for line in
               found["verdict"]["details"])  # fmt: skip


def test_nothing_is_added_where_all_is_decided_at_the_first_look(groups: dict[str, Any], tmp_path: Path) -> None:
    found = compared(groups, tmp_path / "out", "standard;standard[window=16]", seeds="auto", match="none", margin=9.0)
    assert [look["seeds"] for look in found["looks"]] == [3]
    assert found["verdict"]["kind"] == "shared" and set(counts(found).values()) == {3}


def test_a_comparison_by_need_goes_on_and_does_not_look_twice(groups: dict[str, Any], tmp_path: Path) -> None:
    blocks = "standard;standard[window=16]"
    first = compared(groups, tmp_path / "out", blocks, seeds="auto", most_seeds=4, match="none", margin=0.0)
    again = compared(groups, tmp_path / "out", blocks, seeds="auto", most_seeds=4, match="none", margin=0.0)
    assert [c["runs"] for c in first["choices"]] == [c["runs"] for c in again["choices"]]
    with pytest.raises(InputError, match=r"looks was \[3, 4\], now \[3, 5, 8\]"):
        compared(groups, tmp_path / "out", blocks, seeds="auto", most_seeds=8, match="none", margin=0.0)
    with pytest.raises(InputError, match=r"looks was \[3, 4\], now None"):
        compared(groups, tmp_path / "out", blocks, seeds=6, match="none", margin=0.0)


@pytest.mark.slow
def test_seeds_by_need_with_workers_are_the_same_runs(groups: dict[str, Any], tmp_path: Path) -> None:
    blocks = "standard;standard[window=16]"
    terms: dict[str, Any] = {"seeds": "auto", "most_seeds": 4, "match": "none", "margin": 0.0}
    one = compared(groups, tmp_path / "one", blocks, **terms)
    two = compared(groups, tmp_path / "two", blocks, workers=2, **terms)
    losses = [[[run["final_loss"] for run in c["runs"]] for c in report["choices"]] for report in (one, two)]
    assert losses[0] == losses[1] and len(losses[0][0]) == 4


def test_a_purpose_is_answered_first(groups: dict[str, Any], tmp_path: Path) -> None:
    found = compared(groups, tmp_path / "out", "standard;mla[kv_rank=4]", want=("cache<0.9*standard",))
    assert found["answers"][0]["question"] == "Which, if cache<0.9*standard?"
    assert found["answers"][0]["sentences"][0].startswith("Only mla[kv_rank=4] meets it")
    assert "--want 'cache<0.9*standard'" in found["provenance"]["command"]


def test_a_second_text_is_trained_on_with_the_same_steps_and_said_of(groups: dict[str, Any], tmp_path: Path) -> None:
    second = written(tmp_path / "second.txt", 1)
    found = compared(groups, tmp_path / "out", confirm=str(second))
    confirmation = found["confirmation"]
    assert [c["name"] for c in confirmation["choices"]] == ["standard", "relu2"]
    assert [len(c["runs"]) for c in confirmation["choices"]] == [2, 2]
    assert confirmation["choices"][0]["runs"][0]["final_loss"] != found["choices"][0]["runs"][0]["final_loss"]
    kept = sorted((tmp_path / "out" / "confirm" / "runs").glob("*/seed-*/result.json"))
    assert len(kept) == 4 and {json.loads(p.read_text())["run"]["steps"] for p in kept} == {STEPS}
    assert "second.txt" in answer(found, "Is it so on other data?")[0]

    # Asked for later, it uses what is there; and another text in its place is refused.
    before = {p: p.stat().st_mtime_ns for p in kept}
    compared(groups, tmp_path / "out", confirm=str(second))
    assert before == {p: p.stat().st_mtime_ns for p in kept}
    with pytest.raises(InputError, match="holds a confirmation on another text"):
        compared(groups, tmp_path / "out", confirm=str(written(tmp_path / "third.txt", 2)))


def test_a_confirmation_may_be_asked_for_afterwards(groups: dict[str, Any], tmp_path: Path) -> None:
    first = compared(groups, tmp_path / "out")
    assert first["confirmation"] is None and "--confirm PATH" in answer(first, "Is it so on other data?")[0]
    later = compared(groups, tmp_path / "out", confirm=str(written(tmp_path / "second.txt", 1)))
    assert [c["runs"] for c in first["choices"]] == [c["runs"] for c in later["choices"]]
    assert later["confirmation"]["source"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"confirm": "missing.txt"}, "missing.txt"),
        ({"want": ("cashe<1",)}, "'cashe' is not one of"),
        ({"margin": -1.0}, "margin=-1.0 should be a number of at least 0"),
        ({"seeds": "auto", "most_seeds": 1}, "most_seeds=1 should be at least 2"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(groups: dict[str, Any], tmp_path: Path, changes: Any,
                                                           says: str) -> None:  # fmt: skip
    with pytest.raises(InputError, match=says):
        compared(groups, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_the_same_text_and_a_task_without_one_confirm_nothing(groups: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is data\.path itself"):
        compared(groups, tmp_path / "out", confirm=groups["data"]["path"])
    with pytest.raises(InputError, match="the task 'recall' makes its own data"):
        compare("recall", CompareConfig("standard", confirm="x.txt"), {}, tmp_path / "out", show=False)
