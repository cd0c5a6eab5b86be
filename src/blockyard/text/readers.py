"""Text out of files, as a stream of pieces: strings, with None between two documents.

Nothing here holds more than a block of a text file at a time. Text is taken as it stands (no newline
translation), so one plain file's fingerprint is the file's own sha256; only a byte-order mark is dropped. Compressed
files are read as what they hold, and UTF-16 or UTF-32 where a mark says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import user_path
from blockyard.text.listing import JSONL_SUFFIXES, PARQUET_SUFFIXES, content_suffix, list_folder
from blockyard.text.records import json_array_texts, json_shape, jsonl_texts, parquet_texts
from blockyard.text.streams import read_text_file

Pieces = Iterator[str | None]


def read_path(path: str | Path, format: str = "auto", text_field: str = "text") -> Pieces:
    """Yield the text of a file or folder: pieces, with None between documents.

    A plain text file is one document; each line of a JSONL file, each object of a JSON array and each row of a parquet
    file is one. A file called .json is read so where its records have the field, and as it stands where they do not.

    Raises:
        InputError: the path is missing, empty, unreadable, binary, not UTF-8, or lacks the field.
    """
    where = user_path(path, "data.path")
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
        return _folder(where, text_field)
    return _file(where, format, text_field, refuse_empty=True)


def joined(documents: Iterable[Iterable[str]]) -> Pieces:
    """Yield the pieces of non-empty documents, with None between them."""
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


def limited(pieces: Pieces, max_bytes: int) -> Pieces:
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
            return


def format_of(path: Path, text_field: str, *, alone: bool = False) -> str:
    """Return how a file is read that nobody says it of: txt, jsonl, json (an array of objects) or parquet.

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
    return "jsonl" if suffix in JSONL_SUFFIXES else "parquet" if suffix in PARQUET_SUFFIXES else "txt"


def _file(path: Path, format: str, text_field: str, *, refuse_empty: bool) -> Pieces:
    try:
        if refuse_empty and path.stat().st_size == 0:
            raise InputError(f"data.path={str(path)!r} is empty; give a file with text")
        if format == "jsonl":
            yield from joined((text,) for text in jsonl_texts(path, text_field))
        elif format == "json":
            yield from joined((text,) for text in json_array_texts(path, text_field))
        elif format == "parquet":
            yield from joined((text,) for text in parquet_texts(path, text_field))
        else:
            yield from joined([read_text_file(path)])
    except OSError as error:
        raise InputError(f"data.path={str(path)!r} cannot be read: {error.strerror or error}") from error


def _within(folder: Path, path: Path, text_field: str) -> Pieces:
    """Yield the text of a file of a folder; what cannot be read names the way out."""
    try:
        yield from _file(path, format_of(path, text_field), text_field, refuse_empty=False)
    except InputError as error:
        name = path.relative_to(folder)
        raise InputError(f"{error} (no file of a folder is skipped: mend {name}, or take it away)") from error


def _folder(folder: Path, text_field: str) -> Pieces:
    empty, between = True, False
    for path in list_folder(folder).files:
        for piece in _within(folder, path, text_field):
            if between:
                yield None
            between = False
            yield piece
            empty = False
        between = not empty
    if empty:
        raise InputError(
            f"data.path={str(folder)!r} has no text in it; files such as .txt .md .py .jsonl .parquet are read"
        )
