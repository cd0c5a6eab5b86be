"""Seeds by need, look by look, and what a second text says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blockyard.report.ranking import compare_by_need, plan_looks, still_open
from blockyard.report.verdict import analyse
from tests.fixtures.reports import synthetic_report


def made(figures: dict[str, list[float]], looks: list[Any]) -> Any:
    """As much of a report as comparisons rest on."""
    ended = {"status": "finished", "best_loss": 0.0}
    choices = [
        {"name": name, "runs": [{**ended, "seed": i, "final_loss": value} for i, value in enumerate(values)]}
        for name, values in figures.items()
    ]
    return {"choices": choices, "quality": {}, "settings": {}, "looks": looks}


@pytest.mark.parametrize(("most", "seeds"), [(12, [3, 5, 8, 12]), (3, [3]), (2, [2]), (20, [3, 5, 8, 13, 20])])
def test_looks_have_more_seeds_each_and_spend_the_error_together(most, seeds):
    looks = plan_looks(most)
    assert [look["seeds"] for look in looks] == seeds
    assert sum(look["alpha"] for look in looks) == pytest.approx(0.05)


def test_what_is_shown_to_be_worse_early_stays_so_with_the_seeds_it_had():
    looks = plan_looks(12)
    figures = {
        "near": [1.00, 1.02, 0.98, 1.01, 0.99],
        "lead": [0.98, 1.00, 0.96, 0.99, 0.97],
        "far": [2.00, 2.02, 1.98],
    }
    assert still_open(made({name: x[:3] for name, x in figures.items()}, looks[:1])) == ["lead", "near"]
    ranking, rows = compare_by_need(made(figures, looks[:2]))
    assert [row["name"] for row in ranking] == ["lead", "near", "far"]
    words = {row["name"]: (row["verdict"], row.get("seeds")) for row in rows}
    assert words == {"near": ("undecided", None), "far": ("worse", 3)}


def test_a_choice_that_was_decided_does_not_lead_when_the_others_turn_out_worse():
    looks = plan_looks(5)
    figures = {"a": [1.0, 1.001, 1.002, 3.0, 3.1], "b": [1.0, 1.002, 1.003, 2.9, 3.2], "far": [1.5, 1.501, 1.502]}
    ranking, rows = compare_by_need(made(figures, looks))
    assert ranking[-1]["name"] == "far" and ranking[-1]["final"]["mean"] < ranking[0]["final"]["mean"]
    assert {row["name"]: row["verdict"] for row in rows}["far"] == "worse"


def test_nothing_is_open_when_all_is_decided():
    assert still_open(made({"a": [1.0, 1.01, 0.99], "b": [2.0, 2.01, 1.99]}, plan_looks(12)[:1])) == []
    assert still_open(made({"a": [], "b": []}, plan_looks(12)[:1])) == []


@pytest.mark.slow  # a simulation of nothing but numbers
def test_looking_again_and_again_claims_no_more_than_one_in_twenty():
    """The whole procedure on choices that do not differ: seeds are added while anything is undecided."""
    random, claims, many = np.random.default_rng(7), 0, 400
    looks = plan_looks(8)
    for _ in range(many):
        figures = {name: list(1.0 + 0.02 * random.standard_normal(8)) for name in "abcd"}
        for taken in range(1, len(looks) + 1):
            report = made({name: x[: looks[taken - 1]["seeds"]] for name, x in figures.items()}, looks[:taken])
            if any(row["verdict"] == "worse" for row in compare_by_need(report)[1]):
                claims += 1
                break
    assert claims / many <= 0.055 + 3 * (0.05 * 0.95 / many) ** 0.5


def test_the_report_says_how_seeds_were_added():
    report = synthetic_report(seeds=5)
    report["looks"] = plan_looks(12)[:2]
    report["settings"]["compare"]["most_seeds"] = 12
    found = analyse(report)
    assert found["verdict"]["kind"] == "winner"
    (line,) = (line for line in found["verdict"]["details"] if line.startswith("Seeds by need"))
    assert "looked at after 3 and 5 of at most 12" in line and "1.3% and 0.8%" in line
    assert "tva+vft after 3 seeds" in line
    assert any("shown with 3 seeds" in s for answer in found["answers"] for s in answer["sentences"])


def answer(second: Any, **options: Any) -> list[str]:
    """What a report says of other data."""
    report = synthetic_report(**options)
    report["confirmation"] = second
    return next(a["sentences"] for a in analyse(report)["answers"] if a["question"] == "Is it so on other data?")


def on_another(figures: dict[str, list[float]]) -> Any:
    """What was found on a second text."""
    return {"source": "letters", "choices": made(figures, [])["choices"]}


LOW, HIGH = [1.0, 1.01, 0.99], [2.0, 2.01, 1.99]


@pytest.mark.parametrize(
    ("figures", "says"),
    [
        ({"standard": LOW, "tva+vft": HIGH}, "Yes: on letters standard has the best mean, too, and tva+vft is worse"),
        ({"standard": HIGH, "tva+vft": LOW}, "No: on letters standard is worse than tva+vft."),
        ({"standard": [1.0, 1.2, 0.8], "tva+vft": [0.9, 1.15, 0.8]}, "Not shown: on letters tva+vft, worse here, has"),
        ({"standard": [0.9, 1.1, 0.8], "tva+vft": [1.0, 1.15, 0.8]}, "In part: on letters standard has the best mean."),
        ({"standard": [], "tva+vft": []}, "On letters nothing could be ranked."),
    ],
)
def test_a_second_text_confirms_the_order_or_does_not(figures, says):
    assert answer(on_another(figures))[0].startswith(says)


def test_without_a_second_text_the_order_is_said_to_be_of_this_one_alone():
    assert answer(None) == [
        "This order is of these data alone: --confirm PATH trains the same on a second file or folder."
    ]
    assert all(a["question"] != "Is it so on other data?" for a in analyse(synthetic_report())["answers"])
