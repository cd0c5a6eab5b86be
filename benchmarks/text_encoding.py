"""A large mixed text becomes tokens: memory and speed beside the tokenizers library's `encode_batch`.

    python benchmarks/text_encoding.py [--megabytes 1000] [--vocab_size 16384] [--folder FOLDER] [--out FILE.json]

The text is written first: two fifths are Python and text files found on this machine (the standard library and what
is installed beside it), three fifths are invented words (Latin with accents, Cyrillic, Chinese; 300,000 words each,
Zipf-distributed), since a short text repeated would flatter every memo. It lies in five kinds of file: .txt, .jsonl,
.txt.gz, .txt.zst, .parquet. One tokenizer (byte-level BPE, GPT-2's pre-tokens) is learnt on a part of it; both sides
use the same vocabulary and merges, and every slab's ids are compared.

- *memory*: a fresh process loads the folder as `train lm` does, with progress, from nothing in the cache; once with the
  tokenizer at hand, once learning it from the whole text. The peak of resident memory is the kernel's (VmHWM: unlike
  ru_maxrss it knows nothing of the process that started this one), imports included.
- *speed*: slabs of about 8 MB of documents, already in memory, encoded by both in turns in one process, first the one,
  then the other; bytes per wall second and per CPU second. `encode_batch` may use all cores, so may ours.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.machine.processor import processor_name
from blockyard.text import BPETokenizer
from blockyard.text.readers import read_path
from blockyard.text.tokens import ScannedText, token_arrays

SLAB_BYTES = 8 << 20
ALPHABETS = {
    "latin": "eeeeaaaiiioounnrrssttlldcmpgbvfhqàáâäèéêëìíîïòóôöùúûüçñß",
    "cyrillic": "оооеееааиинннтттсссррввллккммддппууяыьгзбчйхжшюцщэф",
    "chinese": "".join(map(chr, range(0x4E00, 0x5600))),
}

LOAD = """
import json, sys, time
from blockyard.text import TextDataConfig, load_text
calls = []
begin, cpu = time.perf_counter(), time.process_time()
config = TextDataConfig(path=sys.argv[1], tokenizer=sys.argv[2], vocab_size=int(sys.argv[3]), cache_dir=sys.argv[4])
data = load_text(config, 64, lambda what, done, total: calls.append(what))
status = open("/proc/self/status").read()
print(json.dumps({"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu,
    "peak_bytes": int(status.split("VmHWM:")[1].split()[0]) * 1024,
    **{name: data.fingerprint[name] for name in ("tokens", "bytes", "documents")},
    "calls_of_progress": {what: calls.count(what) for what in dict.fromkeys(calls)}}))
"""


def found_documents() -> Iterator[str]:
    """Yield the text files of the standard library and of installed packages."""
    for place in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(place)).rglob("*")):
            if path.suffix in (".py", ".md", ".txt", ".rst") and path.is_file():
                try:
                    text = path.read_bytes().decode()
                except (OSError, UnicodeDecodeError):
                    continue
                if text and "\0" not in text:
                    yield text


def invented_documents(seed: int) -> Iterator[str]:
    """Yield documents of Zipf-distributed words without end, one script each in turns."""
    random = np.random.default_rng(seed)
    words = {}
    for name, letters in ALPHABETS.items():
        longest = 4 if name == "chinese" else 12
        drawn = random.integers(0, len(letters), (300_000, longest))
        lengths = random.integers(1, longest + 1, 300_000)
        words[name] = ["".join(letters[i] for i in row[:n]) for row, n in zip(drawn, lengths)]
    while True:
        for name, known in words.items():
            ranks = np.minimum(random.zipf(1.15, 2000) - 1, len(known) - 1)
            marks = random.choice(["", ",", ".", ".\n", "; 2024", ": "], 2000, p=[0.85, 0.06, 0.04, 0.03, 0.01, 0.01])
            joined = " ".join(known[i] + mark for i, mark in zip(ranks.tolist(), marks.tolist()))
            yield joined.replace(" ", "") if name == "chinese" else joined


def documents(total: int) -> Iterator[str]:
    """Yield documents until `total` bytes, two fifths found (as far as they reach) and the rest invented."""
    found, invented, done, real = found_documents(), invented_documents(0), 0, 0
    while done < total:
        text = next(found, None) if real < 0.4 * done or done == 0 else None
        if text is not None:
            real += len(text.encode())
        else:
            text = next(invented)
        done += len(text.encode())
        yield text


def write_folder(folder: Path, total: int) -> None:
    """Write the text as five kinds of file, a fifth of the bytes each, in files of about 20 MB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    held: list[str] = []
    size, number = 0, 0
    for text in documents(total):
        held.append(text)
        size += len(text.encode())
        if size >= min(20_000_000, total / 5):
            _write_file(folder, number, held, pa, pq)
            held, size, number = [], 0, number + 1
    if held:
        _write_file(folder, number, held, pa, pq)


