"""The parts of `tune` one by one: what is drawn, who is stopped, what mattered, what may be said, and the page."""

# ruff: noqa: E402
from __future__ import annotations

import copy
import random
import re
from pathlib import Path
from typing import Any

import pytest

import blockyard.tune.verdict as tune_verdict
from blockyard.report import stats

optuna = pytest.importorskip("optuna")

from blockyard.tune.importance import explained, importances, midranks
from blockyard.tune.search import Hyperband, SeededSampler, open_study
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import read_space
from blockyard.tune.verdict import judge


def draw(trial: Any) -> dict[str, Any]:
    drawn: dict[str, Any] = {"kind": trial.suggest_categorical("kind", ["a", "b"])}
    drawn["rate"] = trial.suggest_float("rate", 1e-3, 1.0, log=True)
    if drawn["kind"] == "b":
        drawn["rank"] = trial.suggest_int("rank", 1, 8)
    return drawn


def value(drawn: dict[str, Any]) -> float:
    return abs(drawn["rate"] - 0.1) + 0.1 * drawn.get("rank", 3)


@pytest.mark.parametrize("kind", ["tpe", "random"])
def test_draws_do_not_depend_on_how_often_the_process_was_started(tmp_path: Path, kind: str) -> None:
    config = TuneConfig(sampler=kind, seed=3)
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    study = open_study(tmp_path / "whole", config, "lower")
    whole = []
    for _ in range(16):
        trial = study.ask()
        whole.append(draw(trial))
        study.tell(trial, value(whole[-1]))
    cut = []
    for number in range(16):
        # A process for every trial; in every other one a first process has drawn a part of it and died.
        study = open_study(tmp_path / "cut", config, "lower")
        trial = study.ask()
        if number % 2:
            trial.suggest_categorical("kind", ["a", "b"])
            study = open_study(tmp_path / "cut", config, "lower")
            trial = optuna.trial.Trial(study, study.get_trials()[number]._trial_id)
        cut.append(draw(trial))
        study.tell(trial, value(cut[-1]))
    assert cut == whole
    assert len({str(drawn) for drawn in whole}) == 16


def test_another_seed_draws_otherwise() -> None:
    drawn = []
    for seed in (0, 1):
        study = optuna.create_study(sampler=SeededSampler("tpe", seed))
        drawn.append([draw(study.ask()) for _ in range(3)])
    assert drawn[0] != drawn[1]


def rungs(study: Any, pruner: Any, curves: list[list[float]]) -> list[int | None]:
    """At which part each trial was stopped, one after another."""
    found: list[int | None] = []
    for curve in curves:
        trial = study.ask()
        stopped = None
        for part, figure in enumerate(curve, 1):
            trial.report(figure, part)
            if pruner.prune(study, study.get_trials()[trial.number]):
                stopped = part
                break
        study.tell(trial, None if stopped else curve[-1], optuna.trial.TrialState.PRUNED if stopped else None)
        found.append(stopped)
    return found


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
@pytest.mark.parametrize("bracket", [0, 1, 2])
def test_hyperband_stops_as_optunas_halving_does(monkeypatch: pytest.MonkeyPatch, bracket: int, direction: str) -> None:
    draws = random.Random(bracket)
    curves = [[draws.random() + 1 / part for part in range(1, 13)] for _ in range(40)]
    mine = Hyperband(12)
    monkeypatch.setattr(mine, "bracket", lambda number: bracket)
    its = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3, min_early_stopping_rate=bracket)
    stopped = rungs(optuna.create_study(direction=direction), mine, curves)
    assert stopped == rungs(optuna.create_study(direction=direction), its, curves)
    assert len(set(stopped)) == 4 - bracket  # every rung stops some, and some get through


def test_hyperband_decides_the_same_when_asked_twice() -> None:
    study, pruner = optuna.create_study(), Hyperband(9)
    draws = random.Random(0)
    for _ in range(30):
        trial = study.ask()
        for part in range(1, 10):
            trial.report(draws.random(), part)
            first = pruner.prune(study, study.get_trials()[trial.number])
            assert pruner.prune(study, study.get_trials()[trial.number]) == first
            if first:
                break
        study.tell(trial, state=optuna.trial.TrialState.PRUNED)


def test_hyperbands_brackets_hold_more_trials_the_earlier_they_stop() -> None:
    pruner = Hyperband(12)
    counts = [sum(pruner.bracket(number) == bracket for number in range(3000)) for bracket in range(3)]
    # Shares as in the paper: ceil(3 * 3^s / (s + 1)) for s = 2, 1, 0.
    for count, share in zip(counts, (9, 5, 3)):
        assert count / 3000 == pytest.approx(share / 17, abs=0.03)


def test_explained_share_is_the_adjusted_correlation_ratio() -> None:
    # Groups 0, 1 | 2, 3: between them 4 of 5 of the variance; adjusted 1 - (1/2) / (5/3).
    assert explained([0, 1, 2, 3], ["a", "a", "b", "b"]) == pytest.approx(0.7)
    assert explained([0, 3, 1, 2], ["a", "a", "b", "b"]) == 0.0
    assert explained([0, 1, 2], ["a", "a", "a"]) == 0.0
    assert midranks([5, 1, 5, 9]) == [1.5, 0, 1.5, 3]


