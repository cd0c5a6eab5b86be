"""Kills a tiny comparison at random moments and continues it until it ends. A program of its own:

    python -m tests.kill.comparison FOLDER TEXT KILLS SEED WORKERS [RATES]

torch is imported once and every attempt is a forked child; with several workers these are processes of their own, and
half of the kills leave them without the one that started them. Prints JSON: how many kills hit, and how many lines of
metrics there were at each.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from blockyard.compare import measure, rates
from blockyard.compare.compare import compare_lm
from blockyard.compare.settings import CompareConfig
from blockyard.report import html, write
from blockyard.report import text as report_text

STEPS, TOKENS_PER_STEP, CHOICES, SEEDS = 40, 4 * 16, "standard;relu2", 2
LINES = 2 * SEEDS * STEPS
# Probes of rates are runs, too: each a fifth of one, here.
KINDS = ("runs", "rates")


def groups(text: str) -> dict[str, Any]:
    return {
        "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "context": 16, "dropout": 0.1},
        "data": {"path": text, "cache_dir": str(Path(text).parent / "cache")},
        "train": {
            "batch_size": 4,
            "threads": 1,
            "compile": "off",
            "precision": "fp32",
            "eval_batches": 2,
            "warmup": 2,
        },
    }


def start(text: str, out: Path, workers: int, rates_: str) -> int:
    """Compare, or continue, in a child process that leads a group of its own; returns its id."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        try:
            config = CompareConfig(
                CHOICES,
                budget_value=STEPS * TOKENS_PER_STEP,
                seeds=SEEDS,
                slice_steps=5,
                evaluations=8,
                sample_tokens=8,
                measure_memory=False,
                workers=workers,
                rates=rates_,
            )
            compare_lm(config, groups(text), out, show=False)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def lines_in(out: Path) -> int:
    """Steps that all runs have written down so far."""
    return sum(file.read_bytes().count(b"\n") for kind in KINDS for file in out.glob(f"{kind}/*/*/metrics.jsonl"))


def wait_for_lines(out: Path, child: int, more: int) -> None:
    """Return once so many more lines of metrics are there, or the child has ended."""
    before = lines_in(out)
    while not ended(child):
        now = lines_in(out)
        if now >= before + more:
            return
        # Continued runs first take back what they will write again.
        before = min(before, now)
        time.sleep(0.002)


def kill_and_continue(text: str, out: Path, kills: int, moments: random.Random, workers: int, rates_: str) -> list[int]:
    """Kill and continue until the comparison ends; returns the lines of metrics there were at each kill."""
    found: list[int] = []
    while True:
        child = start(text, out, workers, rates_)
        if len(found) < kills:
            if moments.random() < 0.85:
                # So few that all kills fit into the runs; then anywhere in a step or the checkpoint behind it.
                wait_for_lines(out, child, moments.randint(1, LINES // (2 * kills)))
                time.sleep(moments.uniform(0, 0.02))
            else:
                # While planning, measuring, or starting workers.
                time.sleep(moments.uniform(0, 0.3))
            if moments.random() < 0.5:
                os.killpg(child, signal.SIGKILL)
            else:
                os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"an attempt failed after {len(found)} kills"
            return found
        assert os.WTERMSIG(status) == signal.SIGKILL, f"an attempt died of signal {os.WTERMSIG(status)}"
        found.append(lines_in(out))


def main() -> None:
    folder, text = Path(sys.argv[1]), sys.argv[2]
    kills, seed, workers = (int(word) for word in sys.argv[3:6])
    torch.set_num_threads(1)
    measure.ROUND_SECONDS, measure.ROUNDS, measure.DECODE_ROUNDS = 0.002, 1, 1
    for module in (write, html, report_text):
        module.charts_of = lambda report, parts: []  # drawing takes longer than everything else here
    # What the option says; "one" trains nothing before the runs that are judged.
    rates_ = sys.argv[6] if len(sys.argv) > 6 else "one"
    rates.LEAST_STEPS = 2
    child = start(text, folder / "whole", 1, rates_)
    assert os.waitpid(child, 0)[1] == 0, "the uninterrupted comparison failed"
    lines = kill_and_continue(text, folder / "killed", kills, random.Random(seed), workers, rates_)
    print(json.dumps({"kills": len(lines), "lines": lines}))


if __name__ == "__main__":
    main()
