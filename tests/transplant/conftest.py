"""A tiny trained-looking model as a run folder, and texts of two kinds, for whole transplants."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockyard.pretrained import Pretrained, write_run
from blockyard.text import ByteTokenizer
from blockyard.transplant import Pieces, Texts
from tests.transplant.test_transplant import build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The folder of a run with three layers of attention that looks somewhere."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model = build(n_layers=3, vocab_size=256)
    write_run(Pretrained(model, ByteTokenizer(), "blockyard", {}, "tiny", "float32", None), folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory) -> Texts:
    """Two files of random words, of other words each."""
    folder = tmp_path_factory.mktemp("texts")
    for seed, letters in enumerate(("aeioust", "klmnrp ")):
        draw = random.Random(seed)
        words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(3000)]
        (folder / f"{'vk'[seed]}.txt").write_text(" ".join(words))
    return Texts(path=(f"vowels={folder}/v.txt", str(folder / "k.txt")), cache_dir=str(folder / "cache"))


@pytest.fixture(scope="session")
def sizes() -> Pieces:
    return Pieces(calibrate=256, select=12 * 32, report=6 * 32, length=32)
