"""Text that comes as tokens: widths, headers, vocabularies, and figures per byte that stay those of the text."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.text.bpe import BPETokenizer, trained_once
from blockyard.text.config import TextDataConfig
from blockyard.text.load import load_text
from blockyard.text.tokens import scan
from blockyard.text.understanding import understand_text

WORDS = [f"document {i}: some words — 字, and the same words again {i % 7}\n" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> BPETokenizer:
    folder = tmp_path_factory.mktemp("bpe")
    made = trained_once(scan(lambda: iter(WORDS)), 400, folder / "cache", None)
    made.save(folder / "tokenizer")
    made.folder = str(folder / "tokenizer")
    return made


def config(path, tokenizer, /, **options) -> TextDataConfig:
    folder = path.parent if path.suffix else path
    return TextDataConfig(
        **{"path": str(path), "tokenizer": tokenizer.folder, "cache_dir": str(folder / ".cache"), **options}
    )


def text_of(tmp_path, tokenizer):
    """The same documents, read as text."""
    path = tmp_path / "same.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in WORDS))
    return load_text(config(path, tokenizer), context=8)


def ids_of(tokenizer) -> list[int]:
    ids: list[int] = []
    for number, text in enumerate(WORDS):
        ids += ([tokenizer.separator_id] if number else []) + tokenizer.encode(text)
    return ids


def refuses(path, tokenizer, message, /, **options) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_text(config(path, tokenizer, **options), context=8)
    assert "\n" not in str(caught.value)


def write_llm_c(path, ids, dtype, magic) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = magic, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())


def write_litdata(folder, ids, *, code=16, **changes) -> None:
    """Two chunks of two rows each, as litdata's writer lays them out."""
    folder.mkdir()
    rows = np.array_split(np.array(ids, np.int32), 4)
    for number in (0, 1):
        parts = [row.tobytes() for row in rows[2 * number : 2 * number + 2]]
        begins = np.cumsum([16, *map(len, parts)]).astype("<u4")
        (folder / f"chunk-0-{number}.bin").write_bytes(struct.pack("<I", 2) + begins.tobytes() + b"".join(parts))
    described = {"data_format": [f"no_header_tensor:{code}"], "compression": None, **changes}
    (folder / "index.json").write_text(json.dumps({"chunks": [], "config": described}))


def write_raw(path, ids, dtype="<u2") -> None:
    path.write_bytes(np.array(ids, dtype).tobytes())


