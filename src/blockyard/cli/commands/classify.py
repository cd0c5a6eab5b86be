"""`blockyard classify RUN FILE`: classes for the rows of text or the frames of samples in a file, by a trained run.

What a file is read as depends on the run's task: its kind does it (`TaskKind.classify`).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from blockyard.cli.command import Command
from blockyard.cli.console import write_as_it_is
from blockyard.cli.parser import Parser
from blockyard.errors import InputError, at_least


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_flat
    from blockyard.cli.sources import add_trust
    from blockyard.registry.options import options_of
    from blockyard.tasks.kind import ClassifyOptions

    parser.usage = "%(prog)s DIR FILE [options]"
    parser.plain("run", "folder of a run of `train classify` or `train signal`", metavar="DIR", nargs="?")
    parser.plain("file", "text: CSV, TSV or JSONL; samples: .npy, .npz or .sigmf-meta, cut into the model's frames",
                 metavar="FILE", nargs="?")  # fmt: skip
    parser.plain("--out", "write there; to standard output when not given", metavar="FILE")
    add_trust(parser, "the run")
    add_flat(parser, "how to classify", options_of(ClassifyOptions))


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import read_flat
    from blockyard.cli.sources import trusted
    from blockyard.files import check_writable, write_atomically
    from blockyard.registry.options import options_of
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import load_run

    options = ClassifyOptions(**read_flat(arguments, options_of(ClassifyOptions)))
    if arguments.run is None or arguments.file is None:
        raise InputError("which run and which file? blockyard classify DIR FILE")
    at_least(1, **{"--top": options.top, "--batch_size": options.batch_size})
    if arguments.out is not None:
        check_writable(arguments.out)
    trained = load_run(Path(arguments.run), which=options.checkpoint, trust=trusted(arguments))
    rows = trained.run.kind.classify(trained, Path(arguments.file), options)
    text = written(rows, options.format)
    if arguments.out is None:
        write_as_it_is(text)
    else:
        write_atomically(arguments.out, text)
    told = [row["is"][0]["class"] == row["label"] for row in rows if "label" in row]
    if told:
        print(f"accuracy {sum(told) / len(told):.4f} ({sum(told)} of {len(told)} labelled rows)", file=sys.stderr)
    return 0


def written(rows: list[dict[str, Any]], format: str) -> str:
    """The rows as text; for people also how often each class was the likeliest.

    Args:
        rows: where each is (`row`, or `frame` and `symbol`), its true `label` if known, and what it `is`.
        format: table, csv or json.
    """
    place = [key for key in ("row", "frame", "symbol", "label") if any(key in row for row in rows)]
    if format == "json":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if format == "csv":
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        ranks = range(1, len(rows[0]["is"]) + 1)
        table.writerow([*place, *(f"{what}_{rank}" for rank in ranks for what in ("class", "probability"))])
        for row in rows:
            found = [value for entry in row["is"] for value in entry.values()]
            table.writerow([*(row.get(key, "") for key in place), *found])
        return buffer.getvalue()
    lines = []
    for row in rows:
        where = "  ".join(f"{key} {row.get(key, ''):>5}" for key in place)
        lines.append(f"{where}  " + "   ".join(f"{e['class']:<8} {100 * e['probability']:5.1f} %" for e in row["is"]))
    counts = Counter(row["is"][0]["class"] for row in rows)
    lines.append("likeliest: " + ", ".join(f"{name} {100 * n / len(rows):.1f} %" for name, n in counts.most_common()))
    return "\n".join(lines) + "\n"


COMMAND = Command(
    "classify", "classes for rows of text or frames of samples, by a trained run", add_arguments, run, order=22,
    builds=True, example="blockyard classify runs/signal-001 recording.sigmf-meta --top 3",
)  # fmt: skip