def made_trials(n: int = 24) -> list[Any]:
    draws = random.Random(1)
    found = []
    for number in range(n):
        settings = {"train.lr": 10 ** draws.uniform(-4, 0), "model.n_heads": draws.choice([1, 2, 4])}
        from math import log10

        figure = (log10(settings["train.lr"]) + 2) ** 2 + draws.gauss(0, 0.05)
        found.append(
            {"number": number, "status": "finished", "settings": settings, "value": figure, "part": 1.0,
             "same_as": None, "steps": 9, "tokens": 900, "seconds": 1.0, "cpu_seconds": 1.0, "flops": 1e6,
             "parameters": 1000, "note": "", "folder": f"trials/{number:04}",
             "curve": {"tokens": [300, 600, 900], "part": [0.333, 0.667, 1.0],
                       "value": [figure + 0.5, figure + 0.2, figure]}}
        )  # fmt: skip
    return found


def test_option_that_is_best_in_the_middle_is_found_to_matter() -> None:
    space = read_space("lm", {"train.lr": "1e-4..1 log", "model.n_heads": "1,2,4"})
    rows = importances(made_trials(), space.dimensions, "lower")
    assert [row["name"] for row in rows] == ["train.lr", "model.n_heads"]
    assert rows[0]["share"] > 0.4 > 0.1 > rows[1]["share"]
    assert importances(made_trials(7), space.dimensions, "lower") == []


def record(finals: dict[str, list[float]], *, better: str = "lower", status: str = "complete") -> Any:
    """A record as a search of 24 trials leaves it; the finals by name."""
    from blockyard.report.stats import Family, interval, margin_of
    from blockyard.tasks.kind import Quality
    from blockyard.tune.record import _beside_default
    from blockyard.tune.schema import SCHEMA

    space = read_space("lm", {"train.lr": "1e-4..1 log", "model.n_heads": "1,2,4"})
    trials = made_trials()
    for trial in trials[3::4]:
        trial.update(status="pruned", part=0.333, curve={k: v[:1] for k, v in trial["curve"].items()})
    trials[7].update(status="failed", value=None, curve=None, note="n_heads=3 does not divide d_model=8")
    rows, family = [], Family(finals)
    margin = margin_of(None, None, min((sum(v) / len(v) for v in finals.values()), default=None))
    for name, values in finals.items():
        mean, half = interval(values)
        number = None if name == "default" else int(name.split()[1])
        quality = Quality(better="lower" if better == "lower" else "higher")
        beside = _beside_default(name, family, quality, margin) if number is not None else {"verdict": ""}
        rows.append(
            {"name": name, "trial": number, "settings": trials[number or 0]["settings"], "blocks": "standard",
             "parameters": 1000, "search_value": None if number is None else trials[number]["value"],
             "runs": [{"seed": 1 + i, "status": "finished", "value": v, "steps": 9, "tokens": 9, "seconds": 1.0,
                       "note": "", "folder": f"finals/{name}/seed-{1 + i}"} for i, v in enumerate(values)],
             "mean": mean, "half_width": half, "diverged": 0, "difference": beside.get("difference"),
             "difference_half_width": beside.get("half_width"), "verdict": beside["verdict"],
             "more_seeds": beside.get("more_seeds")}
        )  # fmt: skip
    many = len(finals.get("default", []))
    best = min(rows, key=lambda r: r["mean"]) if rows else None
    found: Any = {
        "schema": SCHEMA, "status": status, "created": "2026-01-01T00:00:00+00:00", "task": "lm",
        "title": "language model", "input_unit": "token",
        "quality": {"metric": "validation loss", "unit": "nats/byte", "key": "val_loss", "better": better,
                    "margin": margin},
        "budget": {"unit": "tokens", "value": 200_000}, "search": {"trials": 24, "sampler": "tpe", "pruner": "median"},
        "space": [d.to_dict() for d in space.dimensions], "fixed": {}, "trials": trials,
        "importance": importances(trials, space.dimensions, better), "seeds": list(range(1, 1 + many)),
        "finals": rows,
        "best": best and {"name": best["name"], "trial": best["trial"], "settings": best["settings"],
                          "value": best["mean"], "half_width": best["half_width"], "seeds": many},
        "verdict": {}, "provenance": {"command": "blockyard tune lm", "seconds_total": 60.0}, "notes": ["A note."],
    }  # fmt: skip
    found["verdict"] = judge(found)
    return found


CLEAR = {"default": [1.6, 1.61, 1.59], "trial 4": [1.4, 1.41, 1.39], "trial 5": [1.5, 1.51, 1.49]}


def test_clear_difference_of_fresh_runs_is_called_better() -> None:
    verdict = record(CLEAR)["verdict"]
    assert verdict["kind"] == "better"
    assert verdict["headline"].startswith("Trial 4 beats the default configuration: 1.400 ± 0.025 nats/byte")
    assert "3 fresh seeds each" in verdict["headline"]
    assert any("1 of 24 trials could not be run; the first: n_heads=3" in line for line in verdict["details"])
    assert "A note." in verdict["details"]


