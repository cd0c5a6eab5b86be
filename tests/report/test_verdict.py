"""The verdict: what the runs allow one to say, and in which words."""

from __future__ import annotations

import pytest

import blockyard.report.verdict as verdict_module
from blockyard.report import stats, units
from blockyard.report.verdict import analyse
from tests.fixtures.reports import SHAPES, synthetic_report


def verdict_of(**options):
    return analyse(synthetic_report(**options))["verdict"]


def test_a_clear_winner_is_named_with_its_loss_and_interval():
    verdict = verdict_of()
    assert verdict["kind"] == "winner"
    assert verdict["headline"].startswith("standard wins: 1.507 ± 0.0")
    assert "nats/byte at equal tokens (2.46 M)" in verdict["headline"]


def answers_of(**options):
    """The sentences below each question."""
    return {a["question"]: a["sentences"] for a in analyse(synthetic_report(**options))["answers"]}


WORSE, LONGER, CHEAPER = "Is it worse?", "What if I train longer?", "What if I need it faster, or smaller?"


def test_the_loser_is_told_with_what_it_is_better_at():
    found = answers_of()
    assert found[WORSE][0].startswith("tva+vft is worse than standard, by 0.4")
    assert any("tva+vft is 0.4" in line and "but caches 16× fewer bytes per token, trains 1.2× faster" in line
               for line in found[CHEAPER])  # fmt: skip


def test_a_loser_without_advantages_is_told_so():
    found = answers_of(names=("standard", "standard[window=64]+relu2"), floors={"standard[window=64]+relu2": 1.9})
    assert found[CHEAPER][-1].endswith("behind, with no advantage in speed, memory or cache.")


def test_what_another_choice_before_it_has_too_recommends_nothing():
    names = ("standard", "tva+vft", "spectral*3/standard")
    found = answers_of(names=names, floors={"tva+vft": 1.7, "spectral*3/standard": 1.9})
    assert "spectral*3/standard is 0.39" in found[CHEAPER][-1]
    assert found[CHEAPER][-1].endswith("what it has before standard, tva+vft has, too.")


def test_nothing_beats_a_leader_that_is_also_the_fastest():
    found = answers_of(names=("standard", "spectral*3/standard"))
    words = "loss, training speed, generation speed, training memory and parameters"
    assert found[CHEAPER][0] == f"Nothing beats standard on {words}."


# Seeds of the synthetic report that differ by .006 on average: a margin of 1 % (.015) is below what three show.
def test_a_difference_smaller_than_the_seeds_interval_is_undecided_and_does_not_share_the_lead():
    verdict = verdict_of(floors={"tva+vft": 1.503})
    assert verdict["kind"] == "undecided"
    assert verdict["headline"].startswith("standard has the best mean, 1.507 ± 0.0")
    assert "Undecided: tva+vft, 0.00" in verdict["headline"]
    assert "share the lead" not in verdict["headline"]
    line = answers_of(floors={"tva+vft": 1.503})[WORSE][0]
    assert line.startswith("tva+vft is undecided: 0.00") and "more seed" in line


def test_choices_within_the_margin_share_the_lead_over_a_third():
    names = ("standard", "standard[window=64]+relu2", "tva+vft")
    report = synthetic_report(names=names, floors={"standard[window=64]+relu2": 1.501}, noise=0.001)
    report["settings"]["compare"]["margin"] = 0.03
    found = analyse(report)
    assert found["verdict"]["kind"] == "shared"
    told = "standard and standard[window=64]+relu2 share the lead: equivalent within 0.03, 1.50"
    assert found["verdict"]["headline"].startswith(told)
    assert [row["verdict"] for row in found["comparisons"]] == ["equivalent", "worse"]


def test_a_margin_of_ones_own_decides_what_is_equivalent():
    def words(margin):
        report = synthetic_report(floors={"tva+vft": 1.503})
        report["settings"]["compare"]["margin"] = margin
        return [row["verdict"] for row in analyse(report)["comparisons"]]

    assert words(None) == ["undecided"] and words(0.1) == ["equivalent"] and words(0.0) == ["undecided"]


def test_a_shown_difference_that_lies_within_the_margin_is_equivalent():
    report = synthetic_report(floors={"tva+vft": 1.52}, noise=0.0005)
    report["settings"]["compare"]["margin"] = 0.05
    assert analyse(report)["verdict"]["kind"] == "shared"
    report["settings"]["compare"]["margin"] = 0.01
    assert analyse(report)["verdict"]["kind"] == "winner"


def test_a_noisy_last_never_shares_the_lead():
    """The demo's fault: the noisiest of six, last by a wide margin, was said to share the lead."""
    report = synthetic_report(names=("standard", "spectral*3/standard", "tva+vft"))
    last = report["choices"][1]
    for run, loss in zip(report["choices"][1]["runs"], (1.5, 1.7, 2.2)):
        run["final_loss"] = loss
    found = analyse(report)
    row = next(row for row in found["comparisons"] if row["name"] == last["name"])
    assert row["verdict"] == "undecided"
    assert "share" not in found["verdict"]["headline"]
    assert "Undecided: spectral*3/standard, 0.29 behind (" in found["verdict"]["headline"]


def test_many_undecided_choices_are_only_named_in_the_headline():
    names = tuple(SHAPES)
    verdict = verdict_of(names=(*names,), floors=dict.fromkeys(names, 1.5), noise=0.05)
    assert verdict["kind"] == "undecided" and verdict["headline"].count("behind") == 3
    report = synthetic_report(names=names, floors=dict.fromkeys(names, 1.5), noise=0.05)
    report["choices"].append({**report["choices"][1], "name": "twin"})
    assert analyse(report)["verdict"]["headline"].endswith("are undecided.")


