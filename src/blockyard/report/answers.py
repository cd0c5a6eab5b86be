"""Answers to the questions with which a reader comes: is it worse, what if I train longer, what if I have less room?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockyard.report import units
from blockyard.report.learning import LAST_PART, gains_at_the_end, still_learning
from blockyard.report.phrases import join
from blockyard.report.schema import (
    Answer,
    Choice,
    Comparison,
    Report,
    higher_is_better,
    input_unit,
    quality_word,
)
from blockyard.report.wants import figure_of

# Smaller advantages in speed or memory are not worth a sentence: they come and go with the machine.
WORTH_SAYING = 1.15


def answers_of(report: Report) -> list[Answer]:
    """Return the questions that the report can answer, each with sentences; the report is ranked and compared
    already."""
    found = [
        ("Is it worse?", [line for row in report["comparisons"] if (line := in_a_sentence(report, row))]),
        ("What if I train longer?", _longer(report)),
        ("What if I need it faster, or smaller?", _cheaper(report)),
    ]
    return [{"question": question, "sentences": lines} for question, lines in found if lines]


def in_a_sentence(report: Report, row: Comparison) -> str:
    """Word "mla: undecided, 0.17 behind; about 3 more seeds decide." """
    name, leader, word = row["name"], row["against"], row["verdict"]
    if row["difference"] is None or word == "unknown":
        return ""
    behind = abs(row["difference"])
    gap = units.plus_minus(behind, row["half_width"])
    if word == "worse":
        shown = f" (shown with {row['seeds']} seeds)" if "seeds" in row else ""
        return f"{name} is worse than {leader}, by {gap}{shown}."
    if word == "equivalent":
        return f"{name} is equivalent to {leader}: {gap} behind, within the margin of {margin_in_words(report)}."
    return f"{name} is undecided: {gap} behind {leader}; {seeds_in_words(row)}."


def seeds_in_words(row: Mapping[str, Any]) -> str:
    """Return how many more seeds would decide, as far as can be told, of a row that has `more_seeds`."""
    more = row.get("more_seeds")
    if more is None:
        return "more seeds than are worth running would decide"
    return f"about {more} more seed{'s' if more > 1 else ''} decide{'' if more > 1 else 's'}"


def margin_in_words(report: Report) -> str:
    """Return the margin within which two choices are equivalent, with as many digits as it has."""
    return f"{report['margin']:.2g}"


def _longer(report: Report) -> list[str]:
    """Return what the ends of the curves say of a larger budget."""
    learning = still_learning(report, report["ranking"])
    if learning is not None:
        return [learning]
    found = gains_at_the_end(report, report["ranking"])
    if found is None:
        return []
    gains, gaps = found
    nearest = min(gaps, key=lambda name: gaps[name])
    moved = "rose" if higher_is_better(report) else "fell"
    return [
        f"Over the last {LAST_PART:.0%} of the budget the {quality_word(report)} {moved} by at most "
        f"{max(0.0, *gains):.2g}, less than what parts {nearest} from the lead ({gaps[nearest]:.2g}): a somewhat "
        "larger budget should keep the order. Of one many times as large this report knows nothing."
    ]


def _cheaper(report: Report) -> list[str]:
    """Return what nothing beats, and what each other choice gives for its quality."""
    by_name = {choice["name"]: choice for choice in report["choices"]}
    ranked = [row["name"] for row in report["ranking"] if row["rank"] is not None]
    if len(ranked) < 2:
        return []
    leader, others = by_name[ranked[0]], [by_name[name] for name in ranked[1:]]
    rows = {row["name"]: row for row in report["comparisons"]}
    unbeaten = [
        word
        for word in figures_of(report, leader)
        if not any(_times_better(report, word, other, leader) >= WORTH_SAYING for other in others)
    ]
    found = []
    if unbeaten:
        words = join([quality_word(report), *unbeaten])
        found.append(f"Nothing beats {leader['name']} on {words}.")
    for place, choice in enumerate(others):
        better = next((c for c in others[:place] if _beats(report, c, choice)), None)
        found.append(_trade_off(report, choice, leader, rows[choice["name"]], better))
    return [line for line in found if line]


def _trade_off(report: Report, choice: Choice, leader: Choice, row: Comparison, better: Choice | None) -> str:
    """Word "tva+vft is 0.40 behind, but caches 16× fewer bytes per token." """
    if row["difference"] is None or row["verdict"] == "unknown":
        return ""
    gap = f"{abs(row['difference']):.{units.decimals_for(row['half_width'])}f}"
    behind = {"equivalent": "equivalent", "undecided": f"{gap} behind (undecided)", "worse": f"{gap} behind"}[
        row["verdict"]
    ]
    gains = advantages(report, choice, leader)
    if not gains:
        return f"{choice['name']} is {behind}, with no advantage in speed, memory or cache."
    if better is not None:
        return f"{choice['name']} is {behind}, and what it has before {leader['name']}, {better['name']} has, too."
    return f"{choice['name']} is {behind}, but {join(gains)}."


def _beats(report: Report, a: Choice, b: Choice) -> bool:
    """Return whether a, which stands before b, is as good in all that b costs, by what is worth saying."""
    shared = figures_of(report, b).keys() & figures_of(report, a).keys()
    return bool(shared) and all(_times_better(report, word, b, a) < WORTH_SAYING for word in shared)


def figures_of(report: Report, choice: Choice) -> dict[str, tuple[float, bool, str]]:
    """Return what a choice costs, by name: the figure, whether more of it is better, and what an advantage is
    called."""
    found: dict[str, tuple[float | None, bool, str]] = {
        "cache": (figure_of(choice, "cache"), False, f"caches {{}} fewer bytes per {input_unit(report)}"),
        "training speed": (figure_of(choice, "train"), True, "trains {} faster"),
        "generation speed": (figure_of(choice, "decode"), True, "generates {} faster"),
        "training memory": (figure_of(choice, "memory"), False, "needs {} less memory to train"),
        "parameters": (choice["parameters_core"], False, "has {} fewer parameters"),
    }
    return {name: (value, more, says) for name, (value, more, says) in found.items() if value}


def _times_better(report: Report, word: str, choice: Choice, other: Choice) -> float:
    """Return by which factor a choice is better in one of its figures; 1 where either has none."""
    mine, its = figures_of(report, choice).get(word), figures_of(report, other).get(word)
    if mine is None or its is None:
        return 1.0
    return mine[0] / its[0] if mine[1] else its[0] / mine[0]


def advantages(report: Report, choice: Choice, other: Choice) -> list[str]:
    """Return what the choice does better than the other, apart from quality, the largest first."""
    found = [
        (factor, says.format(units.times(factor)))
        for word, (_, _, says) in figures_of(report, choice).items()
        if (factor := _times_better(report, word, choice, other)) >= WORTH_SAYING
    ]
    return [text for _, text in sorted(found, reverse=True)]
