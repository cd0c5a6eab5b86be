"""Files that pages take to be the reader's own, by the names that they use for them: made where a page mentions one."""

from __future__ import annotations

import inspect
import json
import re
import string
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fixtures.folders import ROOT
from tests.fixtures.prices import ohlcv, write

RATE = 1e6


def texts(folder: Path) -> None:
    """A folder of plain texts: docstrings of the standard library, some two hundred kilobytes, in five files."""
    folder.mkdir()
    source = "".join(inspect.getsource(module) for module in (inspect, textwrap, string, json))
    for number in range(5):
        (folder / f"{number}.txt").write_text(source[number::5][:2000] + source, encoding="utf-8")


def text(file: Path) -> None:
    """One of them."""
    file.write_text(inspect.getsource(inspect) + inspect.getsource(textwrap), encoding="utf-8")


def reviews(file: Path) -> None:
    """Labelled text: 60 rows of `text,stars`."""
    words = {1: "dull slow broken", 3: "plain fair enough", 5: "bright quick lovely"}
    rows = [(f"a {words[stars].split()[n % 3]} thing, number {n}", stars) for n in range(20) for stars in words]
    file.write_text("text,stars\n" + "".join(f'"{line}",{stars}\n' for line, stars in rows), encoding="utf-8")


def new_reviews(file: Path) -> None:
    """Text without labels."""
    file.write_text('text\n"a lovely thing"\n"a broken thing, and a dull one"\n', encoding="utf-8")


def prices(file: Path) -> None:
    """Daily prices of seven years; another file, another series."""
    write(ohlcv(rows=1800, seed=sum(file.stem.encode())), file)


def recording(file: Path) -> None:
    """A SigMF recording: QPSK at four samples a symbol, in noise; 40,000 samples."""
    drawn = np.random.default_rng(0)
    symbols = np.exp(1j * np.pi * (drawn.integers(0, 4, 10_000) / 2 + 0.25))
    samples = np.repeat(symbols, 4) + 0.1 * (drawn.standard_normal(40_000) + 1j * drawn.standard_normal(40_000))
    samples.astype(np.complex64).tofile(file.with_suffix(".sigmf-data"))
    about = {
        "global": {"core:datatype": "cf32_le", "core:sample_rate": RATE, "core:version": "1.0.0"},
        "captures": [{"core:sample_start": 0, "core:frequency": 433.92e6}],
        "annotations": [],
    }
    file.write_text(json.dumps(about), encoding="utf-8")


def samples(file: Path) -> None:
    """The samples of such a recording alone."""
    recording(file.with_suffix(".sigmf-meta"))
    np.save(file, np.fromfile(file.with_suffix(".sigmf-data"), dtype=np.complex64))


def model(folder: Path) -> None:
    """A folder of transformers: a tiny Llama that nobody trained, with a byte-level tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    marks = ["<|end|>", "<|user|>", "<|assistant|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({text: number for number, text in enumerate([*marks, *letters])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(marks)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(vocab_size=made.get_vocab_size(), max_position_embeddings=512, eos_token_id=0, **sizes)
        ).save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}, "bos_token": None}))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )


def repository(link: Path) -> None:
    """Scripts of a checkout, which a page runs from its root."""
    link.symlink_to(ROOT / link.name)


THEIRS: dict[str, Callable[[Path], None]] = {
    "my_texts": texts,
    "other_texts": texts,
    "shakespeare.txt": text,
    "reviews.csv": reviews,
    "new.csv": new_reviews,
    "prices.csv": prices,
    "a.csv": prices,
    "b.csv": prices,
    "c.csv": prices,
    "IBM.csv": prices,
    "recording.sigmf-meta": recording,
    "wide.sigmf-meta": recording,
    "recording.npy": samples,
    "smollm2": model,
    "SmolLM2-135M-Instruct": model,
    "benchmarks": repository,
    "examples": repository,
}


def make_theirs(folder: Path, shown: str) -> None:
    """Make the files in a folder that a page mentions."""
    for name, make in THEIRS.items():
        if re.search(rf"(?<![\w./-]){re.escape(name)}\b", shown):
            make(folder / name)
