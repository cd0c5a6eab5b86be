"""Kills a tiny run at random moments and resumes it until it ends. A program of its own:

    python -m tests.kill.training FOLDER CHOICE OPTIMIZER KILLS SEED STEPS

CHOICE is a name of tests/fixtures/resume_choices.py. torch is imported once and every attempt is a forked child, so
that an attempt costs no start-up. Prints JSON: how many kills hit, and the steps that the checkpoints found afterwards
had.
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

from blockyard.tasks.run import train
from blockyard.training.checkpoint import list_checkpoints
from tests.fixtures.resume_choices import groups_of


def start(groups: dict[str, Any], out: Path) -> int:
    """Train, or resume, in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            train(groups, out, resume=(out / "config.yaml").exists())
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_steps(file: Path, child: int, steps: int, seconds: float = float("inf")) -> None:
    """Return once the child has added so many lines of metrics, or has ended, or the time is over."""
    before, end = lines_in(file), time.monotonic() + seconds
    while time.monotonic() < end and not ended(child):
        now = lines_in(file)
        if now >= before + steps:
            return
        # A resumed run first takes back what it will write again.
        before = min(before, now)
        time.sleep(0.002)


def kill_and_resume(
    groups: dict[str, Any], out: Path, kills: int, moments: random.Random, step_seconds: float
) -> list[int]:
    """Kill and resume until the run ends; returns the steps that the checkpoints had after each kill.

    Moments are counted in steps that the run has made, not in seconds: on a machine that others load, a run is now
    slower and now faster than the one that was timed.
    """
    steps: list[int] = []
    length = groups["train"]["steps"]
    while True:
        child = start(groups, out)
        if len(steps) < kills:
            if moments.random() < 0.8:
                # So few that all kills fit into the run.
                wait_for_steps(out / "metrics.jsonl", child, moments.randint(1, max(1, length // (kills + 1))))
                # Anywhere in a step and the checkpoint behind it, but no further.
                wait_for_steps(out / "metrics.jsonl", child, 2, moments.uniform(0, 2 * step_seconds))
            else:
                # While setting up.
                time.sleep(moments.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0, f"an attempt failed after {len(steps)} kills"
            return steps
        assert os.WTERMSIG(status) == signal.SIGKILL, f"an attempt died of signal {os.WTERMSIG(status)}"
        found = list_checkpoints(out / "checkpoints")
        steps.append(found[-1][0] if found else 0)


def main() -> None:
    folder, name, optimizer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    kills, seed, steps = map(int, sys.argv[4:7])
    torch.set_num_threads(1)
    groups = groups_of(
        name, optimizer, folder, steps=steps, precision="fp32", compile="off", save_every=2, eval_every=10
    )
    begin = time.monotonic()
    child = start(groups, folder / "whole")
    assert os.waitpid(child, 0)[1] == 0, "the uninterrupted run failed"
    step_seconds = (time.monotonic() - begin) / steps
    found = kill_and_resume(groups, folder / "killed", kills, random.Random(seed), step_seconds)
    print(json.dumps({"kills": len(found), "steps": found}))


if __name__ == "__main__":
    main()
