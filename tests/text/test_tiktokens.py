"""tiktoken's files: the same ids as the vocabulary that they were written from, and a line for every kind of damage."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path

import pytest

from blockyard.errors import InputError
from blockyard.text import tiktokens
from blockyard.text.bpe import trained_once
from blockyard.text.bpe_files import printable, printable_order
from blockyard.text.corpus import read_standard_library
from blockyard.text.readers import limited
from blockyard.text.saved import load_tokenizer
from blockyard.text.tiktokens import ENCODINGS, Encoding
from blockyard.text.tokens import scan

ALPHABET = "aAbetT sS'’0123.,!?\n\r\t _-<|>é字かハ🙂\u00a0\u0301"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A vocabulary of ours, learnt from a piece of the standard library."""
    text = scan(lambda: limited(read_standard_library(), 60_000))
    return trained_once(text, 600, tmp_path_factory.mktemp("cache"), None)


@pytest.fixture
def tokens(own) -> list[bytes]:
    specials = set(own.special_tokens.values())
    return [own.token_bytes(i) for i in range(own.vocab_size) if i not in specials]


@pytest.fixture
def tiny(monkeypatch, tokens) -> Encoding:
    """An encoding of that size, known by the name `tiny`."""
    made = Encoding(ENCODINGS["gpt2"].pattern, len(tokens), {"<|endoftext|>": len(tokens)}, "https://nowhere/tiny")
    monkeypatch.setitem(ENCODINGS, "tiny", made)
    return made


def write(path, tokens) -> None:
    path.write_bytes(b"".join(b"%s %d\n" % (base64.b64encode(token), i) for i, token in enumerate(tokens)))


def texts():
    draw = random.Random(0)
    return ["".join(draw.choices(ALPHABET, k=draw.randrange(1, 40))) for _ in range(400)]


def test_a_tiktoken_file_encodes_as_the_vocabulary_that_it_was_written_from(tmp_path, own, tokens, tiny):
    write(tmp_path / "tiny.tiktoken", tokens)
    read = load_tokenizer(tmp_path / "tiny.tiktoken")
    number = {
        own_id: read_id
        for read_id, own_id in enumerate(i for i in range(own.vocab_size) if own.token_bytes(i) in tokens)
    }
    for text in [*texts(), Path(__file__).read_text()]:
        assert read.encode(text) == [number[i] for i in own.encode(text)]
        assert read.decode(read.encode(text)) == text
    assert read.encode("a<|endoftext|>", special=True)[-1] == read.separator_id == len(tokens)
    assert read.separator_id not in read.encode("a<|endoftext|>")
    assert [read.token_bytes(i) for i in range(len(tokens))] == tokens


def test_it_encodes_as_tiktoken_does(tmp_path, tokens, tiny):
    tiktoken = pytest.importorskip("tiktoken")
    write(tmp_path / "tiny.tiktoken", tokens)
    ranks = {token: i for i, token in enumerate(tokens)}
    peer = tiktoken.Encoding("tiny", pat_str=tiny.pattern, mergeable_ranks=ranks, special_tokens=tiny.special_tokens)
    read = load_tokenizer(tmp_path / "tiny.tiktoken")
    for text in texts():
        assert read.encode(text) == peer.encode(text, disallowed_special=())


def test_a_run_keeps_such_a_tokenizer_without_the_file(tmp_path, tokens, tiny):
    write(tmp_path / "tiny.tiktoken", tokens)
    read = load_tokenizer(tmp_path / "tiny.tiktoken")
    read.save(tmp_path / "run")
    again = load_tokenizer(tmp_path / "run")
    assert again.fingerprint() == read.fingerprint() and again.encode("some text") == read.encode("some text")


def test_a_name_is_found_where_tiktoken_keeps_its_files(tmp_path, monkeypatch, tokens, tiny):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with pytest.raises(InputError, match="is not on this machine, and none is downloaded; get https://nowhere/tiny"):
        load_tokenizer("tiny")
    write(tmp_path / hashlib.sha1(tiny.url.encode()).hexdigest(), tokens)
    assert load_tokenizer("tiny").vocab_size == len(tokens) + 1


def test_gpt2_is_read_from_its_own_merges_too(tmp_path, monkeypatch, own, tokens):
    parts = [
        (token, tiktokens._parts({t: i for i, t in enumerate(tokens)}, token, i)) for i, token in enumerate(tokens)
    ]
    lines = [f"{printable(p[0])} {printable(p[1])}" for token, p in parts if len(token) > 1]
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(
        ENCODINGS, "gpt2", Encoding(ENCODINGS["gpt2"].pattern, len(tokens), {"<|endoftext|>": len(tokens)})
    )
    path = tmp_path / hashlib.sha1(tiktokens._GPT2_MERGES.encode()).hexdigest()
    path.write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    read = load_tokenizer("gpt2")
    assert [read.token_bytes(i) for i in range(256)] == printable_order()
    assert b"".join(printable_order()[:3]) == b'!"#'
    for text in texts()[:50]:
        assert [read.token_bytes(i) for i in read.encode(text)] == [own.token_bytes(i) for i in own.encode(text)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("other.tiktoken", lambda t: t, "its name should be that of its encoding"),
        ("tiny.tiktoken", lambda t: t[:-1], "is it cut short"),
        ("tiny.tiktoken", lambda t: [*t[:-1], b"unmade by two"], "token .* is not made of two others"),
        ("tiny.tiktoken", lambda t: [*t[:-1], t[300]], "is not a new token"),
        ("tiny.tiktoken", lambda t: [b"\0\1\2", *t[1:]], "lacks a byte"),
    ],
    ids=["name", "short", "unmade", "twice", "byte"],
)
def test_a_file_that_is_not_its_encoding_is_refused(tmp_path, tokens, tiny, name, change, message):
    write(tmp_path / name, change(tokens))
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_json_is_taken_by_its_path(tmp_path, own, tokens, tiny):
    (tmp_path / "mine.json").write_text(tiktokens.tokenizer_json({t: i for i, t in enumerate(tokens)}, tiny, "x"))
    read = load_tokenizer(tmp_path / "mine.json")
    (tmp_path / "tokenizer.json").write_text((tmp_path / "mine.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    beside = load_tokenizer(tmp_path / "tokenizer.json")
    assert read.encode("some text") == beside.encode("some text")
    assert (read.chat_template, beside.chat_template) == (None, "{{ messages }}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("cl100k_bse", "did you mean 'cl100k_base'"), ("model.bin", "neither a tokenizer.json nor a .tiktoken file")],
)
def test_another_name_is_refused(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=message):
        load_tokenizer(name)
