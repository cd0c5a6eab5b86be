"""What a user sees by the wall clock: loss reached within a budget that starts with the command, imports included.

    python benchmarks/cold_start.py --peer PATH [--budgets 20 40] [--out FILE.json]

Ours is `blockyard train lm` with its defaults, as a fresh process without any cache (tokens, decisions, compiled
kernels); PATH is a checkout of https://github.com/karpathy/nanoGPT, trained by a fresh process in the manner of its
train.py until the budget is over. Both see the same bytes at the same shape (4 layers, 4 heads, width 128, context
64), use torch's own number of threads, and are judged by the loss on the same validation windows. Our steps are set
from a rehearsal so that the command ends within the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blockyard.text import TextDataConfig, load_text

CONTEXT, EVAL_BATCHES = 64, 20
SHAPE = {"model.n_layers": 4, "model.n_heads": 4, "model.d_model": 128, "model.context": CONTEXT}

PEER = """
import math, statistics, sys, time
path, text, cache = sys.argv[3:6]
begin, budget, rate = float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[6])
sys.path.insert(0, path)
import torch
from model import GPT, GPTConfig
from blockyard.text import TextDataConfig, load_text
data = load_text(TextDataConfig(path=text, cache_dir=cache), 64)
torch.manual_seed(1337)
model = GPT(GPTConfig(block_size=64, vocab_size=256, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False))
optimizer = model.configure_optimizers(0.1, rate, (0.9, 0.95), "cpu")
step, first = 0, time.time()
end = begin + budget - 1.0  # for the evaluation
while time.time() < end:
    done = (time.time() - first) / (end - first)
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))
    batch = data.batch(0, step, 12)
    _, loss = model(batch["input_ids"], batch["targets"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    step += 1
model.eval()
with torch.no_grad():
    losses = [model(b["input_ids"], b["targets"])[1].item() for b in data.val_batches(32, 64, 20)]
print(step, statistics.fmean(losses))
"""


def ours(text: Path, steps: int) -> dict[str, Any]:
    """Wall seconds of the whole command, and its last validation loss."""
    with tempfile.TemporaryDirectory() as folder:
        options = {
            **SHAPE, "data.path": text, "train.steps": steps, "train.eval_every": 0,
            "train.eval_batches": EVAL_BATCHES, "out": f"{folder}/run",
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        caches = {"BLOCKYARD_CACHE": f"{folder}/cache", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
        begin = time.time()
        command = [sys.executable, "-m", "blockyard", "train", "lm", *words]
        done = subprocess.run(command, env={**os.environ, **caches}, capture_output=True, text=True, check=False)
        seconds = time.time() - begin
        if done.returncode:
            sys.exit(f"error: {done.stderr.strip()}")
        last = json.loads(Path(folder, "run", "metrics.jsonl").read_text().splitlines()[-1])
        decisions = json.loads(Path(folder, "run", "environment.json").read_text())["decisions"]["why"]
    return {"steps": steps, "seconds": round(seconds, 1), "val_loss": round(last["val_loss"], 4), "why": decisions}


def peer(path: Path, text: Path, budget: float, rate: float) -> dict[str, Any]:
    """The peer's steps and validation loss within the budget."""
    with tempfile.TemporaryDirectory() as cache:
        begin = time.time()
        words = [sys.executable, "-c", PEER, str(begin), str(budget), str(path), str(text), cache, str(rate)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {done.stderr.strip()}")
        steps, loss = done.stdout.split()[-2:]
    return {
        "rate": rate, "steps": int(steps), "seconds": round(time.time() - begin, 1), "val_loss": round(float(loss), 4)
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument(
        "--budgets", type=float, nargs="+", default=[20.0, 40.0], help="seconds from the command's start"
    )
    parser.add_argument(
        "--peer-lr", type=float, nargs="+", default=[1e-3, 3e-3], help="the peer's rates; its best counts"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # The default corpus as a file, so that both read the same bytes.
        data = load_text(TextDataConfig(max_bytes=1_100_000), CONTEXT)
        text = Path(folder, "text.txt")
        text.write_bytes(bytes(data.train.tolist() + data.val.tolist()).replace(b"\0", b"\n"))
        short, long = ours(text, 20), ours(text, 120)
        per_step = (long["seconds"] - short["seconds"]) / 100
        found = []
        for budget in arguments.budgets:
            steps = max(20, int(20 + 0.93 * (budget - short["seconds"]) / per_step))
            runs = [peer(arguments.peer, text, budget, rate) for rate in arguments.peer_lr]
            found.append({"budget": budget, "ours": ours(text, steps), "nanoGPT": runs})
    result = json.dumps({"shape": SHAPE, "budgets": found}, indent=1)
    print(result)
    if arguments.out:
        arguments.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