def test_without_scipy_no_verdict_is_drawn(monkeypatch):
    monkeypatch.setattr(stats, "has_intervals", lambda: False)
    monkeypatch.setattr(verdict_module, "has_intervals", lambda: False)
    found = analyse(synthetic_report())
    assert found["verdict"]["kind"] == "no_verdict"
    assert "pip install 'blockyard[report]'" in found["verdict"]["headline"]
    assert found["ranking"][0]["final"]["half_width"] is None
    assert [row["verdict"] for row in found["comparisons"]] == ["unknown"]


def test_a_purpose_is_answered_by_the_best_that_meets_it():
    names = ("standard", "standard[window=64]+relu2", "tva+vft", "spectral*3/standard")

    def asked(*wants):
        report = synthetic_report(names=names)
        report["settings"]["compare"]["want"] = list(wants)
        return analyse(report)["answers"][0]

    small = asked("cache<=1KiB")
    assert small["question"] == "Which, if cache<=1KiB?"
    assert small["sentences"][0].startswith("spectral*3/standard wins: 1.7")
    assert any(line.startswith("tva+vft is worse than spectral*3/standard") for line in small["sentences"])
    assert small["sentences"][-1].startswith("standard, the best of all by its mean, does not meet it; that costs 0.2")
    both = asked("cache<1KiB", "decode>=standard")
    assert both["question"] == "Which, if cache<1KiB and decode>=standard?"
    assert both["sentences"][0].startswith("Only tva+vft meets it: 1.9")
    assert asked("train>1M")["sentences"] == ["None of the choices that finished meets that."]


def test_a_purpose_says_what_was_not_measured_also_when_nothing_meets_it():
    report = synthetic_report()
    report["settings"]["compare"]["want"] = ["decode>1M"]
    report["choices"][1]["speed"] = None
    sentences = analyse(report)["answers"][0]["sentences"]
    assert sentences == [
        "None of the choices that finished meets that.", "What it asks for was not measured of tva+vft."
    ]  # fmt: skip


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


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"d_model": 64},
            "To match standard, tva+vft became 64 wide, and its embedding and output matrix with it: 7.40 M parameters "
            "in all, against 919 k; --match none compares them at the same width and depth.",
        ),
        (
            {"n_layers": 1, "d_ff": 104},
            "To match standard, tva+vft became 1 layer deep; --match none compares them at the same width and depth.",
        ),
        ({"n_layers": 6}, "To match standard, tva+vft became 6 layers deep."),
        ({"d_ff": 104}, ""),
    ],
    ids=["narrower", "shallower", "deeper", "hidden-width-alone"],
)
def test_a_match_that_changed_the_models_width_or_depth_is_said(changed, told):
    report = synthetic_report()
    report["choices"][1]["match"]["changed"] = changed
    report["choices"][0]["parameters"], report["choices"][1]["parameters"] = 918_528, 7_400_000
    found = [line for line in analyse(report)["verdict"]["details"] if line.startswith("To match")]
    assert found == ([told] if told else [])


@pytest.mark.parametrize(("unit", "words"), [("seconds", "at equal training time (2 min 50 s)"),
                                             ("flops", "at equal training FLOPs (12.0 TFLOP)")])  # fmt: skip
def test_the_budget_is_named_in_its_own_unit(unit, words):
    assert words in verdict_of(unit=unit)["headline"]


def test_runs_that_had_unequal_time_are_not_said_to_have_had_equal():
    report = synthetic_report(unit="seconds")
    for run, seconds in zip(report["choices"][1]["runs"], (170, 171, 180)):
        run["seconds"] = seconds
    headline = analyse(report)["verdict"]["headline"]
    assert "with 2 min 50 s to 3 min of training time each, which is not equal" in headline


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
    return next((a["sentences"] for a in analyse(report)["answers"] if a["question"] == LONGER), [])


def test_a_fall_at_the_end_wider_than_the_gaps_is_said_to_leave_the_order_open():
    details = with_curves([3.0, 2.0, 1.8, 1.7, 1.6], [3.0, 2.2, 2.0, 1.9, 1.68])
    found = [line for line in details if line.startswith("Still learning")]
    assert len(found) == 1
    assert "the loss fell by 0.1 to 0.22, at least as much as what parts tva+vft from the lead" in found[0]


def test_runs_that_have_settled_leave_nothing_to_say_about_a_longer_budget():
    details = with_curves([3.0, 1.6, 1.6, 1.6, 1.6], [3.0, 2.0, 1.91, 1.91, 1.9])
    assert not any(line.startswith("Still learning") for line in details)
    assert details[0].startswith("Over the last 20% of the budget the loss fell by at most 0.01, less than what parts")


def test_a_choice_far_behind_is_not_among_those_that_may_still_take_the_lead():
    details = with_curves([3.0, 2.0, 1.8, 1.7, 1.6], [3.0, 2.2, 2.0, 1.9, 1.68], [3.0, 2.9, 2.9, 2.9, 2.9])
    assert any("parts tva+vft from the lead" in line for line in details)


def test_an_accuracy_that_still_rises_is_told_as_a_rise():
    details = with_curves([0.2, 0.4, 0.5, 0.6, 0.7], [0.2, 0.3, 0.4, 0.5, 0.65], better="higher")
    assert any("rose by 0.1 to 0.15" in line for line in details)
