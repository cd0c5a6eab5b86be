"""The shapes of commands, kept between calls: help and completion then import neither torch nor a block.

What is kept says which sources it was made from (names, sizes and times, as Python's own compiled files do): after any
change it is made anew. Where anything is registered beside what is built in, or the cache cannot be used, it is made
each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import blockyard
from blockyard.cli.command import Command
from blockyard.cli.shape import Shape
from blockyard.errors import InputError
from blockyard.files import cache_home, make_folder, parse_json, write_atomically
from blockyard.registry.register import has_additions
from blockyard.tasks.kind import has_more_tasks

FOLDER = "shapes"


def shape_of(command: Command) -> Shape:
    """Return the arguments of a command whose `prepare` has been called."""
    if has_additions() or has_more_tasks():
        return command.parser().shape
    made_from = fingerprint()
    try:
        place = cache_home() / FOLDER / f"{command.name.replace(' ', '-')}.json"
    except InputError:
        return command.parser().shape
    found = _read(place, made_from)
    if found is None:
        found = command.parser().shape
        _keep(place, made_from, found)
    return found


def _read(place: Path, made_from: str) -> Shape | None:
    """Return what is kept there, if it was made from these sources."""
    try:
        data = parse_json(place.read_text(encoding="utf-8"))
        return Shape.from_dict(data["shape"]) if data["made_from"] == made_from else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(place: Path, made_from: str, shape: Shape) -> None:
    try:
        make_folder(place.parent)
        write_atomically(place, json.dumps({"made_from": made_from, "shape": shape.to_dict()}))
    except (InputError, OSError, TypeError, ValueError):
        # A home that cannot be written: the next call takes as long as this one. Or a default that JSON has not.
        return


def fingerprint() -> str:
    """Return what changes with every change of the package's sources, with Python, and with where both lie."""
    root = Path(blockyard.__file__).parent
    parts = [str(root), sys.version, blockyard.__version__, *sorted(_sources(str(root)))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _sources(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                known = entry.stat()
                yield f"{entry.path} {known.st_size} {known.st_mtime_ns}"
