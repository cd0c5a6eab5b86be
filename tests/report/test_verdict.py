"""The verdict: what the runs allow one to say, and in which words."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.report import units
from blockyard.report.stats import difference, interval, t_quantile
from blockyard.report.verdict import analyse
from tests.fixtures.reports import synthetic_report


def verdict_of(**options):
    return analyse(synthetic_report(**options))["verdict"]


def test_a_clear_winner_is_named_with_its_loss_and_interval():
    verdict = verdict_of()
    assert verdict["kind"] == "winner"
    assert verdict["headline"].startswith("standard wins: 1.507 ± 0.0")
    assert "nats/byte at equal tokens (2.46 M)" in verdict["headline"]


def test_the_loser_is_told_with_what_it_is_better_at():
    line = verdict_of()["details"][0]
    assert line.startswith("tva+vft is 0.4")
    assert "worse, but caches 16× fewer bytes per token, trains 1.2× faster" in line


def test_a_loser_without_advantages_is_told_so():
    details = verdict_of(names=("standard", "standard[window=64]+relu2"), floors={"standard[window=64]+relu2": 1.9})
    assert "worse, with no advantage in speed, memory or cache." in details["details"][0]


def test_a_difference_smaller_than_the_seeds_interval_is_no_difference():
    verdict = verdict_of(floors={"tva+vft": 1.503})
    assert verdict["kind"] == "tie"
    assert verdict["headline"].startswith("No difference shown with these seeds: standard and tva+vft")
    assert any("larger --seeds" in line for line in verdict["details"])


def test_two_near_leaders_share_the_lead_over_a_third():
    names = ("standard", "standard[window=64]+relu2", "tva+vft")
    verdict = verdict_of(names=names, floors={"standard[window=64]+relu2": 1.501})
    assert verdict["kind"] == "shared"
    assert "no difference shown between them" in verdict["headline"]
    assert any(line.startswith("tva+vft is 0.4") for line in verdict["details"])


def test_one_seed_makes_no_claim_about_loss_but_tells_what_needs_no_seeds():
    verdict = verdict_of(seeds=1)
    assert verdict["kind"] == "one_seed"
    assert verdict["headline"].startswith("One seed, so no claim")
    assert "wins" not in verdict["headline"]
    assert any("caches 16× fewer bytes" in line for line in verdict["details"])


def test_a_diverged_run_takes_the_choice_out_of_the_ranking():
    report = analyse(synthetic_report(diverged=(("standard", 1),)))
    assert [row["rank"] for row in report["ranking"]] == [1, None]
    assert report["ranking"][1]["name"] == "standard"
    assert any("standard diverged in 1 of 3 runs (seed 1)" in line for line in report["verdict"]["details"])
    assert report["verdict"]["kind"] == "single"


def test_nothing_is_ranked_when_every_run_diverged():
    lost = tuple((name, seed) for name in ("standard", "tva+vft") for seed in range(2))
    report = analyse(synthetic_report(seeds=2, diverged=lost))
    assert report["verdict"]["kind"] == "none"
    assert report["comparisons"] == []


def test_a_single_choice_is_reported_without_comparison():
    verdict = verdict_of(names=("standard",))
    assert verdict["kind"] == "single"
    assert verdict["headline"].startswith("standard reached 1.507")


def test_a_match_that_missed_is_said():
    details = verdict_of(names=("standard", "spectral*3/standard"))["details"]
    assert any("2.2% smaller than standard in parameters" in line for line in details)


@pytest.mark.parametrize(("unit", "words"), [("seconds", "at equal training time (2 min 50 s)"),
                                             ("flops", "at equal training FLOPs (12.0 TFLOP)")])  # fmt: skip
def test_the_budget_is_named_in_its_own_unit(unit, words):
    assert words in verdict_of(unit=unit)["headline"]


@pytest.mark.parametrize(("df", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (9, 2.2622), (30, 2.0423)])
def test_t_quantiles_are_those_of_the_tables(df, t):
    assert t_quantile(0.95, df) == pytest.approx(t, abs=1e-4)


def test_the_interval_of_three_values_is_the_textbook_one():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert interval([1.0]) == (1.0, None)
    assert interval([]) == (None, None)


def test_welchs_interval_of_two_samples_is_the_textbook_one():
    gap, half = difference([3.0, 4.0, 5.0], [1.0, 2.0, 3.0])
    assert gap == 2.0
    assert half == pytest.approx(2.7764 * math.sqrt(2 / 3), abs=1e-3)
    assert difference([1.0], [2.0, 3.0]) == (-1.5, None)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.5, 0.995), st.floats(1, 60))
def test_the_t_quantile_grows_with_confidence_and_shrinks_with_freedom(confidence, df):
    assert t_quantile(confidence, df) < t_quantile(confidence + 0.004, df)
    assert t_quantile(confidence, df) >= t_quantile(confidence, df + 1)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.count(12_345_678), "12.3 M"),
        (units.count(610), "610"),
        (units.count(1.2e13, "FLOP"), "12.0 TFLOP"),
        (units.size(16384), "16.0 KiB"),
        (units.size(256), "256 B"),
        (units.duration(72.4), "1 min 12 s"),
        (units.duration(3600), "1 h"),
        (units.plus_minus(1.6234, 0.0123), "1.623 ± 0.012"),
        (units.plus_minus(1.6, None), "1.600"),
        (units.plus_minus(None, None), "–"),
        (units.times(16.0), "16×"),
    ],
)
def test_numbers_read_as_people_write_them(written, expected):
    assert written == expected


def with_curves(*curves: list[float], better: str = "lower"):
    """A report whose choices are one run each, evaluated at equal distances."""
    report = synthetic_report(names=("standard", "tva+vft", "standard[window=64]+relu2")[: len(curves)], seeds=1)
    report["quality"]["better"] = better
    for choice, losses in zip(report["choices"], curves):
        (run,) = choice["runs"]
        ticks = [100 * (i + 1) for i in range(len(losses))]
        run["validation"] = {"step": ticks, "tokens": ticks, "seconds": ticks, "flops": ticks, "loss": losses}
        run["final_loss"] = run["best_loss"] = losses[-1]
    return analyse(report)["verdict"]["details"]


def test_a_fall_at_the_end_wider_than_the_gaps_is_said_to_leave_the_order_open():
    details = with_curves([3.0, 2.0, 1.8, 1.7, 1.6], [3.0, 2.2, 2.0, 1.9, 1.68])
    found = [line for line in details if line.startswith("Still learning")]
    assert len(found) == 1
    assert "the loss fell by 0.1 to 0.22, at least as much as what parts tva+vft from the lead" in found[0]


def test_runs_that_have_settled_leave_nothing_to_say_about_a_longer_budget():
    details = with_curves([3.0, 1.6, 1.6, 1.6, 1.6], [3.0, 2.0, 1.91, 1.91, 1.9])
    assert not any(line.startswith("Still learning") for line in details)


def test_a_choice_far_behind_is_not_among_those_that_may_still_take_the_lead():
    details = with_curves([3.0, 2.0, 1.8, 1.7, 1.6], [3.0, 2.2, 2.0, 1.9, 1.68], [3.0, 2.9, 2.9, 2.9, 2.9])
    assert any("parts tva+vft from the lead" in line for line in details)


def test_an_accuracy_that_still_rises_is_told_as_a_rise():
    details = with_curves([0.2, 0.4, 0.5, 0.6, 0.7], [0.2, 0.3, 0.4, 0.5, 0.65], better="higher")
    assert any("rose by 0.1 to 0.15" in line for line in details)
