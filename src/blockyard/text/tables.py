"""Columns of tables: parquet, and Arrow files as Hugging Face's datasets keep them; one document a row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from blockyard.errors import InputError, require
from blockyard.files import parse_json
from blockyard.text.records import checked_text

TableKind = Literal["parquet", "arrow"]
# Rows that are in memory at a time.
ROWS = 1024
# What an Arrow file begins with; one that is a stream (what datasets writes) has no such mark.
_ARROW_FILE = b"ARROW1"


def table_texts(path: Path, field: str, kind: TableKind) -> Iterator[str]:
    """Yield the text of every row.

    Raises:
        InputError: for a file that is no such table, lacks the column, or has a row that is not text in it.
    """
    for where, (value,) in table_rows(path, (field,), kind):
        yield checked_text(value, f"{where} column {field!r}")


def table_rows(path: Path, columns: Sequence[str], kind: TableKind) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield (place, values of the columns) of every row; the place names file and row for errors, counted from 0.

    A column of class numbers whose names the table brings (datasets' ClassLabel) gives the names, None for -1.

    Raises:
        InputError: for a file that is no such table, or lacks a column.
    """
    where, row = f"data.path={str(path)!r}", 0
    for batch, names in _batches(path, columns, kind):
        values = [_named(batch.column(i).to_pylist(), names.get(name), where) for i, name in enumerate(columns)]
        for record in zip(*values):
            yield f"{where} row {row}", record
            row += 1


def table_columns(path: Path, kind: TableKind) -> list[str]:
    """Return the names of a table's columns."""
    with _opened(path, kind) as (schema, _):
        return list(schema.names)


def _batches(path: Path, columns: Sequence[str], kind: TableKind) -> Iterator[tuple[Any, dict[str, list[str]]]]:
    with _opened(path, kind) as (schema, read):
        for name in columns:
            if name not in schema.names:
                there = ", ".join(schema.names[:8]) or "none"
                raise InputError(
                    f"data.path={str(path)!r} has no column {name!r} (it has: {there}); set data.text_field"
                )
        names = _class_names(schema)
        for batch in read(list(columns)):
            yield batch, names


@contextmanager
def _opened(path: Path, kind: TableKind) -> Iterator[tuple[Any, Callable[[list[str]], Iterator[Any]]]]:
    """Open a table: its schema, and what yields batches of some columns of it."""
    require("pyarrow", extra="train")
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if kind == "parquet":
            with pyarrow.parquet.ParquetFile(path) as file:
                yield file.schema_arrow, lambda names: file.iter_batches(batch_size=ROWS, columns=names)
            return
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(len(_ARROW_FILE)) == _ARROW_FILE
            source.seek(0)
            reader = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            yield reader.schema, lambda names: _slices(reader, names, is_file)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"data.path={str(path)!r} is not a readable {kind} file: {first_line}") from error


def _slices(reader: Any, names: list[str], is_file: bool) -> Iterator[Any]:
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    for batch in batches:
        chosen = batch.select(names)
        for start in range(0, chosen.num_rows, ROWS):
            part = chosen.slice(start, ROWS)
            # Offsets of a file from anywhere are looked at before they are followed.
            part.validate(full=True)
            yield part


def _class_names(schema: Any) -> dict[str, list[str]]:
    """Return the names of classes by column, as datasets writes them beside the schema."""
    try:
        features = parse_json((schema.metadata or {}).get(b"huggingface", b"{}").decode())["info"]["features"]
        return {
            name: kind["names"]
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and isinstance(kind.get("names"), list)
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _named(values: list[Any], names: list[str] | None, where: str) -> list[Any]:
    if names is None:
        return values
    # -1 is how datasets says that there is no label.
    wrong = next((v for v in values if type(v) is int and not -1 <= v < len(names)), None)
    if wrong is not None:
        raise InputError(f"{where} has class {wrong}, but names {len(names)} classes")
    return [None if value == -1 else names[value] if type(value) is int else value for value in values]
