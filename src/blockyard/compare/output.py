"""A comparison's report in every form, with what its task adds: for a record just measured, or read from its folder."""

from __future__ import annotations

from pathlib import Path

from blockyard.errors import InputError
from blockyard.report import write
from blockyard.report.parts import Parts
from blockyard.report.schema import Report
from blockyard.report.write import load_report as load_report  # beside its counterpart, as it was before 0.2
from blockyard.tasks.kind import task_kind


def parts_of(task: str) -> Parts:
    """Return the parts of a task, by its name; those of a plug-in that is not loaded are left out."""
    try:
        return task_kind(task).report()
    except InputError:
        return Parts()


def write_report(report: Report, out: str | Path) -> dict[str, Path]:
    """Analyse the report and write every form of it; see `blockyard.report.write.write_report`.

    Args:
        report: the measured facts.
        out: folder, made if missing.

    Returns: the files by kind.

    Raises:
        InputError: when the folder cannot be written.
    """
    return write.write_report(report, out, parts_of(report["task"]))
