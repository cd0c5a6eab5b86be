"""The order of the choices, and each one beside the best mean: what the sentences of a report rest on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from blockyard.report.schema import (
    LOST,
    Choice,
    Comparison,
    Interval,
    Look,
    Ranked,
    Report,
    best_of,
    final_of,
    higher_is_better,
)
from blockyard.report.stats import CONFIDENCE, Family, interval, margin_of

# Seeds of the first look, and how much more each next one has, where seeds are added by need.
FIRST_LOOK, GROWTH = 3, 1.6


def finals(choice: Choice) -> list[float]:
    """Return final qualities of the runs that have one."""
    return [value for run in choice["runs"] if (value := final_of(run)) is not None]


def rank(report: Report, last: Collection[str] = ()) -> list[Ranked]:
    """Return choices by mean final quality; one with a run that diverged or failed comes after all that have none.

    Args:
        report: the measured facts.
        last: choices that were shown to be worse at an earlier look, with fewer seeds: they come after all others.
    """
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
            row["name"] in last,
            _sign(report) * (row["final"]["mean"] or 0.0),
        )
    )
    for place, row in enumerate(rows, start=1):
        if row["final"]["mean"] is not None and row["final"]["diverged"] == 0:
            row["rank"] = place
    return rows


def _sign(report: Report) -> int:
    """Return the sign with which a quality is the better the lower it is."""
    return -1 if higher_is_better(report) else 1


def _interval(values: list[float], diverged: int) -> Interval:
    mean, half_width = interval(values)
    return {"mean": mean, "half_width": half_width, "n": len(values), "diverged": diverged}


def margin_in(report: Report, ranking: Sequence[Ranked]) -> float:
    """Return how near figures of this report count as equal."""
    asked, natural = report["settings"].get("compare", {}).get("margin"), report["quality"].get("margin")
    return margin_of(asked, natural, ranking[0]["final"]["mean"] if ranking else None)


def compare_with_leader(
    report: Report, ranking: Sequence[Ranked], margin: float, confidence: float = CONFIDENCE
) -> list[Comparison]:
    """Return the first ranked of these choices against each other one.

    Args:
        report: the measured facts.
        ranking: choices in their order; the intervals hold for all pairs among them.
        margin: figures this near count as equal.
        confidence: that all intervals hold at once.
    """
    leader = next((row["name"] for row in ranking if row["rank"] is not None), None)
    if leader is None:
        return []
    lost = {row["name"] for row in ranking if row["final"]["diverged"]}
    values = {choice["name"]: finals(choice) for choice in report["choices"]}
    # A choice that lost runs is not judged, and its other runs lend no certainty to the rest.
    family = Family({row["name"]: values[row["name"]] for row in ranking if row["name"] not in lost}, confidence)
    rows: list[Comparison] = []
    for name in (row["name"] for row in ranking if row["name"] != leader):
        both = Family({name: values[name], leader: values[leader]}, confidence) if name in lost else family
        found = both.difference(name, leader)
        word = "unknown" if name in lost else found.word(report["quality"].get("better", "lower"), margin)
        row: Comparison = {
            "name": name,
            "against": leader,
            "difference": found.gap,
            "half_width": found.half_width,
            "verdict": word,
        }
        if word == "undecided":
            row["more_seeds"] = family.seeds_to_decide(name, leader, margin)
        rows.append(row)
    return rows


def plan_looks(most: int) -> list[Look]:
    """Return when a comparison that adds seeds by need looks at them, and what error each look may make.

    Looking more often claims more that is not there, so the error of all looks together is kept: each has a part of it
    as large as its part of the most seeds (a linear spending function, Lan and DeMets 1983).

    Args:
        most: seeds that a choice has at most.
    """
    seeds = [min(FIRST_LOOK, most)]
    while seeds[-1] < most:
        seeds.append(min(most, max(seeds[-1] + 1, round(GROWTH * seeds[-1]))))
    before = [0, *seeds[:-1]]
    return [{"seeds": n, "alpha": (1 - CONFIDENCE) * (n - m) / most} for n, m in zip(seeds, before)]


def compare_by_need(report: Report) -> tuple[list[Ranked], list[Comparison]]:
    """Return the order and the comparisons of a report whose seeds were added by need, look by look.

    What is shown to be worse at a look stays so and has no more seeds; all others are looked at again with more.

    Args:
        report: the measured facts, with `looks` as far as they were taken.
    """
    decided: dict[str, Comparison] = {}
    rows: list[Comparison] = []
    for look in report["looks"]:
        seen = _at_look(report, look["seeds"], decided)
        ranking = rank(seen)
        rows = compare_with_leader(seen, ranking, margin_in(report, ranking), 1 - look["alpha"])
        decided |= {row["name"]: {**row, "seeds": look["seeds"]} for row in rows if row["verdict"] == "worse"}
    ranking = rank(report, last=decided)
    found = {row["name"]: row for row in rows} | decided
    return ranking, [found[row["name"]] for row in ranking if row["name"] in found]


def _at_look(report: Report, seeds: int, without: Collection[str]) -> Report:
    """Return the report as it was when every choice that was still open had this many seeds."""
    choices = [c for c in report["choices"] if c["name"] not in without]
    return {**report, "choices": [{**c, "runs": c["runs"][:seeds]} for c in choices]}


def still_open(report: Report) -> list[str]:
    """Return choices that another look should see: the leader and the undecided; none where nothing is undecided."""
    ranking, rows = compare_by_need(report)
    undecided = [row["name"] for row in rows if row["verdict"] == "undecided"]
    equivalent = [row["name"] for row in rows if row["verdict"] == "equivalent"]
    return [ranking[0]["name"], *equivalent, *undecided] if undecided else []
