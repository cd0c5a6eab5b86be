"""`blockyard classify`: what a trained signal model says of recorded samples."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockyard.cli.app import see_current_folder
from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


@dataclass(frozen=True)
class ClassifyOptions:
    """How to classify.

    Args:
        format: table (for people), csv or json (one object per frame).
        top: classes shown per frame, the likeliest first.
        scale: power divides the file's samples by their root mean square and multiplies by that of the training's
            middle SNR; none takes them as they are; auto is power for files whose power no training frame had.
        checkpoint: last, or best by validation loss.
    """

    format: Literal["table", "csv", "json"] = "table"
    top: int = 1
    scale: Literal["auto", "power", "none"] = "auto"
    checkpoint: Literal["last", "best"] = "last"


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.flat import add_flat
    from blockyard.options import options_of

    parser.usage = "%(prog)s DIR FILE [options]"
    parser.plain("run", "folder of a run of `train signal`", metavar="DIR", nargs="?")
    parser.plain("file", "samples: .npy, .npz or .sigmf-meta; cut into the model's frames", metavar="FILE", nargs="?")
    add_flat(parser, "how to classify", options_of(ClassifyOptions))


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.flat import read_flat
    from blockyard.options import options_of

    options = ClassifyOptions(**read_flat(arguments, options_of(ClassifyOptions)))
    if arguments.run is None or arguments.file is None:
        raise InputError("which run and which file? blockyard classify DIR FILE")
    if options.top < 1:
        raise InputError(f"--top={options.top} should be 1 or more")
    rows = classify(Path(arguments.run), Path(arguments.file), options)
    write(rows, options.format)
    return 0


def classify(folder: Path, file: Path, options: ClassifyOptions) -> list[dict[str, Any]]:
    """One row per frame (per symbol for an equaliser): its number, the likeliest classes and their probabilities."""
    import torch

    from blockyard.data.signal_files import frames_of, read_iq
    from blockyard.training.run import load_run
    from blockyard.training.signal import predict

    # A run may name plug-ins that lie there.
    see_current_folder()
    model, assets, _ = load_run(folder, which=options.checkpoint, tasks=("signal",))
    frames = scaled(frames_of(read_iq(file), assets.length, file), assets.power, options.scale)
    with torch.no_grad():
        probabilities = predict(model, frames).softmax(-1)
    per_frame = max(assets.symbols, 1)
    likeliest = probabilities.reshape(-1, probabilities.shape[-1]).topk(min(options.top, len(assets.classes)))
    rows = []
    for number, (values, classes) in enumerate(zip(likeliest.values.tolist(), likeliest.indices.tolist())):
        row: dict[str, Any] = {"frame": number // per_frame}
        if assets.symbols:
            row["symbol"] = number % per_frame
        names = [{"class": assets.classes[c], "probability": round(value, 4)} for c, value in zip(classes, values)]
        rows.append(row | {"is": names})
    return rows


def scaled(frames: Any, power: tuple[float, float] | None, scale: str) -> Any:
    """Frames on the scale of the training's, by the mean power of all of them."""
    if power is None or scale == "none":
        return frames
    low, high = power
    mean = float(frames.abs().square().mean())
    if scale == "auto" and 0.5 * low <= mean <= 2 * high:
        return frames
    if mean == 0:
        raise InputError("the samples are all zero")
    # The geometric middle: where half of the training's decibels lie on either side.
    wanted = (low * high) ** 0.5
    note = (
        f"note: mean power {mean:.3g}, trained on {low:.3g} to {high:.3g}; scaled to {wanted:.3g} (--scale none: as is)"
    )
    print(note, file=sys.stderr)
    return frames * (wanted / mean) ** 0.5


def write(rows: list[dict[str, Any]], format: str) -> None:
    """Print the rows, and for people how often each class was the likeliest."""
    place = [key for key in ("frame", "symbol") if key in rows[0]]
    if format == "json":
        for row in rows:
            print(json.dumps(row))
        return
    if format == "csv":
        ranks = range(1, len(rows[0]["is"]) + 1)
        print(",".join([*place, *(f"{what}_{rank}" for rank in ranks for what in ("class", "probability"))]))
        for row in rows:
            found = [str(value) for entry in row["is"] for value in entry.values()]
            print(",".join([*(str(row[key]) for key in place), *found]))
        return
    from collections import Counter

    for row in rows:
        where = "  ".join(f"{key} {row[key]:>5}" for key in place)
        print(f"{where}  " + "   ".join(f"{e['class']:<8} {100 * e['probability']:5.1f} %" for e in row["is"]))
    counts = Counter(row["is"][0]["class"] for row in rows)
    print("likeliest: " + ", ".join(f"{name} {100 * n / len(rows):.1f} %" for name, n in counts.most_common()))


COMMAND = Command(
    "classify", "which modulation recorded samples are, by a trained signal model", add_arguments, run, order=22,
    example="blockyard classify runs/signal-001 recording.sigmf-meta --top 3",
)  # fmt: skip