@pytest.mark.parametrize(
    ("finals", "kind", "words"),
    [
        (
            {"default": [1.6, 1.4, 1.5], "trial 4": [1.5, 1.3, 1.45]},
            "undecided",
            "Undecided between the best trial found and",
        ),
        ({"default": [1.5, 1.5, 1.5], "trial 4": [1.499, 1.5, 1.501]}, "equivalent", "is equivalent to the default"),
        ({"default": [1.4, 1.41, 1.39], "trial 4": [1.6, 1.61, 1.59]}, "worse", "The default configuration is better"),
        ({"default": [1.6], "trial 4": [1.4]}, "one_seed", "One fresh seed, so no claim"),
        ({"default": [1.6, 1.5]}, "none", "The best trials are the default configuration"),
        ({}, "search_only", "nothing is claimed from it"),
    ],
    ids=["overlap", "equivalent", "worse", "one seed", "default found", "no fresh runs"],
)
def test_nothing_more_is_claimed_than_the_fresh_runs_show(finals: Any, kind: str, words: str) -> None:
    verdict = record(finals)["verdict"]
    assert verdict["kind"] == kind
    assert words in verdict["headline"]


def test_higher_is_better_where_the_task_says_so() -> None:
    assert record(CLEAR, better="higher")["verdict"]["kind"] == "worse"


def test_search_in_progress_claims_nothing() -> None:
    verdict = record({}, status="searching")["verdict"]
    assert verdict["kind"] == "unfinished"
    assert verdict["headline"].startswith("So far trial")


def test_best_value_at_the_end_of_its_range_says_to_search_further() -> None:
    found = record(CLEAR)
    found["best"]["settings"] = {"train.lr": 0.999, "model.n_heads": 4}
    assert "train.lr=0.999 is at the upper end of its range: search further." in judge(found)["details"]
    largest = "model.n_heads=4 is the largest of the values searched: a larger one may do better."
    assert largest in judge(found)["details"]
    found["best"]["settings"] = {"train.lr": 0.01, "model.n_heads": 2}
    assert not any("searched" in line or "its range" in line for line in judge(found)["details"])


def test_best_of_another_size_than_the_default_says_so() -> None:
    found = record(CLEAR)
    assert not any("parameters" in line for line in judge(found)["details"])
    found["finals"][1]["parameters"] = 2000
    told = "Trial 4 has 2 times the parameters of the default configuration (2,000 against 1,000)"
    assert any(line.startswith(told) for line in judge(found)["details"])


def test_luck_of_the_search_is_told() -> None:
    found = record(CLEAR)
    found["finals"][1]["search_value"] = 1.35
    assert "In the search trial 4 had 1.350: 0.050 better than its fresh runs." in " ".join(judge(found)["details"])


def test_page_is_one_file_without_network_or_scripts(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from blockyard.tune.report import render_html, write_report

    found = record(CLEAR)
    before = copy.deepcopy(found)
    page = render_html(found)
    assert found == before
    assert not re.search(r"https?://|<script|<img|<link", page)
    assert "Trial 4 beats the default configuration" in page
    for heading in ("The best configuration", "Run again with fresh seeds", "Every option", "Provenance"):
        assert f"<h2>{heading}</h2>" in page
    assert "n_heads=3 does not divide d_model=8" in page
    # Colours come from the page, so that one drawing serves light and dark.
    assert not re.search(r"(?:fill|stroke): #(?!ffffff)[0-9a-f]{6}", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    files = write_report(found, tmp_path)
    names = {"fresh-runs", "history", "curves", "importance", "option-train-lr", "option-model-n_heads", "pair"}
    assert {kind.removeprefix("png:") for kind in files if kind.startswith("png:")} == names
    assert all(path.stat().st_size > 1000 for path in files.values())


def test_small_numbers_on_an_axis_keep_their_digits() -> None:
    pytest.importorskip("matplotlib")
    from blockyard.tune.report import render_html

    page = render_html(record(CLEAR))
    ticks = re.findall(r">\s*(0\.0*1)\s*<", page)
    assert "0.001" in ticks


def test_page_without_fresh_runs_or_with_one_trial_is_still_a_page() -> None:
    pytest.importorskip("matplotlib")
    from blockyard.tune.report import render_html

    assert "nothing is claimed" in render_html(record({}))
    lone = record({})
    lone["trials"] = lone["trials"][:1]
    lone["importance"] = []
    lone["verdict"] = judge(lone)
    assert "<h2>Trials</h2>" in render_html(lone)


def test_without_scipy_no_verdict_is_drawn_and_no_divergence_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "has_intervals", lambda: False)
    monkeypatch.setattr(tune_verdict, "has_intervals", lambda: False)
    verdict = record(CLEAR)["verdict"]
    assert verdict["headline"].startswith("No verdict is drawn, as scipy is not installed")