HALVES = (slice(None, 99), slice(99, None))
WRITERS = {
    "raw uint16": lambda path, ids: write_raw(path / "a.bin", ids),
    "npy uint16": lambda path, ids: np.save(path / "a.npy", np.array(ids, np.uint16)),
    "npy int64": lambda path, ids: np.save(path / "a.npy", np.array(ids, np.int64)),
    "npy big-endian": lambda path, ids: np.save(path / "a.npy", np.array(ids, ">u2")),
    "llm.c gpt-2": lambda path, ids: write_llm_c(path / "a.bin", ids, "<u2", 20240520),
    "llm.c llama 3": lambda path, ids: write_llm_c(path / "a.bin", ids, "<u4", 20240801),
    "litdata": lambda path, ids: write_litdata(path / "chunks", ids),
    "two shards": lambda path, ids: [
        write_raw(path / f"{n}.bin", part) for n, part in (("a", ids[:99]), ("b", ids[99:]))
    ],
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_text_that_comes_as_tokens_is_the_text(tmp_path, tokenizer, writer):
    plain, ids = text_of(tmp_path, tokenizer), ids_of(tokenizer)
    (tmp_path / "in").mkdir()
    writer(tmp_path / "in", ids)
    data = load_text(config(tmp_path / "in", tokenizer), context=8)
    assert [*data.train, *data.val] == [*plain.train, *plain.val] == ids
    assert data.bytes_per_token == plain.bytes_per_token
    assert [data.fingerprint[k] for k in ("bytes", "documents", "tokens", "tokenizer_sha256")] == [
        plain.fingerprint[k] for k in ("bytes", "documents", "tokens", "tokenizer_sha256")
    ]
    for one, other in zip(data.batch(0, 3, 4).values(), plain.batch(0, 3, 4).values()):
        assert one.equal(other)


def test_the_same_tokens_are_the_same_data_whatever_file_they_lie_in(tmp_path, tokenizer):
    found = set()
    for name, writer in WRITERS.items():
        folder = tmp_path / name
        folder.mkdir()
        writer(folder, ids_of(tokenizer))
        found.add(load_text(config(folder, tokenizer), context=8).fingerprint["sha256"])
    assert len(found) == 1


def test_a_width_that_could_be_either_is_asked_for(tmp_path, tokenizer):
    path, ids = tmp_path / "a.bin", ids_of(tokenizer)
    write_raw(path, ids, "<u4")
    refuses(path, tokenizer, "could be ids of uint16 or uint32; set data.token_dtype")
    data = load_text(config(path, tokenizer, token_dtype="uint32"), context=8)
    assert [*data.train, *data.val] == ids
    # As uint16 the upper halves are ids of their own: what the user says is done.
    assert len(load_text(config(path, tokenizer, token_dtype="uint16"), context=8).train) > len(data.train)


def test_a_width_that_is_decided_is_told(tmp_path, tokenizer):
    write_raw(tmp_path / "a.bin", ids_of(tokenizer))
    assert "ids are read as uint16" in load_text(config(tmp_path / "a.bin", tokenizer), context=8).notes[0]


def test_ids_outside_the_vocabulary_are_refused_with_their_place(tmp_path, tokenizer):
    np.save(tmp_path / "a.npy", np.array([*[5] * 40, 400, 3], np.uint16))
    refuses(tmp_path / "a.npy", tokenizer, r"token 400 at place 40, outside the \d+ of the tokenizer \(bpe\)")
    np.save(tmp_path / "b.npy", np.array([1, -1, 3], np.int32))
    refuses(tmp_path / "b.npy", tokenizer, "token -1 at place 1")
    write_raw(tmp_path / "c.bin", [5] * 40 + [50000] * 4)
    refuses(tmp_path / "c.bin", tokenizer, "ids beyond the \\d+ tokens of the tokenizer")


def test_ids_in_a_gap_of_the_vocabulary_are_refused(tmp_path, tokenizer):
    from blockyard.text.tiktokens import Encoding, tokenizer_json

    specials = set(tokenizer.special_tokens.values())
    tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in specials]
    # The last special token leaves a gap before it, as cl100k_base has some.
    encoding = Encoding(r"\s+|\S+", len(tokens), {"<|endoftext|>": len(tokens) + 5})
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json({token: i for i, token in enumerate(tokens)}, encoding, "x"))
    np.save(tmp_path / "a.npy", np.array([5] * 40 + [len(tokens) + 5] + [7] * 80, np.uint16))
    data = load_text(config(tmp_path / "a.npy", tokenizer, tokenizer=str(path)), context=8)
    # The special one separates, and stands for no text; token 0 is an ordinary one.
    assert (data.fingerprint["documents"], data.fingerprint["bytes"]) == (2, 120)
    np.save(tmp_path / "b.npy", np.zeros(120, np.uint16))
    data = load_text(config(tmp_path / "b.npy", tokenizer, tokenizer=str(path)), context=8)
    assert (data.fingerprint["bytes"], data.bytes_per_token) == (120, 1.0)
    np.save(tmp_path / "a.npy", np.array([5] * 40 + [len(tokens) + 2], np.uint16))
    refuses(tmp_path / "a.npy", tokenizer, "has a number for, but never makes", tokenizer=str(path))
    # A word would be read, and end what is generated, where an end of text is meant.
    encoding = Encoding(r"\s+|\S+", len(tokens), {"<|end|>": len(tokens) + 5})
    path.write_text(tokenizer_json({token: i for i, token in enumerate(tokens)}, encoding, "x"))
    refuses(tmp_path / "b.npy", tokenizer, "nothing names the token that ends a text", tokenizer=str(path))


def test_tokens_without_their_tokenizer_are_refused(tmp_path, tokenizer):
    write_raw(tmp_path / "a.bin", [5, 9] * 40)
    refuses(tmp_path / "a.bin", tokenizer, "not bytes; name the tokenizer", tokenizer="byte")
    refuses(tmp_path / "a.bin", tokenizer, "learnt from text", tokenizer="bpe")
    refuses(tmp_path / "a.bin", tokenizer, "data.max_bytes is for text", max_bytes=9)
    refuses(tmp_path / "a.bin", tokenizer, "data.special_tokens is for text", special_tokens=True)


def test_bytes_are_tokens_of_one_byte(tmp_path, tokenizer):
    text = "".join(WORDS).encode()
    np.save(tmp_path / "a.npy", np.frombuffer(text, np.uint8))
    data = load_text(config(tmp_path / "a.npy", tokenizer, tokenizer="byte"), context=8)
    assert bytes([*data.train, *data.val]) == text and data.bytes_per_token == 1.0


