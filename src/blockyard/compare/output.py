"""A comparison's report in every form, with what its task adds: for a record just measured, or read from its folder."""

from __future__ import annotations

from pathlib import Path

from blockyard.errors import InputError
from blockyard.report import write
from blockyard.report.parts import Parts
from blockyard.report.schema import Report
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


def load_report(path: str | Path) -> Report:
    """Read report.json (or the folder that holds it); a notebook shows it as the page, with what its task adds.

    Raises:
        InputError: when the file is missing, is not JSON, or is of another schema version.
    """
    found = write.load_report(path)
    return write.shown(found, parts_of(str(found.get("task"))))
