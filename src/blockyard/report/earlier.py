"""What smaller comparisons said before, beside the answer of this one: was it worth waiting?"""

from __future__ import annotations

from blockyard.report.phrases import budget_amount, join
from blockyard.report.schema import Answer, Earlier, Report, input_unit

QUESTION = "Was an earlier answer right?"


def earlier_said(report: Report) -> list[Answer]:
    """Return what each earlier comparison answered, and what this one finds of it; the report is ranked and compared
    already. Nothing where there was none."""
    found = [line for before in report.get("earlier", ()) for line in _sentences(report, before)]
    return [{"question": QUESTION, "sentences": found}] if found else []


def _sentences(report: Report, before: Earlier) -> list[str]:
    unit = {"tokens": f" {input_unit(report)}s", "seconds": " of training"}.get(before["budget"]["unit"], "")
    spent = budget_amount({**report, "budget": before["budget"]})
    seeds = f"{before['seeds']} seed{'s' if before['seeds'] > 1 else ''}"
    said = f"After {spent}{unit} each, with {seeds} of {join(before['order'])}: “{before['headline']}”"
    ranked = [row["name"] for row in report["ranking"] if row["rank"] is not None]
    now = [name for name in ranked if name in before["order"]]
    then = [name for name in before["order"] if name in ranked]
    if len(now) < 2:
        return [said]
    if now == then:
        told = "Among these the order of the means is the same now."
    else:
        told = f"Among these the order of the means is now {join(now)}; then it was {join(then)}."
    # The one thing that an earlier answer claims is "worse": of that it may be asked whether it held.
    leader, worse_now = now[0], {row["name"] for row in report["comparisons"] if row["verdict"] == "worse"}
    overturned = [name for name in before["worse"] if name in now and (name == leader or name not in worse_now)]
    if overturned:
        told += f" Shown to be worse then, and not now: {join(overturned)}."
    return [said, told]
