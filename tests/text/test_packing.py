"""Documents in rows: what is packed, what is predicted, which batches come of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.text import ByteTokenizer, TextData, TextDataConfig, load_text
from blockyard.text.packed import PackedText
from blockyard.text.packing import MOST_FILLING, packed

SEPARATOR = 0


def text_of(lengths: list[int], *, ends: bool = False) -> np.ndarray:
    """Documents of the given lengths whose tokens are their own places, so that any two differ."""
    parts = []
    at = 1
    for number, length in enumerate(lengths):
        parts.append(np.arange(at, at + length))
        at += length
        if ends or number + 1 < len(lengths):
            parts.append(np.array([SEPARATOR]))
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.uint32)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 24), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_token_is_predicted_once_but_the_first_of_a_document(lengths, context, ends):
    tokens = text_of(lengths, ends=ends)
    slots = [n if ends or i + 1 < len(lengths) else n - 1 for i, n in enumerate(lengths)]
    if not any(n > 0 for n in slots):
        with pytest.raises(InputError, match="no document of two tokens"):
            packed(tokens, SEPARATOR, context)
        return
    found = packed(tokens, SEPARATOR, context)
    read, predicted = np.zeros(len(tokens), int), np.zeros(len(tokens), int)
    for row in range(found.rows):
        pieces = found.pieces(row)
        assert 0 < sum(size for _, size in pieces) == found.filled[row] <= context
        for start, size in pieces:
            # No separator is read, so no piece reaches over two documents.
            assert SEPARATOR not in tokens[start : start + size]
            read[start : start + size] += 1
            predicted[start + 1 : start + size + 1] += 1
    assert read.max() == predicted.max() == 1
    assert read.sum() == sum(n for n in slots if n > 0)
    assert sorted(found.unpredicted(len(tokens))) == np.flatnonzero(predicted == 0).tolist()
    assert found.documents == sum(n > 0 for n in slots)
    if not found.cut:
        # What fits into a row is whole.
        sizes = set(found.sizes.tolist())
        assert all(n in sizes for n in slots if 0 < n <= context)


@given(st.lists(st.integers(1, 64), min_size=40, max_size=80))
@settings(max_examples=40, deadline=None)
def test_rows_are_full_but_for_the_last(lengths):
    found = packed(text_of(lengths, ends=True), SEPARATOR, 64)
    full = np.sort(found.filled)[::-1][: found.rows - 1]
    assert (full >= 64 * (1 - MOST_FILLING)).all()


def test_documents_are_cut_only_where_much_of_a_row_would_stay_empty():
    few = packed(text_of([300] * 8, ends=True), SEPARATOR, 512)
    assert few.cut and few.filling < 0.1
    assert packed(text_of([460, 52, 400, 100], ends=True), SEPARATOR, 512).cut == 0


def data_of(tokens: np.ndarray, context: int = 8, kind: type[TextData] = PackedText) -> Any:
    return kind(tokens, ByteTokenizer(), val_fraction=0.2, context=context, fingerprint={})


LENGTHS = [5, 3, 9, 2, 30, 7, 7, 1, 4, 12, 6, 3, 8, 8, 2, 5, 11, 4, 6, 9]


def test_a_batch_says_which_slots_belong_together_and_what_they_predict():
    data = data_of(text_of(LENGTHS))
    for step in range(4):
        batch = data.batch(0, step, 3)
        for ids, targets, segments in zip(*(batch[n].tolist() for n in ("input_ids", "targets", "segments"))):
            for at, (token, target, number) in enumerate(zip(ids, targets, segments)):
                if number < 0:
                    assert target == -100 and token == SEPARATOR
                    continue
                follows = at + 1 < len(ids) and segments[at + 1] == number
                assert target in (token + 1, SEPARATOR) and (not follows or target == ids[at + 1])


def test_batches_are_a_function_of_seed_and_step_and_of_nothing_else():
    data, again = data_of(text_of(LENGTHS)), data_of(text_of(LENGTHS))
    forward = [data.batch(3, step, 4)["input_ids"] for step in range(12)]
    backward = [again.batch(3, step, 4)["input_ids"] for step in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward))
    assert not all(torch.equal(a, data.batch(4, step, 4)["input_ids"]) for step, a in enumerate(forward))


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own():
    data = data_of(text_of(LENGTHS))
    rows = data.packing("train").rows
    drawn = [data.batch(0, step, 1)["input_ids"][0].tolist() for step in range(2 * rows)]
    first, second = drawn[:rows], drawn[rows:]
    assert sorted(first) == sorted(second) and len(set(map(tuple, first))) == rows and first != second


def test_the_rows_of_ranks_and_passes_are_those_of_the_whole_and_their_shares_weigh_targets():
    data = data_of(text_of(LENGTHS), context=16)
    whole = data.batch(1, 2, 4)
    assert whole["share"] == 1
    parts = [data.batch(1, 2, 4, rows=slice(i, i + 2)) for i in (0, 2)]
    for name in ("input_ids", "targets", "segments"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])
    every = int((whole["targets"] >= 0).sum())
    for part in parts:
        mine = int((part["targets"] >= 0).sum())
        # A mean over this part's targets, times its share, is a sum of these over the mean part's number of them.
        torch.testing.assert_close(float(part["share"]), mine / (every / 2), rtol=1e-6, atol=0)


def test_validation_takes_every_piece_once_and_bytes_are_those_of_what_is_predicted():
    data = data_of(text_of(LENGTHS).astype(np.uint8))
    seen = [t for batch in data.val_batches(2) for t in batch["targets"].flatten().tolist() if t >= 0]
    places = np.setdiff1d(np.arange(len(data.val)), data.packing("val").unpredicted(len(data.val)))
    assert sorted(seen) == sorted(data.val[places].tolist())
    assert data.bytes_per_token == 1
    assert len(list(data.val_batches(2, limit=1))) == 1


def test_what_is_packed_is_told():
    training, validation = data_of(text_of(LENGTHS)).notes
    assert training.startswith("training: 16 documents in ") and training.endswith("slots hold no text")
    assert validation.startswith("validation: 4 documents in 5 pieces, packed in 4 rows of 8; ")


# From files.


def config(tmp_path: Path, path: Path, **options: Any) -> TextDataConfig:
    return TextDataConfig(path=str(path), cache_dir=str(tmp_path / "cache"), pack="documents", **options)


def read(data: TextData) -> list[str]:
    """The pieces of all rows as text."""
    assert isinstance(data, PackedText)
    found = []
    for part in ("train", "val"):
        tokens, packing = getattr(data, part), data.packing(part)
        for row in range(packing.rows):
            found += [data.tokenizer.decode(tokens[start : start + size]) for start, size in packing.pieces(row)]
    return sorted(found)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_records_and_files_are_documents(tmp_path, tokenizer):
    texts = [" ".join(str(n * k * 7919 % 1000) for k in range(1, n // 5 + 3)) for n in range(40)]
    (tmp_path / "in").mkdir()
    records = "".join(json.dumps({"text": text}) + "\n" for text in texts[:20])
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress(records.encode()))
    for number, text in enumerate(texts[20:]):
        (tmp_path / "in" / f"b{number:02}.txt").write_text(text)
    data = load_text(
        config(tmp_path, tmp_path / "in", tokenizer=tokenizer, vocab_size=280, val_fraction=0.3), context=64
    )
    found = read(data)
    assert all(any(piece in text for text in texts) for piece in found)
    # One document is cut where validation begins, the last one's last token is a target alone, a few fill rows.
    cut = sum(data.packing(part).cut for part in ("train", "val"))
    assert len(set(texts) - set(found)) <= 2 + cut < 6
    assert data.fingerprint["documents"] == 40


def test_the_separator_is_predicted_and_never_read(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": "ab" * 9}) + "\n" for _ in range(30)))
    data = load_text(config(tmp_path, tmp_path / "a.jsonl"), context=36)
    batch = data.batch(0, 0, 4)
    assert (batch["targets"] == 0).sum() >= 4 and not (batch["input_ids"][batch["segments"] >= 0] == 0).any()


def test_files_of_tokens_tell_documents_by_the_tokenizer_s_separator(tmp_path):
    tokens = np.array(([65, 66, 67, 0] * 50), np.uint8)
    tokens.tofile(tmp_path / "a.bin")
    data = load_text(config(tmp_path, tmp_path / "a.bin", token_dtype="uint8"), context=12)
    assert set(read(data)) == {"ABC"} and data.notes[-1].startswith("validation: 5 documents")
    np.save(tmp_path / "b.npy", tokens[tokens != 0])
    with pytest.raises(InputError, match=r"token 0, which ends a document .* is nowhere in these tokens"):
        load_text(config(tmp_path, tmp_path / "b.npy"), context=12)


def test_a_text_whose_documents_hold_the_separator_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one \\u0000 two three four"}\n' * 30)
    with pytest.raises(InputError, match=r"token 0, .* stands within documents \(59 times in 30\)"):
        load_text(config(tmp_path, tmp_path / "a.jsonl"), context=8)


def test_other_words_are_refused():
    with pytest.raises(InputError, match=r"data\.pack='rows'"):
        TextDataConfig(pack="rows")  # type: ignore[arg-type]
