"""Phrases that the sentences of a report are made of."""

from __future__ import annotations

from collections.abc import Sequence

from blockyard.report import units
from blockyard.report.schema import Interval, Report, input_unit, quality_unit, quality_word

# Runs whose spending differs by more than this part did not have an equal budget.
EQUAL = 0.02


def join(words: Sequence[str]) -> str:
    """Word "a, b and c" """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def level(report: Report, found: Interval) -> str:
    """Word "1.507 ± 0.012 nats/byte" """
    return f"{units.plus_minus(found['mean'], found['half_width'])} {quality_unit(report) or quality_word(report)}"


def budget_amount(report: Report) -> str:
    """Return the budget as people read it."""
    return _amount(report, report["budget"]["value"])


def _amount(report: Report, value: float) -> str:
    unit = report["budget"]["unit"]
    if unit == "seconds":
        return units.duration(value)
    return units.count(value, "FLOP" if unit == "flops" else "")


def at_equal(report: Report) -> str:
    """Word "at equal tokens (2.0 M)"; where finished runs had more than 2 % more than others: "with 50 s to 1 min
    …"."""
    what = {"tokens": f"{input_unit(report)}s", "seconds": "training time", "flops": "training FLOPs"}
    unit = report["budget"]["unit"]
    had = [
        # mypy: the units of a budget are keys of a run.
        float(run[unit])  # type: ignore[literal-required]
        for choice in report["choices"]
        for run in choice["runs"]
        if run["status"] == "finished"
    ]
    if had and max(had) > (1 + EQUAL) * min(had):
        least, most = _amount(report, min(had)), _amount(report, max(had))
        return f"with {least} to {most} of {what[unit]} each, which is not equal"
    return f"at equal {what[unit]} ({budget_amount(report)})"


def spent(report: Report) -> str:
    """Word "after 2.0 M tokens" """
    what = {"tokens": f" {input_unit(report)}s", "flops": "", "seconds": " of training"}[report["budget"]["unit"]]
    return f"after {budget_amount(report)}{what}"
