"""Text out of files: every format, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.text import readers, streams
from blockyard.text.config import TextDataConfig
from blockyard.text.corpus import read_standard_library, standard_library_files, standard_library_version
from blockyard.text.listing import list_folder
from blockyard.text.load import load_text
from blockyard.text.readers import joined, limited, read_path
from blockyard.text.tokens import scan
from blockyard.text.understanding import understand_text


def documents(pieces) -> list[str]:
    found = [""]
    for piece in pieces:
        if piece is None:
            found.append("")
        else:
            found[-1] += piece
    return found


def write_parquet(path, columns) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def refused(path, message, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        list(read_path(path, **options))
    assert "\n" not in str(caught.value)
    assert os.path.basename(path) in str(caught.value)


def test_a_text_file_is_one_document_as_it_stands(tmp_path):
    text = "first\r\n\n  second — 字 🙂\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert documents(read_path(tmp_path / "a.txt")) == [text]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="aé字🙂\n", min_size=1, max_size=40), block=st.integers(1, 7))
def test_blocks_never_cut_a_character(tmp_path_factory, text, block):
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "BLOCK_BYTES", block)
        assert documents(read_path(path)) == [text]


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    assert documents(read_path(tmp_path / "a.txt")) == ["hello"]


def test_each_jsonl_line_is_a_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one\\n"}\n\n{"text": ""}\n{"text": "two", "n": 2}', "utf-8")
    assert documents(read_path(path)) == ["one\n", "two"]


def test_each_parquet_row_is_a_document(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["one", "zwei — 字"], "n": [1, 2]})
    assert documents(read_path(tmp_path / "a.parquet", text_field="body")) == ["one", "zwei — 字"]


def test_a_folder_is_read_in_name_order_whatever_its_formats(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("last")
    (tmp_path / "b" / "a.jsonl").write_text(json.dumps({"text": "third"}) + "\n" + json.dumps({"text": "fourth"}))
    (tmp_path / "B.py").write_text("first")
    write_parquet(tmp_path / "a.parquet", {"text": ["second"]})
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config.txt").write_text("hidden")
    assert documents(read_path(tmp_path)) == ["first", "second", "third", "fourth", "last"]


def test_the_format_can_be_given_against_the_suffix(tmp_path):
    (tmp_path / "a.log").write_text('{"text": "inside"}\n')
    assert documents(read_path(tmp_path / "a.log", format="jsonl")) == ["inside"]
    assert documents(read_path(tmp_path / "a.log")) == ['{"text": "inside"}\n']


def test_a_missing_path_is_refused(tmp_path):
    refused(tmp_path / "none.txt", r"^data\.path='[^']*none\.txt' does not exist; give a text file or a folder$")


def test_a_path_with_a_nul_character_is_refused():
    with pytest.raises(InputError, match=r"data\.path='a\\x00b'"):
        list(read_path("a\0b"))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_an_empty_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path / name, "is empty")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_binary_file_is_refused_with_the_place_of_its_nul_byte(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "a"}\nab\0c')
    refused(tmp_path / name, "is binary.*NUL byte at offset 16")


@pytest.mark.parametrize("block", [3, 1 << 20])
def test_text_that_is_not_utf8_is_refused_with_the_byte_offset(tmp_path, monkeypatch, block):
    monkeypatch.setattr(streams, "BLOCK_BYTES", block)
    (tmp_path / "a.txt").write_bytes("aé字x".encode() + b"\xff\xfe tail")
    refused(tmp_path / "a.txt", r"not UTF-8 \(byte offset 7\)")


def test_text_that_ends_inside_a_character_is_refused_with_the_byte_offset(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc" + "字".encode()[:2])
    refused(tmp_path / "a.txt", r"not UTF-8 \(byte offset 3\)")


def test_a_jsonl_line_that_is_not_utf8_is_refused_with_line_and_offset(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    refused(tmp_path / "a.jsonl", r"line 2 is not UTF-8 \(byte offset 24\)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"body": "x", "id": 1}', r"line 2 has no field 'text' \(it has: body, id\)"),
        ("{broken", "line 2 is not a JSON object"),
        ("[1]", "line 2 is a JSON list"),
        ('{"text": 3}', "line 2 field 'text' is int, not text"),
        ('{"text": null}', "line 2 field 'text' is NoneType, not text"),
        ('{"text": "\\ud800"}', "line 2 field 'text' is not text: lone surrogate"),
        ("[" * 100_000, "line 2 is not a JSON object"),
    ],
    ids=["no field", "broken", "list", "number", "null", "surrogate", "deep"],
)
def test_a_bad_jsonl_line_is_refused_with_its_number(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + line + "\n")
    refused(tmp_path / "a.jsonl", message)


def test_a_parquet_file_without_the_column_is_refused(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["x"]})
    refused(tmp_path / "a.parquet", r"no column 'text' \(it has: body\)")


def test_a_parquet_value_that_is_not_text_is_refused_with_its_row(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["x", None]})
    refused(tmp_path / "a.parquet", "row 1 column 'text' is NoneType")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is not parquet")
    refused(tmp_path / "a.parquet", "not a readable parquet file")


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    refused(tmp_path, "has no text in it")


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "bad.txt").write_bytes(b"a\0")
    with pytest.raises(InputError, match=r"bad\.txt' is binary"):
        list(read_path(tmp_path))


@pytest.mark.parametrize(
    ("format", "message"), [("txt", "is a folder; use"), ("jsonl", "is a folder; use"), ("parquet", "is a folder; use")]
)
def test_a_folder_read_as_a_file_is_refused(tmp_path, format, message):
    refused(tmp_path, message, format=format)


def test_a_file_read_as_a_folder_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", "is not a folder", format="folder")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "neither a file nor a folder")


def test_an_unreadable_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("x")

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))
        yield

    monkeypatch.setattr(readers, "read_text_file", forbidden)
    refused(tmp_path / "a.txt", "cannot be read: Permission denied")


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(alphabet="aé字🙂", max_size=6), max_size=6), n_bytes=st.integers(1, 40))
def test_a_limit_keeps_the_first_whole_characters(texts, n_bytes):
    kept = "".join(piece for piece in limited(joined([text] for text in texts), n_bytes) if piece is not None)
    assert kept == "".join(texts).encode()[:n_bytes].decode(errors="ignore")


def test_a_limit_leaves_no_separator_at_the_end():
    assert list(limited(iter(["abc", None, "def"]), 3)) == ["abc"]
    assert list(limited(iter(["abc", None, "字"]), 4)) == ["abc"]


def test_the_standard_library_is_read_without_its_tests():
    files = standard_library_files()
    parts = {part for path in files for part in path.parts[-3:-1]}
    assert any(path.name == "argparse.py" for path in files)
    assert not parts & {"site-packages", "test", "tests", "idle_test", "__pycache__"}
    assert len(files) > 300


def test_the_standard_library_order_does_not_follow_the_file_system(tmp_path):
    for name in ["a.py", "b.py", "pkg/c.py", "pkg/d.py", "test/e.py", "_sysconfigdata_x.py", "notes.txt"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [path.relative_to(tmp_path).as_posix() for path in standard_library_files(tmp_path)]
    assert sorted(names) == ["a.py", "b.py", "pkg/c.py", "pkg/d.py"]
    assert documents(read_standard_library(tmp_path)) == names


def test_a_python_without_its_source_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"give data\.path"):
        list(read_standard_library(tmp_path))


def test_the_version_names_the_interpreter():
    assert standard_library_version().split()[1].count(".") == 2


# As people have them: compressed, in another encoding, JSON under the name .json


def compressed(codec: str, raw: bytes) -> bytes:
    import bz2
    import gzip
    import lzma

    import pyarrow

    if codec == "zst":
        return pyarrow.compress(raw, codec="zstd", asbytes=True)
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[codec](raw)


LINES = "".join(json.dumps({"text": f"document {i}\nzwei — 字"}) + "\n" for i in range(50))
CODECS = ("gz", "bz2", "xz", "zst")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("name", "content"), [("a.txt", "one\r\ntwo — 字"), ("a.jsonl", LINES), ("a.json", LINES)])
def test_a_compressed_file_is_read_as_what_it_holds(codec, name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    plain = list(read_path(tmp_path / name))
    (tmp_path / f"{name}.{codec}").write_bytes(compressed(codec, content.encode()))
    assert list(read_path(tmp_path / f"{name}.{codec}")) == plain
    # Names are what people change; the bytes tell.
    (tmp_path / f"renamed-{name}").write_bytes(compressed(codec, content.encode()))
    assert list(read_path(tmp_path / f"renamed-{name}")) == plain


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_compressed_text_is_one_line(codec, tmp_path):
    whole = compressed(codec, os.urandom(5000).hex().encode())
    (tmp_path / f"a.txt.{codec}").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / f"a.txt.{codec}", "is damaged|cannot be read|binary")


def test_every_kind_of_compressed_file_in_a_folder_is_read_and_the_rest_is_told(tmp_path):
    for codec in CODECS:
        (tmp_path / f"{codec}.jsonl.{codec}").write_bytes(compressed(codec, b'{"text": "%s"}' % codec.encode()))
    (tmp_path / "z.tar.gz").write_bytes(compressed("gz", b"x"))
    (tmp_path / "z.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "README").write_text("not read")
    assert documents(read_path(tmp_path)) == sorted(CODECS)
    listing = list_folder(tmp_path)
    assert listing.left_out == {".tar.gz": 1, ".png": 1, "": 1}
    told = "3 files are left out (34 bytes), as they are not text by their names: 1 without a suffix, 1 .png, 1 .tar.gz"
    assert listing.note() == told
    options = {"path": str(tmp_path), "cache_dir": str(tmp_path / ".cache"), "val_fraction": 0.5}
    data = load_text(TextDataConfig(**options), context=2)
    assert data.notes == (told,)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", "ein Text äöü 🙂\n" * 50), ("a.jsonl", LINES), ("a.json", LINES)]
)
def test_a_byte_order_mark_says_which_unicode_it_is(encoding, name, content, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    plain = list(read_path(tmp_path / name))
    mark = "\ufeff" if encoding.endswith(("le", "be")) else ""
    (tmp_path / f"b-{name}").write_bytes((mark + content).encode(encoding))
    assert "".join(p or "\0" for p in read_path(tmp_path / f"b-{name}")) == "".join(p or "\0" for p in plain)


def test_a_mark_that_does_not_hold_what_it_says_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8x")
    refused(tmp_path / "a.txt", "begins with a mark of utf-16")


def test_a_json_array_of_objects_is_read_object_by_object(tmp_path):
    texts = ["x" * 200_000, "é" * 70_000, '{[,]}\\"', "", "last"]
    for space in (None, 1):
        path = tmp_path / f"a{space}.json"
        path.write_text(
            json.dumps([{"id": i, "text": t} for i, t in enumerate(texts)], indent=space, ensure_ascii=False)
        )
        assert documents(read_path(path)) == [t for t in texts if t]


@pytest.mark.parametrize(
    "content", ['{"name": "x", "version": 1}\n', '{\n "name": "x"\n}\n', '["a", "b"]', "not json at all", "[1, 2"]
)
def test_other_json_is_text_as_it_stands(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    (tmp_path / "b.txt").write_text("x")
    assert documents(read_path(tmp_path)) == [content, "x"]


def test_json_records_without_the_field_are_refused_alone_and_text_in_a_folder(tmp_path):
    rows = '{"body": "a"}\n{"body": "b"}\n'
    for name, content in (("lines.json", rows), ("array.json", '[{"body": "a"}, {"body": "b"}]')):
        (tmp_path / name).write_text(content)
        refused(tmp_path / name, "without the field 'text' .they have: body.; set data.text_field, or data.format=txt")
        assert documents(read_path(tmp_path / name, text_field="body")) == ["a", "b"]
        assert documents(read_path(tmp_path / name, format="txt")) == [content]
    assert documents(read_path(tmp_path)) == ['[{"body": "a"}, {"body": "b"}]', rows]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "b"', '[{"text": "a"} x]', '[{"text": "a"}, {"text": 3}]']
)
def test_a_json_array_that_ends_or_changes_within_is_one_line(content, tmp_path):
    (tmp_path / "a.json").write_text(content)
    refused(tmp_path / "a.json", "element 1 is not JSON|field 'text' is int, not text")


# What is understood, said before anything is trained


def test_what_is_understood_of_a_folder_is_said(tmp_path):
    (tmp_path / "a.txt").write_text("one <|endoftext|> two")
    (tmp_path / "b.jsonl.gz").write_bytes(compressed("gz", LINES.encode()))
    (tmp_path / "c.txt").write_bytes("drei".encode("utf-16"))
    (tmp_path / "d.bin").write_bytes(b"\0")
    found = understand_text(TextDataConfig(path=str(tmp_path)))
    assert (found.formats, found.compressed, found.encodings) == ({"txt": 2, "jsonl": 1}, 1, {"utf-16": 1})
    assert (found.documents, found.left_out, found.spells_separator) == (52, {".bin": 1}, True)
    text = "\n".join(found.lines())
    assert "52 documents" in text and "1 .bin" in text and "is text like any other there" in text
    assert (
        found.sha256
        == load_text(TextDataConfig(path=str(tmp_path), cache_dir=str(tmp_path / ".c")), 4).fingerprint["sha256"]
    )


def test_the_command_says_it_and_does_nothing_else(tmp_path, capsys):
    from blockyard.cli import main

    (tmp_path / "a.txt").write_text("some words\n" * 9)
    before = sorted(tmp_path.rglob("*"))
    assert main(["data", "text", str(tmp_path)]) == 0
    assert "1 document, 99 bytes of text" in capsys.readouterr().out
    assert main(["data", "text", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["formats"] == {"txt": 1}
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["data", "text", str(tmp_path / "missing")]) == 2
    assert "does not exist" in capsys.readouterr().err


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab<|>endoftx", max_size=20), max_size=6), st.booleans())
def test_a_separator_that_is_cut_by_pieces_is_noticed(pieces, whole):
    if whole:
        pieces = [*pieces, "x<|endo", "ftext|", ">y"]
    text = "".join(pieces) + "z"
    assert scan(lambda: iter([*pieces, "z"])).spells_separator == ("<|endoftext|>" in text)


def test_a_separator_that_a_document_spells_is_text_unless_asked_for(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"say '<|endoftext|>' {i} now"}) + "\n" for i in range(40))
    )
    options = {
        "path": str(tmp_path / "a.jsonl"),
        "cache_dir": str(tmp_path / "cache"),
        "tokenizer": "bpe",
        "vocab_size": 300,
    }
    usual, special = (load_text(TextDataConfig(**options, special_tokens=on), context=4) for on in (False, True))
    ends = [sum(int(t) == d.tokenizer.separator_id for t in [*d.train, *d.val]) for d in (usual, special)]
    assert ends == [39, 79]
    assert usual.fingerprint["special_tokens_sha256"] != special.fingerprint["special_tokens_sha256"]
    plain = load_text(TextDataConfig(path=__file__, cache_dir=str(tmp_path / "cache")), context=4)
    assert "special_tokens_sha256" not in plain.fingerprint  # bytes have no special tokens