def _write_file(folder: Path, number: int, held: list[str], pa: Any, pq: Any) -> None:
    kind = ("txt", "jsonl", "txt.gz", "txt.zst", "parquet")[number % 5]
    path = folder / f"part{number:03d}.{kind}"
    plain = "\n".join(held).encode()
    if kind == "txt":
        path.write_bytes(plain)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in held))
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress(plain, 1))
    elif kind == "txt.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write(plain)
    else:
        pq.write_table(pa.table({"text": held}), path)


def slabs(folder: Path) -> Iterator[list[str]]:
    """Yield the folder's documents, as they are read, in lists of about SLAB_BYTES; long ones are cut at lines."""
    held: list[str] = []
    size = 0
    for document in _whole(folder):
        for start in range(0, len(document), 1 << 20):
            held.append(document[start : start + (1 << 20)])
            size += len(held[-1].encode())
        if size >= SLAB_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _whole(folder: Path) -> Iterator[str]:
    parts: list[str] = []
    for piece in read_path(folder):
        if piece is None:
            yield "".join(parts)
            parts = []
        else:
            parts.append(piece)
    yield "".join(parts)


def peer_of(tokenizer: BPETokenizer, folder: Path) -> Any:
    """Return the same tokenizer as the library's own whole pipeline."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    peer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return peer


def compare(folder: Path, tokenizer: BPETokenizer, saved: Path) -> dict[str, Any]:
    """Encode every slab by both, in turns."""
    peer = peer_of(tokenizer, saved)
    seconds: dict[str, list[tuple[float, float]]] = {"ours": [], "peer": []}
    sizes = []
    for number, slab in enumerate(slabs(folder)):
        size = sum(len(text.encode()) for text in slab)
        ids: dict[str, np.ndarray] = {}
        for name in ("ours", "peer") if number % 2 else ("peer", "ours"):
            cpu, wall = _cpu(), time.perf_counter()
            if name == "ours":
                ids[name] = np.concatenate(list(token_arrays(_scanned(slab, size), tokenizer)))
            else:
                sep = np.asarray([tokenizer.separator_id])
                parts = [np.asarray(e.ids) for e in peer.encode_batch(slab, add_special_tokens=False)]
                ids[name] = np.concatenate([p for part in parts for p in (part, sep)][:-1])
            seconds[name].append((time.perf_counter() - wall, _cpu() - cpu))
        if not np.array_equal(ids["ours"], ids["peer"]):
            raise SystemExit(f"slab {number}: the ids differ")
        sizes.append(size)
    rates = {name: np.array(sizes)[:, None] / np.array(seconds[name]) / 1e6 for name in seconds}
    ratio = rates["ours"] / rates["peer"]
    return {
        "slabs": len(sizes),
        "bytes": sum(sizes),
        "ours_mb_per_s": _columns(np.median(rates["ours"], 0)),
        "peer_mb_per_s": _columns(np.median(rates["peer"], 0)),
        "ratio_median": _columns(np.median(ratio, 0)),
        "ratio_quartiles": [_columns(np.quantile(ratio, q, axis=0)) for q in (0.25, 0.75)],
        "ratio_of_all": _columns(np.array(seconds["peer"]).sum(0) / np.array(seconds["ours"]).sum(0)),
    }


def _scanned(slab: list[str], size: int) -> ScannedText:
    pieces: list[str | None] = [piece for text in slab for piece in (text, None)][:-1]
    return ScannedText(lambda: iter(pieces), "", size, len(slab))


def _cpu() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _columns(pair: np.ndarray) -> dict[str, float]:
    return {"wall": round(float(pair[0]), 3), "cpu": round(float(pair[1]), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--vocab_size", type=int, default=16384)
    parser.add_argument("--folder", type=Path, help="where the text is written, or lies already from a run before")
    parser.add_argument("--only", choices=("memory", "speed"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch, "text")
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            write_folder(folder, given.megabytes * 1_000_000)
        sample = (text for text, _ in zip(_whole(folder), range(400)))
        tokenizer = BPETokenizer.train(sample, given.vocab_size)
        saved = Path(scratch, "tokenizer")
        tokenizer.save(saved)
        result: dict[str, Any] = {"processor": processor_name(), "vocab_size": tokenizer.vocab_size}
        if given.only != "speed":
            for kind, name in (("at_hand", str(saved)), ("learnt", "bpe")):
                words = [sys.executable, "-c", LOAD, str(folder), name, str(given.vocab_size)]
                words.append(str(Path(scratch, "cache" + kind)))
                done = subprocess.run(words, check=True, capture_output=True, text=True)
                result[f"memory_tokenizer_{kind}"] = json.loads(done.stdout)
        if given.only != "memory":
            result["speed"] = compare(folder, tokenizer, saved)
    line = json.dumps(result, indent=1)
    print(line)
    if given.out:
        given.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
