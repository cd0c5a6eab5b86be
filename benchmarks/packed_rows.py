"""A training step on rows of documents against one on plain rows of the same text.

    python benchmarks/packed_rows.py [--blocks standard,mla,…] [--contexts 256,512] [--texts library,records]
        [--d_model 256] [--layers 2] [--tokens 4096] [--rounds 9] [--path FILE.txt] [--out FILE.json]

Texts: `library` is Python's own standard library, a document a file (most are longer than a row); `records` are the
paragraphs of a text (--path; the library's docstrings and code between blank lines without one) as JSON Lines. Steps of
the two kinds take turns in one process, with one model: batch, forward and backward pass, without the optimizer, which
both have. CPU time, medians; both as milliseconds a step and as microseconds a token that is predicted, whose ratio
counts the slots that hold no text against packing. One thread unless --threads says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blockyard.files import write_atomically
from blockyard.machine.processor import processor_name
from blockyard.models.lm import LMConfig, build_lm
from blockyard.tasks.lm.task import LMTask
from blockyard.text import TextDataConfig, load_text
from blockyard.text.corpus import read_standard_library
from blockyard.training.allocator import keep_freed_memory
from blockyard.training.config import TrainConfig

BLOCKS = "standard,mla,tva+vft,spectral,spectral/standard,standard+moe"


def records(path: str | None, folder: Path) -> Path:
    """Write the paragraphs of a text as JSON Lines."""
    if path is None:
        text = "".join(piece or "\n\n" for piece, _ in zip(read_standard_library(), range(200)))
    else:
        text = Path(path).read_text(encoding="utf-8")
    lines = [json.dumps({"text": part}) for part in text.split("\n\n") if len(part) > 1]
    out = folder / "records.jsonl"
    out.write_text("\n".join(lines), encoding="utf-8")
    return out


def seconds(task: LMTask, step: int, rows: int) -> tuple[float, int]:
    """Return CPU seconds of a step without its update, and how many tokens were predicted in it."""
    begin = time.process_time()
    batch = task.batch(step, slice(0, rows))
    loss, _ = task.loss(task.model, batch)
    loss.backward()
    spent = time.process_time() - begin
    task.model.zero_grad(set_to_none=True)
    return spent, int((batch["targets"] >= 0).sum())


def measure(blocks: str, config: TextDataConfig, context: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return one row of the table."""
    rows = max(1, options.tokens // context)
    shape = {"d_model": options.d_model, "n_layers": options.layers, "n_heads": 4, "context": context}
    model = LMConfig(vocab_size=256, blocks=blocks, **shape)
    train = TrainConfig(batch_size=rows, device="cpu")
    tasks = {}
    for pack in ("stream", "documents"):
        tasks[pack] = LMTask(model, load_text(replace(config, pack=pack), context), train)
    # The same weights in both, so that experts are as busy in one as in the other.
    tasks["documents"].model = tasks["stream"].model = build_lm(model, 0)
    found: dict[str, list[tuple[float, int]]] = {pack: [] for pack in tasks}
    for step in range(-2, options.rounds):
        for pack, task in tasks.items():
            # The first two of each warm up.
            spent = seconds(task, max(step, 0), rows)
            if step >= 0:
                found[pack].append(spent)
    packing = tasks["documents"].data.packing("train")
    middle = {pack: statistics.median(s for s, _ in each) for pack, each in found.items()}
    token = {pack: statistics.median(s / n for s, n in each) for pack, each in found.items()}
    return {
        "blocks": blocks,
        "context": context,
        "documents_a_row": round(len(packing.starts) / packing.rows, 2),
        "filling": round(packing.filling, 5),
        "stream_ms": round(middle["stream"] * 1e3, 1),
        "documents_ms": round(middle["documents"] * 1e3, 1),
        "ratio": round(middle["documents"] / middle["stream"], 3),
        "ratio_a_token": round(token["documents"] / token["stream"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", default=BLOCKS)
    parser.add_argument("--contexts", default="256,512")
    parser.add_argument("--texts", default="library,records")
    parser.add_argument("--path")
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {"library": None, "records": str(records(options.path, Path(folder)))}
        for text in options.texts.split(","):
            config = TextDataConfig(path=sources[text], cache_dir=folder, max_bytes=4_000_000)
            for context in map(int, options.contexts.split(",")):
                for blocks in options.blocks.split(","):
                    row = {"text": text, **measure(blocks, config, context, options)}
                    rows.append(row)
                    print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    about = {"processor": processor_name(), "torch": torch.__version__, "threads": options.threads, **vars(options)}
    if options.out:
        write_atomically(Path(options.out), json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
