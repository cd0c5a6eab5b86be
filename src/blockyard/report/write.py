"""Writes a report folder: report.json and, from nothing but it, report.html, report.md, report.csv and PNGs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from blockyard.errors import InputError
from blockyard.files import parse_json, without_nan, write_atomically
from blockyard.report.html import render_cell, render_html
from blockyard.report.notebook import Record
from blockyard.report.parts import Parts
from blockyard.report.render import charts_of, render_png
from blockyard.report.schema import SCHEMA, Report
from blockyard.report.text import render_csv, render_markdown
from blockyard.report.verdict import analyse


def write_report(report: Report, out: str | Path, parts: Parts) -> dict[str, Path]:
    """Analyse the report and write every form of it.

    Args:
        report: the measured facts (schema.py); ranking, comparisons and verdict are worked out here.
        out: folder, made if missing.
        parts: what the report's task adds to it.

    Returns:
        The files by kind: "json", "html", "md", "csv", and one "png:NAME" per figure.

    Raises:
        InputError: when the folder cannot be written.
    """
    done = analyse(without_nan(report))
    contents: dict[str, tuple[str, bytes]] = {
        "json": (
            "report.json",
            (json.dumps(done, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        ),
        "html": ("report.html", render_html(done, parts).encode()),
        "md": ("report.md", render_markdown(done, parts).encode()),
        "csv": ("report.csv", render_csv(done).encode()),
    }
    for chart in charts_of(done, parts):
        contents[f"png:{chart.name}"] = (f"{chart.name}.png", render_png(chart, done))
    return write_files(contents, Path(out), "report")


def write_files(contents: Mapping[str, tuple[str, bytes]], folder: Path, what: str) -> dict[str, Path]:
    """Write files of (name, data) by kind into a folder, made if missing; returns their paths by kind.

    Raises:
        InputError: when the folder cannot be written; `what` names what was to be.
    """
    for name, data in contents.values():
        try:
            write_atomically(folder / name, data)
        except InputError as error:
            raise InputError(f"cannot write the {what}: {error}") from error.__cause__
    return {kind: folder / name for kind, (name, _) in contents.items()}


def read_record(path: str | Path, name: str, schema: str, what: str) -> Any:
    """Read a record, or that of the folder which holds it.

    Args:
        path: the file or the folder.
        name: the file's name in a folder.
        schema: the version that can be read.
        what: the error calls it so.

    Raises:
        InputError: when the file is missing, is not JSON, or is of another schema version.
    """
    file = Path(path) / name if Path(path).is_dir() else Path(path)
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the {what} {file}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}") from error
    known = found.get("schema") if isinstance(found, dict) else None
    if known != schema:
        raise InputError(f"{file} is no {what} of this version: it has schema {known!r}, and {schema!r} is read")
    return found


def load_report(path: str | Path) -> Report:
    """Read report.json (or the folder that holds it); a notebook shows it as the page, without what its task adds.

    Raises:
        InputError: when the file is missing, is not JSON, or is of another schema version.
    """
    return shown(read_record(path, "report.json", SCHEMA, "report"), Parts())


def shown(report: Report, parts: Parts) -> Report:
    """Return the same report, which a notebook shows as the page.

    Args:
        report: analysed, as report.json holds it.
        parts: what the report's task adds to it.
    """
    return cast(Report, Record(report, partial(render_cell, parts=parts)))
