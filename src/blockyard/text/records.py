"""Texts out of records: JSON Lines, a JSON array of objects; one document a record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.text.streams import CONVERT, opened, read_lines

Shape = Literal["lines", "array", "text"]
# What is read of a JSON array at once; an object that is longer is waited for.
_BLOCK = 1 << 16


def json_shape(path: Path, field: str, *, alone: bool = False) -> Shape:
    """Return what a file called .json holds: an object a line, an array of objects, or something to be read as it
    stands.

    Lines are what Hugging Face's to_json and most exports write under that name. Objects without the field stay text
    in a folder (of settings, say); where the file is named by itself, that is more likely a slip.

    Args:
        path: the file.
        field: of the text.
        alone: whether the file is named by itself.

    Raises:
        InputError: for a file that cannot be read, or one alone whose records lack the field.
    """
    shape, record = _shape_and_first(path)
    if shape == "text" or field in record:
        return shape
    if alone:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise InputError(
            f"data.path={str(path)!r} holds JSON objects without the field {field!r} (they have: {names}); set "
            "data.text_field, or data.format=txt to read it as it stands"
        )
    return "text"


def _shape_and_first(path: Path) -> tuple[Shape, dict[str, Any]]:
    """Return the shape of a JSON file, and its first record where it has several."""
    with opened(path) as file:
        lines = (line.strip() for line in iter(file.readline, b""))
        try:
            first, second = (next((line for line in lines if line), b"").decode("utf-8") for _ in range(2))
        except UnicodeDecodeError:
            return "text", {}
    first = first.removeprefix("\ufeff")
    record: Any = None
    try:
        record = next(_json_array(path), None) if first.startswith("[") else parse_json(first)
    except (InputError, ValueError):
        return "text", {}
    if not isinstance(record, dict) or not (first.startswith("[") or second.startswith("{") or not second):
        return "text", {}
    return "array" if first.startswith("[") else "lines", record


def jsonl_texts(path: Path, field: str) -> Iterator[str]:
    """Yield the text of every line of a JSON Lines file."""
    for where, line in read_lines(path):
        try:
            record = parse_json(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not a JSON object: {error}") from error
        yield _record_text(record, where, field)


def json_array_texts(path: Path, field: str) -> Iterator[str]:
    """Yield the text of every object of a JSON array, a few at a time in memory."""
    for number, record in enumerate(_json_array(path)):
        yield _record_text(record, f"data.path={str(path)!r} element {number}", field)


def _json_array(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON array, decoded one by one.

    Raises:
        InputError: for what is no JSON array of whole elements.
    """
    where, decoder = f"data.path={str(path)!r}", json.JSONDecoder()
    with opened(path) as file:
        held, number = _more(file, "", where).removeprefix("\ufeff").lstrip(), 0
        if not held.startswith("["):
            raise InputError(f"{where} is not a JSON array")
        held = held[1:]
        while True:
            held = held.lstrip()
            if number and held.startswith(","):
                held = held[1:].lstrip()
            if held.startswith("]"):
                return
            try:
                _, end = decoder.raw_decode(held)
                # A number or word at the very end may go on in the next block.
                if end == len(held):
                    raise json.JSONDecodeError("unfinished", held, end)
                value = parse_json(held[:end])
            except (ValueError, RecursionError) as error:
                longer = _more(file, held, where)
                if len(longer) == len(held):
                    raise InputError(f"{where} element {number} is not JSON: {error}") from error
                held = longer
                continue
            yield value
            held, number = held[end:], number + 1


def _more(file: IO[bytes], held: str, where: str) -> str:
    """Return what is held, and as much again (a block at least), so that a long element is decoded a few times only."""
    raw = file.read(max(_BLOCK, len(held)))
    while raw:
        try:
            return held + raw.decode("utf-8")
        except UnicodeDecodeError as error:
            # A character that is cut by the block's end has at most three more bytes.
            if error.end < len(raw) - 4 or not (rest := file.read(1)):
                raise InputError(f"{where} is not UTF-8; {CONVERT}") from error
            raw += rest
    return held


def _record_text(record: Any, where: str, field: str) -> str:
    if not isinstance(record, dict):
        raise InputError(f"{where} is a JSON {type(record).__name__}, not an object with the field {field!r}")
    if field not in record:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise InputError(f"{where} has no field {field!r} (it has: {names}); set data.text_field")
    return checked_text(record[field], f"{where} field {field!r}")


def checked_text(value: Any, where: str) -> str:
    """Return a value that is text and UTF-8, or refuse it by its place."""
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is not text: lone surrogate at character {error.start}") from error
    return value
