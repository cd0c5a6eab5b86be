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
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.console import write_as_it_is
from blockyard.cli.parser import Parser
from blockyard.errors import InputError, at_least

if TYPE_CHECKING:
    from blockyard.tasks.groups import Group

# What says where a row is, in the order of the columns.
PLACES = (
    "recording", "row", "frame", "burst", "annotation", "sample", "seconds", "samples", "duration", "lower", "upper",
    "snr", "frames", "symbol", "label",
)  # fmt: skip
# Rows that are written at once.
ROWS = 1024


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_flat, add_groups
    from blockyard.cli.sources import add_trust
    from blockyard.registry.options import options_of
    from blockyard.tasks.kind import ClassifyOptions

    parser.usage = "%(prog)s DIR FILE [options]"
    parser.plain("run", "folder of a run of `train classify` or `train signal`", metavar="DIR", nargs="?")
    parser.plain("file", "text: CSV, TSV or JSONL; samples: SigMF, .npy, .npz, .h5, .wav or raw, cut into the model's "
                 "frames; - for samples from a pipe", metavar="FILE", nargs="?")  # fmt: skip
    parser.plain("--out", "write there; to standard output when not given. With .sigmf-meta as suffix: what was "
                 "found in a recording, as SigMF annotations", metavar="FILE")  # fmt: skip
    add_trust(parser, "the run")
    add_flat(parser, "classify", "how to classify", options_of(ClassifyOptions))
    add_groups(parser, recording_groups())


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import given_words, read_flat, read_given
    from blockyard.cli.sources import trusted
    from blockyard.files import check_writable, is_same_file, writing
    from blockyard.registry.options import options_of
    from blockyard.tasks.kind import ClassifyOptions
    from blockyard.tasks.run import load_run

    grouped = [word for word in given_words(arguments) if word.group]
    data = read_given(recording_groups(), grouped).get("data", {})
    options = ClassifyOptions(**read_flat(arguments, options_of(ClassifyOptions)), data=data)
    if arguments.run is None or arguments.file is None:
        raise InputError("which run and which file? blockyard classify DIR FILE")
    at_least(1, **{"--top": options.top, "--batch_size": options.batch_size})
    if arguments.out is not None:
        check_writable(arguments.out)
        options = replace(options, out=Path(arguments.out))
        if is_same_file(arguments.out, arguments.file):
            raise InputError(f"--out {arguments.out} is the file that is read; name another")
    if arguments.out is not None and arguments.out.endswith(".sigmf-meta"):
        options = replace(options, annotations=Path(arguments.out))
    trained = load_run(Path(arguments.run), which=options.checkpoint, trust=trusted(arguments))
    rows = trained.run.kind.classify(trained, Path(arguments.file), options)
    told: Counter[bool] = Counter()
    text = written(_counted(rows, told), options.format)
    if options.annotations is not None:
        # The kind of run writes them; the rows are only gone through.
        for _ in text:
            pass
    elif arguments.out is None:
        for part in text:
            write_as_it_is(part)
    else:
        with writing(arguments.out) as file:
            for part in text:
                file.write(part.encode())
    for file_written in (arguments.out, options.waterfall):
        if file_written:
            print(f"written: {file_written}", file=sys.stderr)
    if told:
        right, count = told[True], told.total()
        print(f"accuracy {right / count:.4f} ({right} of {count} labelled rows)", file=sys.stderr)
    return 0


def recording_groups() -> dict[str, Group]:
    """Return the options of `data` that say how recordings are read."""
    from blockyard.tasks.groups import dataclass_group
    from blockyard.tasks.signal.recordings.opening import RecordingOptions

    return {"data": dataclass_group("data", "how recordings are read (runs of `train signal`)", RecordingOptions)}


def _counted(rows: Iterable[dict[str, Any]], told: Counter[bool]) -> Iterator[dict[str, Any]]:
    """Yield the rows and count how many of the labelled ones are right."""
    for row in rows:
        if "label" in row and row["is"]:
            told[row["is"][0]["class"] == row["label"]] += 1
        yield row


def written(rows: Iterable[dict[str, Any]], format: str) -> Iterator[str]:
    """Yield the rows as text, some at a time; for people also how often each class was the likeliest.

    Args:
        rows: where each is (`row`, or `frame`, `sample`, `seconds` and `symbol`), its true `label` if known, and what
            it `is`.
        format: table, csv or json.
    """
    place: list[str] = []
    cells = 0
    counts: Counter[str] = Counter()
    for chunk in batched(rows, ROWS):
        if not place:
            place = [key for key in PLACES if any(key in row for row in chunk)]
            if format == "csv":
                # A burst that is shorter than a frame has no class, and its row as many cells as the others.
                ranks = range(1, max(1, *(len(row["is"]) for row in chunk)) + 1)
                cells = 2 * len(ranks)
                yield _csv([[*place, *(f"{what}_{rank}" for rank in ranks for what in ("class", "probability"))]])
        if format == "json":
            yield "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chunk)
        elif format == "csv":
            values = ([value for entry in row["is"] for value in entry.values()] for row in chunk)
            padded = ([*found, *[""] * (cells - len(found))] for found in values)
            yield _csv([[*(row.get(key, "") for key in place), *found] for row, found in zip(chunk, padded)])
        else:
            counts.update(row["is"][0]["class"] for row in chunk if row["is"])
            yield "".join(_line(row, place) for row in chunk)
    # Of one row it is said: 100 % beside its probability would read as a surer one.
    if counts.total() > 1:
        shares = (f"{name} {100 * n / counts.total():.1f} %" for name, n in counts.most_common())
        yield f"likeliest: {', '.join(shares)}\n"


def batched(rows: Iterable[dict[str, Any]], count: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows in lists of up to `count`."""
    rest = iter(rows)
    while chunk := list(islice(rest, count)):
        yield chunk


def _csv(rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _line(row: dict[str, Any], place: list[str]) -> str:
    where = "  ".join(f"{key} {shown(row.get(key, '')):>5}{_unit(key, row)}" for key in place)
    # A burst that is shorter than a frame has no answer.
    found = "   ".join(f"{e['class']:<8} {100 * e['probability']:5.1f} %" for e in row["is"]) or "too short for a frame"
    return f"{where}  {found}\n"


def _unit(key: str, row: dict[str, Any]) -> str:
    """Return the unit behind a number of a table, with a blank before it; "" where its name says it or there is no
    number."""
    if row.get(key) in (None, ""):
        return ""
    # Edges are shares of the sample rate where that is not known.
    edge = " Hz" if "seconds" in row else " of the rate"
    return {"snr": " dB", "duration": " s", "lower": edge, "upper": edge}.get(key, "")


def shown(value: Any) -> Any:
    """Return a value as a table has it."""
    return "–" if value is None else value


COMMAND = Command(
    "classify",
    "classes for rows of text or frames of samples, by a trained run",
    add_arguments,
    run,
    order=22,
    builds=True,
    common=(
        "--out",
        "--format",
        "--top",
        "--detect",
        "--by",
        "--waterfall",
        "--data.sample_rate",
        "--text_field",
        "--label_field",
    ),
    example="blockyard classify runs/signal-001 recording.sigmf-meta --top 3",
)
