"""From a file to batches: the token cache, the split, and batches that depend on (seed, step) alone."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.text import ByteTokenizer, TextData, TextDataConfig, load_text
from blockyard.text import tokens as tokens_module
from blockyard.text.tokens import encoded, scan, token_arrays, token_dtype

TEXT = "".join(f"line {n} of some text — {n * n}\n" for n in range(400))


@pytest.fixture
def config(tmp_path) -> TextDataConfig:
    (tmp_path / "a.txt").write_text(TEXT, "utf-8")
    return TextDataConfig(path=str(tmp_path / "a.txt"), cache_dir=str(tmp_path / "cache"))


def numbers(n: int = 1000, *, context: int = 8, val_fraction: float = 0.2) -> TextData:
    """Data whose tokens are their own positions."""
    tokens = np.arange(n, dtype=np.uint16)
    return TextData(tokens, ByteTokenizer(), val_fraction=val_fraction, context=context, fingerprint={})


def cache_file(config: TextDataConfig):
    (file,) = (config.cache_folder() / "tokens").glob("*.tokens")
    return file


# Loading


def test_bytes_in_the_file_are_the_tokens(config):
    data = load_text(config, context=16)
    assert bytes([*data.train, *data.val]) == TEXT.encode()
    assert len(data.val) == round(len(TEXT.encode()) * 0.1)
    assert isinstance(data.train, np.memmap) and data.train.dtype == np.uint16


def test_the_fingerprint_names_the_text(config):
    data = load_text(config, context=16)
    expected = {"source": config.path, "bytes": len(TEXT.encode()), "tokens": len(TEXT.encode()), "documents": 1}
    assert expected.items() <= data.fingerprint.items()
    assert data.fingerprint["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()


def test_the_standard_library_is_the_default_text(tmp_path):
    data = load_text(TextDataConfig(cache_dir=str(tmp_path), max_bytes=200_000), context=16)
    assert data.fingerprint["source"] == "Python standard library"
    assert data.fingerprint["version"].endswith(".".join(map(str, sys.version_info[:3])))
    assert 199_990 <= data.fingerprint["bytes"] <= 200_000
    assert "import" in data.tokenizer.decode(data.train[:100_000])


def test_documents_are_separated_by_the_tokenizers_separator(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(name * 60)
    config = TextDataConfig(path=str(tmp_path), cache_dir=str(tmp_path / ".cache"))
    data = load_text(config, context=8)
    assert bytes([*data.train, *data.val]) == b"a" * 60 + b"\0" + b"b" * 60 + b"\0" + b"c" * 60
    bpe = load_text(TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=258), 2)
    ids = [*bpe.train, *bpe.val]
    assert ids.count(bpe.tokenizer.special_tokens["<|endoftext|>"]) == 2
    assert bpe.tokenizer.decode(ids) == "<|endoftext|>".join(name * 60 for name in "abc")


def test_a_bpe_tokenizer_is_trained_on_the_text_and_kept(config, monkeypatch):
    wanted = TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=300)
    first = load_text(wanted, context=16)
    monkeypatch.setattr("blockyard.text.bpe.learn_merges", None)
    again = load_text(wanted, context=16)
    assert first.tokenizer.vocab_size == 300
    assert again.tokenizer.decode([*again.train, *again.val]) == TEXT
    assert again.fingerprint == first.fingerprint


def test_a_damaged_kept_tokenizer_is_trained_anew(config):
    wanted = TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=300)
    first = load_text(wanted, context=16)
    (vocab,) = (wanted.cache_folder() / "tokenizers").glob("*/vocab.json")
    vocab.write_text(vocab.read_text("utf-8")[:50], "utf-8")
    assert load_text(wanted, context=16).fingerprint == first.fingerprint


def test_a_saved_tokenizer_is_used_from_its_folder(config, tmp_path):
    asked = TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=290)
    trained = load_text(asked, 8)
    trained.tokenizer.save(tmp_path / "saved")
    wanted = TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer=str(tmp_path / "saved"))
    assert load_text(wanted, 8).fingerprint == trained.fingerprint


def test_bytes_per_token_count_the_validation_text(config):
    wanted = TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=300)
    data = load_text(wanted, context=16)
    text = b"".join(data.tokenizer.token_bytes(token) for token in data.val)
    assert TEXT.encode().endswith(text)
    assert data.bytes_per_token == pytest.approx(len(text) / len(data.val))
    assert load_text(config, context=16).bytes_per_token == 1.0


def test_a_separator_counts_as_one_byte():
    from blockyard.text import BPETokenizer

    tokenizer = BPETokenizer.train(["abab"], 258)
    separator = tokenizer.separator_id
    tokens = np.array([256, separator] * 20, np.uint16)
    data = TextData(tokens, tokenizer, val_fraction=0.5, context=4, fingerprint={})
    assert data.bytes_per_token == 1.5


def test_progress_reaches_the_whole_text(config):
    seen: list[tuple[str, int, int]] = []
    load_text(config, context=16, progress=lambda what, done, total: seen.append((what, done, total)))
    assert seen[-1] == ("encoding", len(TEXT.encode()), len(TEXT.encode()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "data.format='csv' is not one of: auto, txt"),
        ({"val_fraction": 0.0}, "data.val_fraction=0.0 must lie between"),
        ({"val_fraction": 1.0}, "data.val_fraction=1.0 must lie between"),
        ({"vocab_size": 256}, "data.vocab_size=256 is too small"),
        ({"max_bytes": 0}, "data.max_bytes=0 should be at least 1"),
        ({"path": ""}, "data.path is an empty string"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TextDataConfig(**options)


def test_the_cache_folder_comes_from_option_then_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "env"))
    assert TextDataConfig(cache_dir="x").cache_folder().name == "x"
    assert TextDataConfig().cache_folder() == tmp_path / "env"
    monkeypatch.delenv("BLOCKYARD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TextDataConfig().cache_folder() == tmp_path / ".cache" / "blockyard"


# The token cache


def test_a_second_load_does_not_encode_again(config, monkeypatch):
    first = load_text(config, context=16)
    monkeypatch.setattr(tokens_module, "token_arrays", None)
    second = load_text(config, context=16)
    assert np.array_equal(first.train, second.train)


def test_another_text_or_tokenizer_has_its_own_cache_file(config, tmp_path):
    load_text(config, context=16)
    (tmp_path / "a.txt").write_text(TEXT + "more", "utf-8")
    load_text(config, context=16)
    load_text(TextDataConfig(path=config.path, cache_dir=config.cache_dir, tokenizer="bpe", vocab_size=300), 16)
    assert len(list((tmp_path / "cache" / "tokens").glob("*.tokens"))) == 3


def flip_a_bit(raw: bytes) -> bytes:
    return raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0\0",
        lambda raw: raw[:100],
        lambda raw: b"",
        lambda raw: b"[]" + raw[2:],
        lambda raw: b"\xff" * 4096 + raw[4096:],
        lambda raw: raw.replace(b"uint16", b"object"),
    ],
    ids=["bit flipped", "cut", "too long", "header alone", "empty", "header list", "header bytes", "dtype"],
)
def test_a_damaged_cache_file_is_built_anew(config, damage):
    load_text(config, context=16)
    file = cache_file(config)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    data = load_text(config, context=16)
    assert bytes([*data.train, *data.val]) == TEXT.encode()
    assert file.read_bytes() == whole


def test_leftovers_of_a_killed_process_do_no_harm(config):
    folder = config.cache_folder() / "tokens"
    folder.mkdir(parents=True)
    (folder / ".writing-killed").write_bytes(b"half")
    with open(folder / ".writing-alive", "wb") as alive:
        # What another process is writing at this moment is locked by it.
        fcntl.flock(alive, fcntl.LOCK_EX)
        load_text(config, context=16)
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".tokens") == [".writing-alive"]


def test_two_processes_can_build_the_cache_at_once(config):
    script = (
        "import sys; from blockyard.text import TextDataConfig, load_text\n"
        "config = TextDataConfig(path=sys.argv[1], cache_dir=sys.argv[2], tokenizer='bpe', vocab_size=300)\n"
        "data = load_text(config, 16)\n"
        "print(data.fingerprint['tokens'], len(data.train) + len(data.val))"
    )
    command = [sys.executable, "-c", script, str(config.path), str(config.cache_dir)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert outputs[0] == outputs[1] != ""


def test_a_cache_folder_that_cannot_be_made_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    wanted = TextDataConfig(path=config.path, cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"data\.cache_dir=.*cannot be written.*BLOCKYARD_CACHE"):
        load_text(wanted, context=16)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_cache_folder_is_refused(config):
    config.cache_folder().mkdir()
    config.cache_folder().chmod(0o500)
    with pytest.raises(InputError, match=r"data\.cache_dir=.*Permission denied"):
        load_text(config, context=16)


def test_a_full_disk_is_refused_and_leaves_nothing_behind(config, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr(tokens_module, "token_arrays", full)
    with pytest.raises(InputError, match="No space left on device"):
        load_text(config, context=16)
    assert list((config.cache_folder() / "tokens").iterdir()) == []


def test_text_too_long_to_keep_is_read_again(config, monkeypatch):
    monkeypatch.setattr(tokens_module, "KEEP_BYTES", 10)
    data = load_text(config, context=16)
    assert bytes([*data.train, *data.val]) == TEXT.encode()


def test_text_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "KEEP_BYTES", 1)
    versions = iter(["abcd", "abc"])
    text = scan(lambda: iter([next(versions)]))
    with pytest.raises(InputError, match="changed while it was read"):
        encoded(text, ByteTokenizer(), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_the_same_text_cut_into_other_documents_has_another_sha256():
    assert scan(lambda: iter(["ab", None, "c"])).sha256 != scan(lambda: iter(["a", None, "bc"])).sha256
    assert scan(lambda: iter(["ab", "c"])).sha256 == scan(lambda: iter(["a", "bc"])).sha256


def test_ids_beyond_16_bits_take_32():
    assert (token_dtype(65_536), token_dtype(65_537)) == (np.uint16, np.uint32)
    assert next(token_arrays(scan(lambda: iter(["ab"])), ByteTokenizer())).dtype == np.uint16


# Batches


def test_targets_are_the_next_tokens():
    batch = numbers().batch(seed=1, step=2, batch_size=5)
    assert batch["input_ids"].shape == batch["targets"].shape == (5, 8)
    assert torch.equal(batch["targets"], batch["input_ids"] + 1)
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].is_contiguous() and batch["targets"].is_contiguous()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), step=st.integers(0, 10**9))
def test_a_batch_depends_on_seed_and_step_alone(seed, step):
    data = numbers()
    first = data.batch(seed, step, 6)
    data.batch(seed, step + 1, 6)
    assert torch.equal(numbers().batch(seed, step, 6)["input_ids"], first["input_ids"])


def test_batches_are_the_same_on_every_version_of_numpy():
    assert numbers().batch(seed=7, step=3, batch_size=4)["input_ids"][:, 0].tolist() == [618, 79, 38, 461]


def test_other_steps_and_seeds_give_other_batches():
    data = numbers()
    seen = {tuple(data.batch(seed, step, 4)["input_ids"][:, 0].tolist()) for seed in range(5) for step in range(20)}
    assert len(seen) == 100


@settings(max_examples=30, deadline=None)
@given(ranks=st.sampled_from([1, 2, 3, 4, 6, 12]), step=st.integers(0, 1000))
def test_the_ranks_rows_together_are_the_global_batch(ranks, step):
    data, share = numbers(), 12 // ranks
    parts = [data.batch(3, step, 12, rows=slice(r * share, (r + 1) * share))["input_ids"] for r in range(ranks)]
    assert torch.equal(torch.cat(parts), data.batch(3, step, 12)["input_ids"])


def test_batches_reach_every_place_of_the_training_part_and_no_other():
    data = numbers(40, context=4)
    rows = torch.cat([data.batch(0, step, 64)["input_ids"][:, 0] for step in range(20)])
    assert set(rows.tolist()) == set(range(32 - 4))
    assert data.batch(0, 0, 64)["targets"].max() <= 31


def test_validation_windows_cover_the_part_without_overlap():
    data = numbers(1000)
    targets = torch.cat([batch["targets"].flatten() for batch in data.val_batches(3)])
    assert targets.tolist() == list(range(801, 801 + 24 * 8))
    assert [len(batch["targets"]) for batch in data.val_batches(5)] == [5, 5, 5, 5, 4]


def test_limited_validation_is_spread_over_the_whole_part():
    data = numbers(1000)
    starts = torch.cat([batch["input_ids"][:, 0] for batch in data.val_batches(2, limit=3)]) - 800
    assert starts.tolist() == [0, 32, 64, 96, 128, 160]


def test_another_context_can_be_asked_for():
    data = numbers(context=8)
    assert data.batch(0, 0, 2, context=32)["input_ids"].shape == (2, 32)
    assert next(data.val_batches(2, context=100))["input_ids"].shape == (1, 100)


@pytest.mark.parametrize(("n", "part"), [(100, "validation"), (12, "training")])
def test_a_context_longer_than_the_text_is_refused_with_both_numbers(n, part):
    fraction = 0.05 if part == "validation" else 0.9
    size = {"validation": 5, "training": 1}[part]
    with pytest.raises(InputError, match=rf"context=8 is longer than the text: its {part} part has {size} tokens.* 9"):
        numbers(n, context=8, val_fraction=fraction)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1, "step": 0, "batch_size": 1}, "seed=-1"),
        ({"seed": 0, "step": -1, "batch_size": 1}, "step=-1"),
        ({"seed": 0, "step": 0, "batch_size": 0}, "batch_size=0 should be at least 1"),
        ({"seed": 0, "step": 0, "batch_size": 1, "context": 0}, "context=0 should be at least 1"),
        ({"seed": 0, "step": 0, "batch_size": 1, "context": 5000}, "context=5000 is longer than the text"),
    ],
    ids=["seed", "step", "batch size", "no context", "long context"],
)
def test_a_batch_that_cannot_be_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        numbers().batch(**options)


def test_reading_text_with_the_byte_tokenizer_imports_neither_pyarrow_nor_tokenizers(config):
    script = (
        "import sys; from blockyard.text import TextDataConfig, load_text\n"
        "load_text(TextDataConfig(path=sys.argv[1], cache_dir=sys.argv[2]), 16)\n"
        "assert not {'pyarrow', 'tokenizers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(config.path), str(config.cache_dir)], check=True, timeout=60)


def test_the_configuration_imports_neither_torch_nor_numpy():
    script = "import sys, blockyard.text.config; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
