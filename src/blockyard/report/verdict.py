"""What the measured runs allow one to say, and in which words.

The rule: a difference between two choices is claimed only when its interval over seeds excludes zero. The leader is
compared with every other choice, and the intervals are widened for the number of comparisons (Bonferroni), so that
"A wins" is wrong in at most one comparison in twenty. One seed has no interval, so nothing is claimed from it.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Sequence

from blockyard.report import units
from blockyard.report.schema import (
    LOST,
    Choice,
    Comparison,
    Curve,
    Interval,
    Ranked,
    Report,
    Run,
    Verdict,
    best_of,
    final_of,
    higher_is_better,
    input_unit,
    position_word,
    quality_unit,
    quality_word,
)
from blockyard.report.stats import difference, interval

CONFIDENCE = 0.95
# Smaller advantages in speed or memory are not worth a sentence: they come and go with the machine.
_WORTH_SAYING = 1.15


def analyse(report: Report) -> Report:
    """Return the report with its ranking, comparisons and verdict worked out from its runs."""
    ranking = rank(report)
    comparisons = compare_with_leader(report, ranking)
    done: Report = {**report, "ranking": ranking, "comparisons": comparisons}
    done["verdict"] = put_in_words(done)
    return done


def finals(choice: Choice) -> list[float]:
    """Final qualities of the runs that have one."""
    return [value for run in choice["runs"] if (value := final_of(run)) is not None]


def rank(report: Report) -> list[Ranked]:
    """Choices by mean final quality; one with a run that diverged or failed comes after all that have none."""
    rows: list[Ranked] = []
    for choice in report["choices"]:
        diverged = sum(run["status"] in LOST for run in choice["runs"])
        best = [value for run in choice["runs"] if (value := best_of(run)) is not None]
        final = _interval(finals(choice), diverged)
        rows.append({"name": choice["name"], "rank": None, "final": final, "best": _interval(best, diverged)})
    # Python's sort is stable: choices that never finished keep the order in which they were named.
    rows.sort(
        key=lambda row: (
            row["final"]["mean"] is None,
            row["final"]["diverged"] > 0,
            _sign(report) * (row["final"]["mean"] or 0.0),
        )
    )
    for place, row in enumerate(rows, start=1):
        if row["final"]["mean"] is not None and row["final"]["diverged"] == 0:
            row["rank"] = place
    return rows


def _sign(report: Report) -> int:
    """Multiplied by it, a quality is the better the lower it is."""
    return -1 if higher_is_better(report) else 1


def _interval(values: list[float], diverged: int) -> Interval:
    mean, half_width = interval(values, CONFIDENCE)
    return {"mean": mean, "half_width": half_width, "n": len(values), "diverged": diverged}


def compare_with_leader(report: Report, ranking: list[Ranked]) -> list[Comparison]:
    """The leader against each other choice, intervals widened for the number of comparisons."""
    ranked = [row for row in ranking if row["rank"] is not None]
    if not ranked:
        return []
    values = {choice["name"]: finals(choice) for choice in report["choices"]}
    leader = ranked[0]["name"]
    others = [row for row in ranking if row["name"] != leader]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(others))
    found: list[Comparison] = []
    for row in others:
        gap, half_width = difference(values[row["name"]], values[leader], confidence)
        if gap is None or half_width is None or row["final"]["diverged"]:
            verdict = "unknown"
        else:
            verdict = "worse" if _sign(report) * gap > half_width else "none"
        found.append(
            {
                "name": row["name"],
                "against": leader,
                "difference": gap,
                "half_width": half_width,
                "verdict": verdict,
            }
        )
    return found


def put_in_words(report: Report) -> Verdict:
    """The answer in one or two plain sentences, then what else a reader should know before believing it."""
    ranking = report["ranking"]
    ranked = [row for row in ranking if row["rank"] is not None]
    details = _warnings(report)
    if (learning := still_learning(report, ranking)) is not None:
        details.insert(0, learning)
    if not ranked:
        return {
            "kind": "none",
            "headline": "No choice finished without diverging, so there is nothing to rank.",
            "details": details,
        }
    leader = ranked[0]
    by_name = {choice["name"]: choice for choice in report["choices"]}
    level = f"{_level(leader['final'])} {quality_unit(report) or quality_word(report)}"
    where = at_equal(report)
    if len(ranking) == 1:
        headline = f"{leader['name']} reached {level} {spent(report)}."
        return {"kind": "single", "headline": headline, "details": details}
    if leader["final"]["n"] < 2:
        return _one_seed(report, ranked, details)

    same = [row["name"] for row in report["comparisons"] if row["verdict"] == "none"]
    worse = [row["name"] for row in report["comparisons"] if row["verdict"] == "worse"]
    trade_offs = [
        _trade_off(report, by_name[row["name"]], by_name[leader["name"]], row)
        for row in report["comparisons"]
        if row["difference"] is not None and row["verdict"] != "unknown"
    ]
    if not same and not worse:
        headline = f"{leader['name']} reached {level} {where}; no other choice has results to compare it with."
        return {"kind": "single", "headline": headline, "details": details}
    if not same:
        headline = f"{leader['name']} wins: {level} {where}."
        return {"kind": "winner", "headline": headline, "details": trade_offs + details}
    tied = join([leader["name"], *same])
    if not worse:
        kind = "tie"
        headline = f"No difference shown with these seeds: {tied} end {where} within each other's interval."
    else:
        kind = "shared"
        headline = f"{tied} share the lead: no difference shown between them with these seeds, {level} {where}."
    if leader["final"]["n"] < 4:
        details.append(
            f"{leader['final']['n']} seeds make wide intervals. More seeds may separate the choices: run the same "
            "command with a larger --seeds, finished runs are kept."
        )
    return {"kind": kind, "headline": headline, "details": trade_offs + details}


def _one_seed(report: Report, ranked: list[Ranked], details: list[str]) -> Verdict:
    unit, places = quality_unit(report) or quality_word(report), 3
    losses = [f"{row['name']} {row['final']['mean']:.{places}f}" for row in ranked]
    headline = (
        f"One seed, so no claim: {join(losses)} {unit} {at_equal(report)}. "
        "A single run has no interval, and the order may be chance."
    )
    leader, by_name = ranked[0]["name"], {choice["name"]: choice for choice in report["choices"]}
    advantages = []
    for row in ranked[1:]:
        gains = _advantages(report, by_name[row["name"]], by_name[leader])
        if gains:
            advantages.append(f"What needs no seeds: against {leader}, {row['name']} {join(gains)}.")
    advice = "Run the same command with --seeds 3 or more to learn whether they differ; this run is kept."
    return {"kind": "one_seed", "headline": headline, "details": [*advantages, advice, *details]}


def _trade_off(report: Report, choice: Choice, leader: Choice, row: Comparison) -> str:
    """ "tva+vft is 0.40 ± 0.03 worse, but caches 16× fewer bytes per token." """
    assert row["difference"] is not None
    word = quality_word(report)
    gains = _advantages(report, choice, leader)
    if row["verdict"] == "none":
        if not gains:
            return f"{choice['name']} differs from {leader['name']} in {word} by less than the seeds do."
        return f"{choice['name']}, no different in {word}, {join(gains)}."
    gap = units.plus_minus(_sign(report) * row["difference"], row["half_width"])
    if not gains:
        return f"{choice['name']} is {gap} worse, with no advantage in speed, memory or cache."
    return f"{choice['name']} is {gap} worse, but {join(gains)}."


def _advantages(report: Report, choice: Choice, other: Choice) -> list[str]:
    """What the choice does better than the other, apart from quality, largest first."""
    found: list[tuple[float, str]] = []

    def note(better: float | None, worse: float | None, text: str) -> None:
        if better and worse and worse / better >= _WORTH_SAYING:
            found.append((worse / better, text.format(units.times(worse / better))))

    note(
        choice["cache_bytes_per_token"],
        other["cache_bytes_per_token"],
        f"caches {{}} fewer bytes per {input_unit(report)}",
    )
    mine, its = choice["speed"], other["speed"]
    if mine and its:
        note(its["train_wall"]["median"], mine["train_wall"]["median"], "trains {} faster")
        my_decode, its_decode = mine.get("decode_wall"), its.get("decode_wall")
        if my_decode and its_decode:
            note(its_decode["median"], my_decode["median"], "generates {} faster")
    if choice["memory"] and other["memory"]:
        note(choice["memory"]["peak_bytes"], other["memory"]["peak_bytes"], "needs {} less memory to train")
    note(choice["parameters_core"], other["parameters_core"], "has {} fewer parameters")
    return [text for _, text in sorted(found, reverse=True)]


def _warnings(report: Report) -> list[str]:
    """What makes the comparison less than it seems: divergence, unfinished runs, a match that missed."""
    found: list[str] = []
    matched = "parameters" if report["match"] == "params" else f"FLOPs per {position_word(report)}"
    for choice in report["choices"]:
        for status in LOST:
            lost = [run for run in choice["runs"] if run["status"] == status]
            if lost:
                found.append(_lost(choice, status, lost))
        missing = sum(run["status"] == "unfinished" for run in choice["runs"])
        if missing:
            found.append(
                f"{choice['name']}: {missing} of {len(choice['runs'])} runs are not finished. "
                "Run the same command again to continue."
            )
        if report["match"] == "params" and "d_model" in choice["match"]["changed"]:
            found.append(_widened(choice, report))
        miss = choice["match"]["miss"]
        if report["match"] != "none" and abs(miss) > 0.02:
            found.append(
                f"{choice['name']} is {abs(miss):.1%} {'larger' if miss > 0 else 'smaller'} than {report['reference']} "
                f"in {matched}: no setting of its widths comes nearer."
            )
    return found + report["notes"]


def _lost(choice: Choice, status: str, lost: list[Run]) -> str:
    """Word which runs ended without a figure, and for an error of the block's own which."""
    words = status if status == "diverged" else f"was {status}" if status == "killed" else "failed"
    seeds = join([str(run["seed"]) for run in lost])
    kept = sum(run["status"] not in LOST for run in choice["runs"])
    rest = f"its figures are of the other {kept}, and it is not ranked" if kept else "it is not ranked"
    why = "" if status == "diverged" else f"; {lost[0]['note'].rstrip('.')}"
    return f"{choice['name']} {words} in {len(lost)} of {len(choice['runs'])} runs (seed {seeds}{why}): {rest}."


