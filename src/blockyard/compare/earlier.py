"""Smaller comparisons that came before, for `--earlier`: what they answered, to be shown beside the present answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.report import schema
from blockyard.report.write import load_report
from blockyard.tasks.kind import Run


def earlier_answers(config: CompareConfig, base: Run[Any, Any]) -> list[schema.Earlier]:
    """Return what the reports in the folders of `earlier` answered, in their order.

    Raises:
        InputError: for a folder without a report, or one of another task or figure.
    """
    found = []
    for folder in config.earlier or ():
        report = load_report(Path(folder))
        if report["task"] != base.task:
            raise InputError(f"earlier={folder!r} is a comparison of the task {report['task']!r}, not of {base.task!r}")
        found.append(answer_of(report))
    return found


def answer_of(report: schema.Report) -> schema.Earlier:
    """Return what of a report is shown beside a later one."""
    ranked = [row for row in report["ranking"] if row["rank"] is not None]
    return {
        "budget": report["budget"],
        "seeds": len(report["seeds"]),
        "headline": report["verdict"]["headline"],
        "order": [row["name"] for row in ranked],
        "worse": [row["name"] for row in report["comparisons"] if row["verdict"] == "worse"],
    }
