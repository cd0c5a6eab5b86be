"""Whether what was found on one text was found on a second one, too."""

from __future__ import annotations

from blockyard.report.phrases import join
from blockyard.report.ranking import compare_with_leader, margin_in, rank
from blockyard.report.schema import Answer, Comparison, Report

QUESTION = "Is it so on other data?"


def confirmed(report: Report) -> list[Answer]:
    """Return what the second text says of the order on the first; the report is ranked and compared already.

    Nothing where the task cannot be trained on a second text, or where nothing was ranked.
    """
    ranked = [row for row in report["ranking"] if row["rank"] is not None]
    if "confirmation" not in report or len(ranked) < 2:
        return []
    found = report["confirmation"]
    if found is None:
        told = "This order is of these data alone: --confirm PATH trains the same on a second file or folder."
        return [{"question": QUESTION, "sentences": [told]}]
    # As many looks as at the first text would be a second spending of the error; here there is one.
    # mypy: the other text's choices have the parts of a choice that a verdict reads.
    there: Report = {**report, "choices": found["choices"]}  # type: ignore[typeddict-item]
    ranking = rank(there)
    rows = compare_with_leader(there, ranking, margin_in(there, ranking))
    if not rows or ranking[0]["rank"] is None:
        return [{"question": QUESTION, "sentences": [f"On {found['source']} nothing could be ranked."]}]
    return [{"question": QUESTION, "sentences": _sentences(report, rows, found["source"])}]


def _sentences(report: Report, rows: list[Comparison], source: str) -> list[str]:
    """Return the verdict on the confirmation, then the words of every choice there."""
    leader, here = report["ranking"][0]["name"], {row["name"]: row["verdict"] for row in report["comparisons"]}
    best, there = rows[0]["against"], {row["name"]: row["verdict"] for row in rows}
    worse = [name for name, word in here.items() if word == "worse"]
    # What was worse here is at least not better there; the leader is not shown to be worse there.
    kept = [name for name in worse if there.get(name) == "worse"]
    if there.get(leader) == "worse":
        head = f"No: on {source} {leader} is worse than {best}."
    elif leader == best and len(kept) == len(worse):
        too = f", and {join(worse)} {_are(worse)} worse there as well" if worse else ""
        head = f"Yes: on {source} {leader} has the best mean, too{too}."
    elif best in worse:
        head = f"Not shown: on {source} {best}, worse here, has the best mean."
    else:
        part = f", and of what is worse here {join(kept)} {_are(kept)} worse there" if kept else ""
        head = f"In part: on {source} {best} has the best mean{part}."
    words = [f"{name} {word}" for name, word in there.items()]
    return [head, f"Beside {best} there: {join(words)}."]


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