def _widened(choice: Choice, report: Report) -> str:
    """Matching counts the blocks alone; a wider model also has a larger embedding, and the reader should know."""
    reference = next(c for c in report["choices"] if c["name"] == report["reference"])
    width = choice["match"]["changed"]["d_model"]
    mine, its = units.count(choice["parameters"]), units.count(reference["parameters"])
    return (
        f"To match {reference['name']}, {choice['name']} became {width} wide, and its embedding and output matrix "
        f"with it: {mine} parameters in all, against {its}."
    )


def at_equal(report: Report) -> str:
    """ "at equal tokens (2.0 M)" """
    unit = report["budget"]["unit"]
    what = {"tokens": f"{input_unit(report)}s", "seconds": "training time", "flops": "training FLOPs"}[unit]
    return f"at equal {what} ({budget_amount(report)})"


def spent(report: Report) -> str:
    """ "after 2.0 M tokens" """
    what = {"tokens": f" {input_unit(report)}s", "flops": "", "seconds": " of training"}[report["budget"]["unit"]]
    return f"after {budget_amount(report)}{what}"


def budget_amount(report: Report) -> str:
    """The budget as people read it."""
    unit, value = report["budget"]["unit"], report["budget"]["value"]
    if unit == "seconds":
        return units.duration(value)
    return units.count(value, "FLOP" if unit == "flops" else "")


