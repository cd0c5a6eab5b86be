"""Kills the healing of a tiny model at several points and goes on with it until it ends. A program of its own:

    python -m tests.kill.healing FOLDER LORA

torch is imported once and every attempt is a forked child. The first is ended by SIGTERM, the others by SIGKILL. Prints
JSON: how every attempt ended and the steps of the checkpoints then; the healed weights lie in FOLDER/healed.pt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from blockyard.training.checkpoint import list_checkpoints
from blockyard.transplant import HealSettings, gather_moments, heal, transplant
from tests.kill.training import ended, wait_for_steps
from tests.transplant.test_transplant import build, text

STEPS, LENGTH = 30, 40
# Steps of every attempt before its end.
ENDS = ((signal.SIGTERM, 3), (signal.SIGKILL, 6), (signal.SIGKILL, 1), (signal.SIGKILL, 11))


def healed(folder: Path, lora: int, pause: float = 0.0) -> dict[str, torch.Tensor]:
    """Heal, resting so many seconds after every step: a whole healing takes less than a busy machine may take to kill
    it."""
    torch.set_num_threads(1)
    model, ids = build(n_layers=3), text(STEPS)
    new = transplant(model, "mla[kv_rank=10,rope_dim=6]", layers=[1, 2], moments=gather_moments(model, ids[:4]))
    texts = {"one": ids.flatten(), "other": ids.flip(0, 1).flatten()}
    settings = HealSettings(tokens=STEPS * LENGTH, length=LENGTH, lr=1e-3, lora=lora, save_every=2, points=3)
    select = {"one": text(2, 30)}
    rest = lambda step, steps, loss: time.sleep(pause)  # noqa: E731
    heal(new, model, texts, settings=settings, folder=folder, select=select, progress=rest)
    return new.state_dict()


def start(folder: Path, lora: int) -> int:
    """Heal, or go on, in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            torch.save(healed(folder / "heal", lora, 0.05), folder / "healed.pt")
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return child


def main() -> None:
    folder, lora = Path(sys.argv[1]), int(sys.argv[2])
    # In the parent: what children inherit is imported once.
    found = []
    for number, steps in (*ENDS, (None, 0)):
        child = start(folder, lora)
        if number is not None:
            wait_for_steps(folder / "heal" / "metrics.jsonl", child, steps)
            if not ended(child):
                os.kill(child, number)
        _, status = os.waitpid(child, 0)
        kept = [step for step, _ in list_checkpoints(folder / "heal" / "checkpoints")]
        found.append([os.waitstatus_to_exitcode(status), max(kept, default=0)])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
