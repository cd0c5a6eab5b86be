"""Labelled text out of CSV and JSONL files and tables, with errors that name file and row."""

from __future__ import annotations

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, suggest
from blockyard.files import parse_json, user_path
from blockyard.text.corpus import read_standard_library_packages
from blockyard.text.listing import (
    ARROW_SUFFIXES,
    JSONL_SUFFIXES,
    PARQUET_SUFFIXES,
    content_suffix,
    is_pattern,
    list_folder,
    list_pattern,
)
from blockyard.text.records import json_shape
from blockyard.text.streams import CONVERT, opened
from blockyard.text.tables import TableKind, table_columns, table_rows

# The default data: as many of the standard library's packages, and pieces of this many characters.
PACKAGES, PIECE = 8, 1000


@dataclass(frozen=True)
class Row:
    """One document.

    Args:
        text: its text.
        label: its label, None where a file that is only to be classified has none.
        group: rows of one group are not to be split between training and validation (pieces of a file); "" for none.
    """

    text: str
    label: str | None
    group: str = ""


def read_rows(
    path: str | Path, *, format: str, text_field: str, label_field: str, labels: str = "required"
) -> list[Row]:
    """Read a file.

    Args:
        path: the file; or a folder that Hugging Face's datasets saved, or a pattern, of tables.
        format: auto, csv (its separator by its header), tsv, jsonl, parquet or arrow; compressed files are known by
            their bytes.
        text_field: the column or field of the text.
        label_field: the column or field of the label.
        labels: "required", or "optional" for a file that is to be classified.

    Raises:
        InputError: for a file that cannot be read, lacks a column, or has a row without text or label; file and row (or
            line) are named, rows counted from 1 without the header.
    """
    where = user_path(path, "data.path")
    tables = _tables(where, format)
    if tables is None and format == "auto":
        suffix = content_suffix(where)
        lines = suffix in JSONL_SUFFIXES or (suffix == ".json" and json_shape(where, text_field) == "lines")
        format = "jsonl" if lines else "tsv" if suffix == ".tsv" else "csv"
    if tables is not None:
        wanted = {"text": text_field, "label": label_field}
        records = _table_records(tables, wanted, optional=labels != "required")
    elif format == "jsonl":
        records = _jsonl(where)
    else:
        records = _csv(where, "\t" if format == "tsv" else _delimiter_of(where, (text_field, label_field)))
    rows = []
    for place, record in records:
        text = _field(record, text_field, place, "text_field", required=True)
        if not isinstance(text, str) or not text.strip():
            came = "is empty" if text is None or (isinstance(text, str) and not text.strip()) else f"is {text!r}"
            raise InputError(f"{place}: {text_field!r} {came}; expected text")
        label = _field(record, label_field, place, "label_field", required=labels == "required")
        rows.append(Row(text, _label(label, label_field, place, labels == "required")))
    if not rows:
        raise InputError(f"{where} has no rows")
    return rows


def _field(record: dict[str, Any], name: str, place: str, option: str, *, required: bool) -> Any:
    if name in record:
        return record[name]
    if not required:
        return None
    known = ", ".join(map(repr, record)) or "none"
    raise InputError(f"{place} has no {name!r}{suggest(name, map(str, record))}; it has: {known} (data.{option})")


def _label(value: Any, name: str, place: str, required: bool) -> str | None:
    if isinstance(value, int | str):
        text = str(value).strip()
        if text:
            return text
    elif value is not None:
        raise InputError(f"{place}: {name!r} is {value!r}; a label is a word or a whole number")
    if required:
        raise InputError(f"{place}: {name!r} is empty; every row needs a label")
    return None


def _tables(where: Path, format: str) -> list[tuple[Path, TableKind]] | None:
    """Return the tables that a path names, and what each is; None where it names another file."""
    if is_pattern(where):
        files = list_pattern(where).files
    elif where.is_dir():
        files = list_folder(where).files
    else:
        files = (where,)
    suffixes: dict[TableKind, frozenset[str]] = {"parquet": PARQUET_SUFFIXES, "arrow": ARROW_SUFFIXES}
    found: list[tuple[Path, TableKind]] = []
    for path in files:
        kinds = [kind for kind, own in suffixes.items() if format == kind or (format == "auto" and path.suffix in own)]
        if kinds:
            found.append((path, kinds[0]))
        elif len(files) > 1 or where.is_dir():
            raise InputError(
                f"{where}: {path.name} is no parquet or Arrow file; several files of labelled text are to be such"
            )
    if not found and where.is_dir():
        raise InputError(f"{where} has no parquet or Arrow files in it; give one, or a CSV or JSONL file")
    return found or None


def _table_records(
    tables: Sequence[tuple[Path, TableKind]], wanted: Mapping[str, str], *, optional: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, kind in tables:
        columns = list(wanted.values())
        if optional and wanted["label"] not in table_columns(path, kind):
            columns.remove(wanted["label"])
        for place, values in table_rows(path, columns, kind):
            yield place, dict(zip(columns, values))


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with _text_of(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path} line {number}"
            try:
                record = parse_json(line)
            except ValueError as error:
                raise InputError(f"{place} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise InputError(f"{place} is not a JSON object with fields")
            yield place, record


def _csv(path: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
    # Documents may be longer than the module's default of 128 KiB a field.
    csv.field_size_limit(sys.maxsize)
    with _text_of(path, newline="") as file:
        try:
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            if not reader.fieldnames:
                raise InputError(f"{path} is empty; expected a header and rows")
            for number, record in enumerate(reader, start=1):
                place = f"{path} row {number}"
                if None in record:
                    raise InputError(
                        f"{place} has {len(reader.fieldnames) + len(record[None])} fields, the header has "
                        f"{len(reader.fieldnames)}; put text with {delimiter!r} in it into quotes"
                    )
                yield place, record
        except csv.Error as error:
            raise InputError(f"{path} is not CSV: {error}") from error


def _delimiter_of(path: Path, fields: Sequence[str]) -> str:
    """Return what separates the cells: that by which the header has the most of the fields asked for, a comma if none
    does.

    Excel writes semicolons where a comma is the decimal mark, and exports that call themselves CSV may hold tabs.
    """
    with _text_of(path, newline="") as file:
        header = file.readline()
    found = {mark: set(next(csv.reader([header], delimiter=mark), [])) for mark in (",", ";", "\t", "|")}
    return max(found, key=lambda mark: len(found[mark] & set(fields)))


@contextmanager
def _text_of(path: Path, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """Open the file's text, decompressed, whichever Unicode encoding a mark names.

    Raises:
        InputError: for a file that cannot be read or is no text.
    """
    try:
        with opened(path) as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}); {CONVERT}") from error


def standard_library_rows() -> list[Row]:
    """Return pieces of the standard library's source, labelled by the package they come from: its largest packages."""
    files = [(package, name, text) for package, name, text in read_standard_library_packages()]
    sizes: Counter[str] = Counter()
    for package, _, text in files:
        sizes[package] += len(text)
    largest = {package for package, _ in sizes.most_common(PACKAGES)}
    return [
        Row(piece, package, name)
        for package, name, text in files
        if package in largest
        for start in range(0, len(text), PIECE)
        if (piece := text[start : start + PIECE]).strip()
    ]