def _level(found: Interval) -> str:
    return units.plus_minus(found["mean"], found["half_width"])


def join(words: Sequence[str]) -> str:
    """ "a, b and c" """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


# What a run gains over this last part of its budget is what the order is compared with.
LAST_PART = 0.2


def still_learning(report: Report, ranking: list[Ranked]) -> str | None:
    """A sentence when choices gained more over the last fifth of the budget than parts others from the lead.

    Args:
        report: the measured facts.
        ranking: its choices in order.

    Returns:
        None when the gaps are wider than that, or when there are too few evaluations to tell.
    """
    by_name = {choice["name"]: choice for choice in report["choices"]}
    ranked = [by_name[row["name"]] for row in ranking if row["rank"] is not None]
    ends = {choice["name"]: found for choice in ranked if (found := _end_and_gain(choice)) is not None}
    if len(ends) < 2 or len(ends) < len(ranked):
        return None
    sign = -1.0 if higher_is_better(report) else 1.0
    gains = [sign * gain for _, gain in ends.values()]
    leader = ends[ranked[0]["name"]][0]
    near = [choice["name"] for choice in ranked[1:] if sign * (ends[choice["name"]][0] - leader) < max(gains)]
    if max(gains) <= 0 or not near:
        return None
    moved = "rose" if higher_is_better(report) else "fell"
    least, most = (f"{max(0.0, value):.2g}" for value in (min(gains), max(gains)))
    amount = most if least == most else f"{least} to {most}"
    parts = "all choices" if len(near) == len(ranked) - 1 and len(near) > 1 else ", ".join(near)
    return (
        f"Still learning: over the last fifth of the budget the {quality_word(report)} {moved} by {amount}, at least "
        f"as much as what parts {parts} from the lead. A larger --budget.value may change the order."
    )


def _end_and_gain(choice: Choice) -> tuple[float, float] | None:
    """Final quality and how much it fell over the last part of the budget, averaged over finished runs."""
    found = []
    for run in choice["runs"]:
        if run["status"] == "finished":
            ends = _before_and_after(run.get("quality", run["validation"]))
            if ends is None:
                return None
            found.append(ends)
    if not found:
        return None
    return statistics.fmean(end for _, end in found), statistics.fmean(start - end for start, end in found)


def _before_and_after(curve: Curve) -> tuple[float, float] | None:
    """The quality when the last part of the budget began (interpolated), and at the end."""
    points = [(tokens, value) for tokens, value in zip(curve["tokens"], curve["loss"]) if value is not None]
    if len(points) < 3:
        return None
    total, end = points[-1]
    place = (1 - LAST_PART) * total
    after = bisect_left([tokens for tokens, _ in points], place)
    if after == 0:
        return None
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return y0 + (y1 - y0) * (place - x0) / (x1 - x0), end
