"""Text out of files, as a stream of pieces: strings, with None between two documents.

Nothing here holds more than a block of a text file at a time. Text is taken as it stands (no newline
translation), so one plain file's fingerprint is the file's own sha256; only a byte-order mark is dropped.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, require
from blockyard.files import parse_json, user_path

Pieces = Iterator[str | None]

BLOCK_BYTES = 1 << 20
JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
_TEXT = (
    ".txt .text .md .rst .tex .html .htm .xml .csv .tsv .log .json .yaml .yml .toml .cfg .ini "
    ".py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .jsx .ts .tsx .rb .pl .lua .r .jl "
    ".hs .ml .scala .swift .sh .bash .sql .css"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())


def read_path(path: str | Path, format: str = "auto", text_field: str = "text") -> Pieces:
    """Yield the text of a file or folder: pieces, with None between documents.

    A plain text file is one document; each line of a JSONL file and each row of a parquet file is one.

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
        format = "folder" if is_folder else _format_of(where)
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


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    return "jsonl" if suffix in JSONL_SUFFIXES else "parquet" if suffix in PARQUET_SUFFIXES else "txt"


def _file(path: Path, format: str, text_field: str, *, refuse_empty: bool) -> Pieces:
    try:
        if refuse_empty and path.stat().st_size == 0:
            raise InputError(f"data.path={str(path)!r} is empty; give a file with text")
        if format == "jsonl":
            yield from joined((text,) for text in _jsonl(path, text_field))
        elif format == "parquet":
            yield from joined((text,) for text in _parquet(path, text_field))
        else:
            yield from joined([read_text_file(path)])
    except OSError as error:
        raise InputError(f"data.path={str(path)!r} cannot be read: {error.strerror or error}") from error


def _folder(folder: Path, text_field: str) -> Pieces:
    found: list[tuple[str, Path]] = []
    unreadable: list[OSError] = []
    for base, folders, files in os.walk(folder, onerror=unreadable.append):
        # Hidden folders hold repositories' and editors' own files, not the user's text.
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = Path(base, name)
            if not name.startswith(".") and _suffix_known(path) and path.is_file():
                found.append((path.relative_to(folder).as_posix(), path))
    if unreadable:
        error = unreadable[0]
        raise InputError(f"data.path={str(folder)!r}: {error.filename} cannot be read: {error.strerror}")
    # Sorted by name, not as the file system lists them: the same folder gives the same text everywhere.
    found.sort()
    empty, between = True, False
    for _, path in found:
        for piece in _file(path, _format_of(path), text_field, refuse_empty=False):
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


def _suffix_known(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in TEXT_SUFFIXES or suffix in JSONL_SUFFIXES or suffix in PARQUET_SUFFIXES


def read_text_file(path: Path) -> Iterator[str]:
    """Yield a UTF-8 text file in blocks cut between characters.

    Raises:
        InputError: a NUL byte (the file is binary) or a byte that is not UTF-8, each with its byte offset.
    """
    decode = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with open(path, "rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if (nul := block.find(0)) >= 0:
                raise InputError(
                    f"data.path={str(path)!r} is binary, not text (NUL byte at offset {offset + nul}); "
                    "give UTF-8 text, JSONL or parquet"
                )
            pending = len(decode.getstate()[0])
            try:
                text = decode.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"data.path={str(path)!r}", offset - pending + error.start) from error
            if offset == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            offset += len(block)


def _not_utf8(where: str, offset: int) -> InputError:
    return InputError(f"{where} is not UTF-8 (byte offset {offset}); convert it, e.g. with iconv -t utf-8")


def _jsonl(path: Path, field: str) -> Iterator[str]:
    offset = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"data.path={str(path)!r} line {number}"
            if 0 in raw:
                raise InputError(f"{where} is binary, not JSONL (NUL byte at offset {offset + raw.index(0)})")
            try:
                line = raw.decode("utf-8").removeprefix("\ufeff" if number == 1 else "")
            except UnicodeDecodeError as error:
                raise _not_utf8(where, offset + error.start) from error
            offset += len(raw)
            if line.strip():
                yield _record_text(line, where, field)


def _record_text(line: str, where: str, field: str) -> str:
    try:
        record = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not a JSON object: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where} is a JSON {type(record).__name__}, not an object with the field {field!r}")
    if field not in record:
        names = ", ".join(sorted(record)[:8]) or "none"
        raise InputError(f"{where} has no field {field!r} (it has: {names}); set data.text_field")
    return _checked_text(record[field], f"{where} field {field!r}")


def _checked_text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where} is {type(value).__name__}, not text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is not text: lone surrogate at character {error.start}") from error
    return value


def _parquet(path: Path, field: str) -> Iterator[str]:
    require("pyarrow", extra="train")
    import pyarrow
    import pyarrow.parquet

    where = f"data.path={str(path)!r}"
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                names = ", ".join(columns[:8])
                raise InputError(f"{where} has no column {field!r} (it has: {names}); set data.text_field")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[field]):
                for scalar in batch.column(0):
                    yield _checked_text(scalar.as_py(), f"{where} row {row} column {field!r}")
                    row += 1
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{where} is not a readable parquet file: {first_line}") from error
