"""Kills a tiny language-model run at random moments and resumes it until it ends. A program of its own:

    python training_killer.py FOLDER TEXT KILLS SEED

torch is imported once and every attempt is a forked child, so that an attempt costs no start-up. Prints JSON: how many
kills hit, and the steps that the checkpoints found afterwards had.
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

from blockyard.training.checkpoint import list_checkpoints
from blockyard.training.run import train_lm


def groups(text: str) -> dict[str, Any]:
    return {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, "dropout": 0.1},
        "data": {"path": text, "cache_dir": str(Path(text).parent / "cache")},
        "train": {
            "steps": 120,
            "batch_size": 4,
            "save_every": 2,
            "eval_every": 10,
            "eval_batches": 1,
            "log_every": 1,
            "threads": 1,
            "progress": False,
        },
    }


def start(text: str, out: Path) -> int:
    """Train, or resume, in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            train_lm(groups(text), out, resume=(out / "config.yaml").exists())
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child


def wait_for_training(file: Path, child: int) -> None:
    """Return once the child adds to the file, or has ended."""
    size = file.stat().st_size if file.exists() else 0
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        grown = file.stat().st_size if file.exists() else 0
        if grown > size:
            return
        # A resumed run first takes back what it will write again.
        size = min(size, grown)
        time.sleep(0.005)


def main() -> None:
    folder, text, kills, seed = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    begin = time.monotonic()
    child = start(text, folder / "whole")
    assert os.waitpid(child, 0)[1] == 0, "the uninterrupted run failed"
    seconds = time.monotonic() - begin
    moments = random.Random(seed)
    steps: list[int] = []
    for _ in range(20 * kills):
        child = start(text, folder / "killed")
        if moments.random() < 0.8:
            wait_for_training(folder / "killed" / "metrics.jsonl", child)
        # Short enough that several attempts are needed; those that were not waited for die while setting up.
        time.sleep(moments.uniform(0, 1.5 * seconds / kills))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, "an attempt failed"
            break
        found = list_checkpoints(folder / "killed" / "checkpoints")
        steps.append(found[-1][0] if found else 0)
        if len(steps) >= kills:
            child = start(text, folder / "killed")
            assert os.waitpid(child, 0)[1] == 0, "the last attempt failed"
            break
    print(json.dumps({"kills": len(steps), "steps": steps}))


if __name__ == "__main__":
    main()
