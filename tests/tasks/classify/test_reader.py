"""Rows of labelled text: CSV, TSV and JSON lines alike, and the bad row told by file and number."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from blockyard.errors import InputError
from blockyard.tasks.classify.reader import Row, read_rows, standard_library_rows


def read(path: Path, **options: Any) -> list[Row]:
    return read_rows(path, **{"format": "auto", "text_field": "text", "label_field": "label", **options})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,lable\nhello,x\n", "row 1 has no 'label' (did you mean 'lable'?); it has: 'text', 'lable'"),
        ("a.csv", "text,label\nhello,x\n ,y\n", "a.csv row 2: 'text' is empty; expected text"),
        ("a.csv", "text,label\nhello,\n", "a.csv row 1: 'label' is empty; every row needs a label"),
        ("a.csv", "text,label\nhello, world,x\n", "a.csv row 1 has 3 fields, the header has 2"),
        ("a.csv", "text,label\n", "a.csv has no rows"),
        ("a.csv", "", "a.csv is empty; expected a header and rows"),
        ("a.csv", 'text,label\n"hello,x\n', "a.csv is not CSV"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text"\n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"text": "a", "label": 1.5}\n', "a.jsonl line 1: 'label' is 1.5; a label is a word or a whole"),
        ("a.jsonl", '{"text": 7, "label": 1}\n', "a.jsonl line 1: 'text' is 7; expected text"),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is not a JSON object"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("a.") and len(value) < 8 else "",
)  # fmt: skip
def test_a_bad_row_is_told_with_file_and_row(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read(tmp_path / name)
    assert told in str(error.value)


def test_a_file_that_is_no_text_or_is_missing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n\xff\xfe,x\n")
    with pytest.raises(InputError, match="is not UTF-8"):
        read(tmp_path / "a.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "b.csv")


def test_csv_tsv_and_jsonl_hold_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('\ufefftext,label\n"two, words",1\n')
    (tmp_path / "a.tsv").write_text("label\ttext\n1\ttwo, words\n")
    (tmp_path / "a.jsonl").write_text('{"text": "two, words", "label": 1}\n\n')
    found = [read(tmp_path / f"a.{suffix}") for suffix in ("csv", "tsv", "jsonl")]
    assert found == [[Row("two, words", "1")]] * 3


def test_the_default_data_are_packages_of_the_standard_library() -> None:
    rows = standard_library_rows()
    assert len({row.label for row in rows}) == 8
    assert all(row.group.startswith(str(row.label)) for row in rows[:50])


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("a.csv", "text;label\nein Text, mit Komma;x\nzwei;y\n", "utf-8"),
        ("b.csv", "label\ttext\nx\tein Text, mit Komma\ny\tzwei\n", "utf-8"),
        ("c.csv", 'text,label\n"ein Text, mit Komma",x\nzwei,y\n', "utf-16"),
        ("d.csv", "text|label\nein Text, mit Komma|x\nzwei|y\n", "utf-8-sig"),
        ("e.json", '{"text": "ein Text, mit Komma", "label": "x"}\n{"text": "zwei", "label": "y"}\n', "utf-8"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_labelled_text_is_read_as_programs_write_it(name, content, encoding, packed, tmp_path) -> None:
    raw = content.encode(encoding)
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    assert [(row.text, row.label) for row in read(path)] == [("ein Text, mit Komma", "x"), ("zwei", "y")]


def test_labelled_text_in_a_windows_code_page_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,label\ncafé,x\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"is not UTF-8 text .byte 14.; convert it from its encoding, e\.g\."):
        read(tmp_path / "a.csv")
