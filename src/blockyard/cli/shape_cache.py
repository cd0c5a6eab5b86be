"""The shapes of commands, kept between calls: help and completion then import neither torch nor a block.

What is kept says which sources it was made from (names, sizes and times, as Python's own compiled files do): after any
change it is made anew. A wheel brings the shapes of its own sources, by their checksum (`hatch_build.py` makes them),
for the first call. Where anything is registered beside what is built in, a shape is made each time.
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
# What a wheel brings.
SHIPPED = Path(__file__).parent / FOLDER


def shape_of(command: Command) -> Shape:
    """Return the arguments of a command whose `prepare` has been called."""
    if has_additions() or has_more_tasks():
        return command.parser().shape
    made_from = fingerprint()
    try:
        place = cache_home() / FOLDER / file_name(command.name)
    except InputError:
        return _shipped(command.name) or command.parser().shape
    found = _read(place, made_from)
    if found is None:
        found = _shipped(command.name) or command.parser().shape
        _keep(place, made_from, found)
    return found


def file_name(command: str) -> str:
    """Return the name of the file that holds the shape of a command."""
    return f"{command.replace(' ', '-')}.json"


def kept_form(made_from: str, shape: Shape) -> str:
    """Return a shape as a file holds it.

    Args:
        made_from: what tells whether the sources are still the same.
        shape: the shape.

    Raises:
        TypeError, ValueError: for a default that JSON has not.
    """
    return json.dumps({"made_from": made_from, "shape": shape.to_dict()})


def _shipped(command: str) -> Shape | None:
    """Return what the wheel brought, if its sources are still those that it was built from."""
    place = SHIPPED / file_name(command)
    # Reading all sources costs a twentieth of a second: only where there is something to compare with.
    return _read(place, checksum()) if place.is_file() else None


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
        write_atomically(place, kept_form(made_from, shape))
    except (InputError, OSError, TypeError, ValueError):
        # A home that cannot be written: the next call takes as long as this one. Or a default that JSON has not.
        return


def fingerprint() -> str:
    """Return what changes with every change of the package's sources, with Python, and with where both lie."""
    root = Path(blockyard.__file__).parent
    parts = [str(root), sys.version, blockyard.__version__, *sorted(_sources(str(root)))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def checksum() -> str:
    """Return what changes with every change of what the package's sources hold, wherever they lie."""
    root = Path(blockyard.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _sources(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _sources(entry.path)
            elif entry.name.endswith(".py"):
                known = entry.stat()
                yield f"{entry.path} {known.st_size} {known.st_mtime_ns}"
