"""Text out of files, as a stream of pieces: strings, with None between two documents.

Nothing here holds more than a block of a text file at a time. Text is taken as it stands (no newline
translation), so one plain file's fingerprint is the file's own sha256; only a byte-order mark is dropped. Compressed
files are read as what they hold, and UTF-16 or UTF-32 where a mark says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import cast

from blockyard.errors import InputError
from blockyard.files import user_path
from blockyard.text.listing import (
    ARROW_SUFFIXES,
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    LeftOut,
    content_suffix,
    is_pattern,
    list_folder,
    list_pattern,
)
from blockyard.text.records import json_array_texts, json_shape, jsonl_texts
from blockyard.text.streams import read_text_file
from blockyard.text.tables import TableKind, table_texts

Pieces = Iterator[str | None]


def read_path(
    path: str | Path, format: str = "auto", text_field: str = "text", left_out: LeftOut | None = None
) -> Pieces:
    """Yield the text of a file, a folder or the files that a pattern matches: pieces, with None between documents.

    A plain text file is one document; each line of a JSONL file, each object of a JSON array and each row of a parquet
    or Arrow file is one. A file called .json is read so where its records have the field, and as it stands where they
    do not.

    Args:
        path: what to read.
        format: how; of a pattern, how each of its files.
        text_field: field or column that holds the text.
        left_out: what is told of documents that are not yielded.

    Raises:
        InputError: the path is missing, empty, unreadable, binary, not UTF-8, or lacks the field.
    """
    where = user_path(path, "data.path")
    left_out = LeftOut() if left_out is None else left_out
    if is_pattern(where):
        if format == "folder":
            raise InputError(f"data.path={str(path)!r} is a pattern and not a folder, as data.format='folder' says")
        files = list_pattern(where).files
        yield from _several(where, files, format, text_field, left_out)
        return
    try:
        is_folder, is_file, exists = where.is_dir(), where.is_file(), where.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"data.path={str(path)!r} cannot be read: {error}") from error
    # Not in the try: an InputError is a ValueError.
    if not exists:
        raise InputError(f"data.path={str(path)!r} does not exist; give a text file or a folder")
    if format == "auto":
        format = "folder" if is_folder else format_of(where, text_field, alone=True)
    if format == "folder" and not is_folder:
        raise InputError(f"data.path={str(path)!r} is not a folder, as data.format='folder' says")
    if format != "folder" and is_folder:
        raise InputError(f"data.path={str(path)!r} is a folder; use data.format='folder' or 'auto'")
    if not is_folder and not is_file:
        raise InputError(f"data.path={str(path)!r} is neither a file nor a folder; give one of them")
    if format == "folder":
        yield from _several(where, list_folder(where).files, "auto", text_field, left_out)
    else:
        yield from _file(where, format, text_field, left_out, refuse_empty=True)


def joined(documents: Iterable[Iterable[str]], left_out: LeftOut | None = None) -> Pieces:
    """Yield the pieces of non-empty documents, with None between them; empty ones are counted."""
    first = True
    for document in documents:
        started = False
        for piece in document:
            if not piece:
                continue
            if not started and not first:
                yield None
            started, first = True, False
            yield piece
        if not started and left_out is not None:
            left_out.empty += 1


def limited(pieces: Pieces, max_bytes: int, left_out: LeftOut | None = None) -> Pieces:
    """Yield the first `max_bytes` UTF-8 bytes of the pieces, cut back to a whole character."""
    left = max_bytes
    between = False
    for piece in pieces:
        if piece is None:
            between = True
            continue
        raw = piece.encode()
        if len(raw) > left:
            piece = raw[:left].decode(errors="ignore")
        if piece:
            if between:
                yield None
            yield piece
        between = False
        left -= len(raw)
        if left <= 0:
            if left_out is not None:
                left_out.cut = left < 0 or next(pieces, "") != ""
            return


def format_of(path: Path, text_field: str, *, alone: bool = False) -> str:
    """Return how a file is read that nobody says it of: txt, jsonl, json (an array of objects), parquet or arrow.

    Args:
        path: the file.
        text_field: field of the text, by which JSON records are known.
        alone: whether it is named by itself, and not found in a folder.

    Raises:
        InputError: for a .json file that cannot be read, or one alone whose records lack the field.
    """
    suffix = content_suffix(path)
    if suffix == ".json":
        return {"lines": "jsonl", "array": "json", "text": "txt"}[json_shape(path, text_field, alone=alone)]
    kinds = {"jsonl": JSONL_SUFFIXES, "parquet": PARQUET_SUFFIXES, "arrow": ARROW_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "txt")


def _file(path: Path, format: str, text_field: str, left_out: LeftOut, *, refuse_empty: bool) -> Pieces:
    try:
        if refuse_empty and path.stat().st_size == 0:
            raise InputError(f"data.path={str(path)!r} is empty; give a file with text")
        alone = partial(joined, left_out=left_out)
        if format == "jsonl":
            yield from alone((text,) for text in jsonl_texts(path, text_field))
        elif format == "json":
            yield from alone((text,) for text in json_array_texts(path, text_field))
        elif format in ("parquet", "arrow"):
            yield from alone((text,) for text in table_texts(path, text_field, cast("TableKind", format)))
        else:
            yield from alone([read_text_file(path)])
    except OSError as error:
        raise InputError(f"data.path={str(path)!r} cannot be read: {error.strerror or error}") from error


def _within(where: Path, path: Path, format: str, text_field: str, left_out: LeftOut) -> Pieces:
    """Yield the text of one of several files; what cannot be read names the way out."""
    try:
        format = format_of(path, text_field) if format == "auto" else format
        yield from _file(path, format, text_field, left_out, refuse_empty=False)
    except InputError as error:
        name = path.relative_to(where) if path.is_relative_to(where) else path
        kind = "folder" if where.is_dir() else "pattern"
        raise InputError(f"{error} (no file of a {kind} is skipped: mend {name}, or take it away)") from error


def _several(where: Path, files: Iterable[Path], format: str, text_field: str, left_out: LeftOut) -> Pieces:
    empty, between = True, False
    for path in files:
        for piece in _within(where, path, format, text_field, left_out):
            if between:
                yield None
            between = False
            yield piece
            empty = False
        between = not empty
    if empty:
        raise InputError(
            f"data.path={str(where)!r} has no text in it; files such as .txt .md .py .jsonl .parquet are read"
        )