def test_special_tokens_between_documents_are_no_text(tmp_path, tokenizer):
    ids = [token for text in WORDS for token in (tokenizer.separator_id, *tokenizer.encode(text))]
    np.save(tmp_path / "a.npy", np.array(ids, np.uint16))
    data = load_text(config(tmp_path / "a.npy", tokenizer), context=8)
    assert data.fingerprint["bytes"] == len("".join(WORDS).encode())
    assert data.fingerprint["documents"] == len(WORDS)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "a.npy",
            lambda p: np.save(p, np.array([[1, 2]], np.uint16)),
            r"holds uint16 \[1, 2\]; expected whole numbers",
        ),
        ("a.npy", lambda p: np.save(p, np.array([1.0, 2.0])), r"holds float64 \[2\]"),
        ("a.npy", lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "not a readable .npy file"),
        ("a.npy", lambda p: p.write_bytes(pickle.dumps([1])), "not a readable .npy file"),
        ("a.npy", lambda p: p.write_bytes(b""), "is empty"),
        ("a.bin", lambda p: p.write_bytes(b"LITPKDS" + b"\0" * 40), "lit-gpt's old packed format"),
        ("a.bin", lambda p: p.write_bytes(b"x" * 9), "ids beyond the \\d+ tokens"),
        ("a.bin", lambda p: p.write_bytes(np.array([20240520, 1, 99], "<i4").tobytes()), "cut short"),
    ],
    ids=["two axes", "floats", "objects", "pickle", "empty", "litpkds", "odd", "short"],
)
def test_a_file_that_holds_no_row_of_ids_is_refused(tmp_path, tokenizer, name, write, message):
    write(tmp_path / name)
    refuses(tmp_path / name, tokenizer, message)


def test_a_litdata_chunk_that_is_not_as_described_is_refused(tmp_path, tokenizer):
    for number, changes in enumerate(({"compression": "zstd"}, {"data_format": ["pil"]}, {"code": 0})):
        write_litdata(tmp_path / str(number), ids_of(tokenizer), **changes)
        refuses(tmp_path / str(number), tokenizer, "no chunk of plain tokens")


def test_a_width_against_what_the_file_says_is_refused(tmp_path, tokenizer):
    np.save(tmp_path / "a.npy", np.array([1, 2, 3], np.uint16))
    refuses(tmp_path / "a.npy", tokenizer, "holds uint16, not uint32 as data.token_dtype says", token_dtype="uint32")


def test_files_of_tokens_beside_text_are_left_out_unless_asked_for(tmp_path, tokenizer):
    (tmp_path / "notes.txt").write_text("text " * 40)
    write_raw(tmp_path / "a.bin", ids_of(tokenizer))
    assert "1 .bin" in load_text(config(tmp_path, tokenizer), context=8).notes[0]
    data = load_text(config(tmp_path, tokenizer, format="tokens"), context=8)
    assert [*data.train, *data.val] == ids_of(tokenizer)
    with pytest.raises(InputError, match="no files of tokens"):
        (tmp_path / "sub").mkdir()
        load_text(config(tmp_path / "sub", tokenizer, format="tokens"), context=8)


def test_what_files_of_tokens_hold_is_said_without_their_tokenizer(tmp_path, capsys):
    from blockyard.cli import main

    write_raw(tmp_path / "a.bin", [7, 50256, 3, 9])
    found = understand_text(TextDataConfig(path=str(tmp_path / "a.bin")))
    assert [dict(r) for r in found.as_dict()["readings"]] == [
        {"dtype": "uint16", "tokens": 4, "largest": 50256},
        {"dtype": "uint32", "tokens": 2, "largest": 50256 << 16 | 7},
    ]
    assert main(["data", "text", str(tmp_path / "a.bin")]) == 0
    assert "as uint16: 4 tokens, the largest 50,256" in capsys.readouterr().out
    assert main(["data", "text", str(tmp_path / "a.bin"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["raw"] is True


def test_a_training_on_tokens_tells_nats_per_byte(tmp_path, tokenizer):
    from blockyard.cli import main
    from blockyard.tasks.run import load_run

    write_raw(tmp_path / "a.bin", ids_of(tokenizer))
    words = f"--data.path {tmp_path / 'a.bin'} --data.tokenizer {tokenizer.folder} --data.cache_dir {tmp_path / 'c'}"
    words += " --model.d_model 16 --model.n_layers 1 --model.context 16 --train.steps 2 --train.batch_size 2"
    words += " --train.compile off --train.precision fp32 --train.progress false"
    out = tmp_path / "run"
    assert main(["train", "lm", "--out", str(out), *words.split()]) == 0
    row = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    plain = text_of(tmp_path, tokenizer)
    assert row["val_loss_per_byte"] == pytest.approx(row["val_loss"] / plain.bytes_per_token, rel=1e-12)
    assert load_run(out)[1].fingerprint() == tokenizer.fingerprint()
