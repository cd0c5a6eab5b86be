"""What the folder of a run says of it: its metrics, and the record that is kept when it has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.report import schema
from blockyard.training.auxiliary import LOAD
from blockyard.training.folder import METRICS

RESULT = "result.json"


def curve(rows: list[dict[str, Any]], key: str) -> schema.Curve:
    """Return the rows that have the figure, as columns."""
    # Rows of metrics differ: most have a loss, few an evaluation.
    found = [row for row in rows if key in row]
    return {
        "step": [row["step"] for row in found],
        "tokens": [row["tokens"] for row in found],
        "seconds": [row["seconds"] for row in found],
        "flops": [float(row["flops"]) for row in found],
        "loss": [None if row[key] is None else round(row[key], 5) for row in found],
    }


def expert_loads(rows: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Return every expert's share of the tokens in the last tenth of the logged steps, by layer; empty without
    experts."""
    found: dict[str, list[float]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        layer, _, what = name.rpartition("/")
        if what == LOAD:
            # Of the end: a router balances in the first hundred steps, and its mean over the run would show that.
            logged = [row[name] for row in rows if name in row]
            last = logged[-max(1, len(logged) // 10) :]
            found[layer] = [round(sum(shares) / len(last), 5) for shares in zip(*last)]
    return found


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl.

    Raises:
        InputError: when the file is damaged.
    """
    try:
        return [parse_json(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    # A run that failed before its first step has none.
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise InputError(
            f"{folder / METRICS} is damaged: {error}; remove the run's folder to train it again"
        ) from error


def read_result(folder: Path) -> schema.Run | None:
    """Return the record of a run that has ended, if it has; a damaged record counts as none and is made again."""
    try:
        found = parse_json((folder / RESULT).read_text(encoding="utf-8"))
        return found["run"]
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def decisions_of(folder: Path) -> list[str]:
    """Return why a run computed as it did (precision, compilation), in words."""
    try:
        return list(parse_json((folder / RESULT).read_text(encoding="utf-8"))["decisions"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return []


def write_result(folder: Path, run: schema.Run, decisions: tuple[str, ...]) -> None:
    """Keep the record of a run that has ended."""
    # Last of all that a run leaves, and whole: a folder with it has ended, one without it goes on.
    write_atomically(folder / RESULT, json.dumps({"run": run, "decisions": list(decisions)}, allow_nan=False))
