"""The same documents from every kind of source: counted, packed alike, and what is left out is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blockyard.text import TextDataConfig, load_text, load_tokenizer
from blockyard.text.bpe import BPETokenizer, trained_once
from blockyard.text.packed import PackedText
from blockyard.text.tokens import scan
from blockyard.text.understanding import understand_text
from tests.text.test_readers import compressed, write_parquet
from tests.text.test_sources import save_to_disk
from tests.text.test_tiktokens import own, tiny, tokens, write  # noqa: F401 (fixtures)

TEXTS = [f"document {n}: " + " ".join(str(n * k) for k in range(n % 9)) for n in range(60)]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in [*TEXTS[:30], "", *TEXTS[30:]]).encode()


def saved(folder: Path) -> Path:
    save_to_disk(folder / "ds", TEXTS[:25], ["", *TEXTS[25:]])
    (folder / "picture.png").write_bytes(b"\x89PNG" + bytes(96))
    return folder


def parquet(folder: Path) -> Path:
    for number, part in enumerate((TEXTS[:40], ["", *TEXTS[40:]])):
        write_parquet(folder / f"part-{number}.parquet", {"text": part})
    (folder / "other.parquet").write_bytes(b"not asked for")
    return folder / "part-*.parquet"


def one(codec: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / f"records.jsonl.{codec}").write_bytes(compressed(codec, LINES))
        return folder / f"records.jsonl.{codec}"

    return make


SOURCES = {"save_to_disk": saved, "parquet glob": parquet, **{codec: one(codec) for codec in ("gz", "zst", "xz")}}


def loaded(path: Path, folder: Path, tokenizer: str = "byte") -> PackedText:
    config = TextDataConfig(path=str(path), cache_dir=str(folder / "cache"), tokenizer=tokenizer, pack="documents")
    data = load_text(config, context=32)
    assert isinstance(data, PackedText)
    return data


def same(data: PackedText, other: PackedText) -> bool:
    first, second = (each.batch(0, 3, 4) for each in (data, other))
    return all(first[name].equal(second[name]) for name in first) and data.notes[-2:] == other.notes[-2:]


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_documents_are_counted_packed_alike_and_what_is_left_out_is_told(tmp_path: Path, source: str) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "in").mkdir()
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    path = SOURCES[source](tmp_path / "in")
    data = loaded(path, tmp_path)
    assert data.fingerprint["documents"] == len(TEXTS)
    assert same(data, loaded(tmp_path / "plain.jsonl", tmp_path))
    told = "\n".join(data.notes)
    assert "1 empty document is left out" in told
    assert ("1 file is left out (100 bytes)" in told) == (source == "save_to_disk")
    found = understand_text(TextDataConfig(path=str(path)))
    assert f"{len(TEXTS)} documents" in "\n".join(found.lines())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return trained_once(scan(lambda: iter(TEXTS)), 300, tmp_path_factory.mktemp("cache"), None)


@pytest.mark.parametrize("name", ["a.bin", "a.npy"])
def test_documents_in_tokens_are_those_of_the_text(tmp_path: Path, tokenizer: BPETokenizer, name: str) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    ids = [token for text in TEXTS for token in (*tokenizer.encode(text), tokenizer.separator_id)][:-1]
    array = np.array(ids, np.uint16)
    np.save(tmp_path / name, array) if name.endswith("npy") else array.tofile(tmp_path / name)
    data = loaded(tmp_path / name, tmp_path, str(tmp_path / "tokenizer"))
    assert data.fingerprint["documents"] == len(TEXTS)
    assert same(data, loaded(tmp_path / "plain.jsonl", tmp_path, str(tmp_path / "tokenizer")))


@pytest.mark.parametrize("kind", ["tokenizer.json", "tiktoken"])
def test_documents_end_where_other_tokenizers_end_them(tmp_path, kind, own, tokens, tiny) -> None:  # noqa: F811
    pytest.importorskip("tokenizers")
    path = tmp_path / "tiny.tiktoken"
    write(path, tokens)
    if kind == "tokenizer.json":
        load_tokenizer(path).save(tmp_path / "saved")
        path = tmp_path / "saved" / "tokenizer.json"
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    data = loaded(tmp_path / "plain.jsonl", tmp_path, str(path))
    end = data.tokenizer.special_tokens["<|endoftext|>"]
    assert data.fingerprint["documents"] == len(TEXTS)
    batch = data.batch(0, 0, 8)
    read = batch["input_ids"][batch["segments"] >= 0]
    assert (batch["targets"] == end).any() and not (read == end).any()
