"""Runs one tiny language model on one and on two gloo ranks. A program of its own:

    python -m tests.kill.ranks FOLDER TEXT SCENARIO...

A scenario is `NAME=PART,PART`, its parts run one after the other in one run folder NAME; a part is
RANKS:PARALLEL:STEPS[:ACCUMULATE]. A NAME that begins with moe trains a mixture of experts,
balanced by a bias. torch is imported once and every rank is a forked child.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch

from blockyard.tasks.run import make_task
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.trainer import Trainer


def rank(text: str, out: Path, part: str) -> None:
    """What one rank does."""
    size, parallel, steps, *rest = part.split(":")
    mixture = {"ffn": {"impl": "moe", "d_ff": 16}, "moe": {"n_experts": 4, "balance": "bias", "bias_rate": 0.01}}
    run = resolve(
        {
            **(mixture if out.name.startswith("moe") else {}),
            "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16, "dropout": 0.1},
            "data": {"path": text, "cache_dir": str(Path(text).parent / "cache")},
            "train": {
                "steps": 8,
                "batch_size": 8,
                "precision": "fp32",
                "compile": "off",
                "parallel": parallel,
                "accumulate": int(rest[0]) if rest else 1,
                "warmup": 2,
                "eval_every": 4,
                "eval_batches": 2,
                "save_every": 4,
                "log_every": 1,
                "threads": 1,
                "progress": False,
            },
        }
    )
    resume = (out / "config.yaml").exists()
    if int(size) > 1:
        # Every rank must have looked before the first one writes.
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
    trainer = Trainer(make_task(run), run.train, out, resolved=as_groups(run), resume=resume)
    if int(steps) < 8:
        trainer.advance(int(steps))
    else:
        trainer.run()
    trainer.close()


def launch(text: str, out: Path, part: str) -> None:
    size = int(part.split(":")[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for number in range(size):
        child = os.fork()
        if child == 0:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(number), WORLD_SIZE=str(size))
            os.environ["LOCAL_RANK"] = str(number)
            status = 1
            try:
                rank(text, out, part)
                status = 0
            except BaseException as error:
                print(f"rank {number} of {part}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                if os.environ.get("TRACE"):
                    import traceback

                    traceback.print_exc()
            os._exit(status)
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    if failed:
        sys.exit(f"{out.name}: {part} failed")


def main() -> None:
    folder, text, scenarios = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    torch.set_num_threads(1)
    for scenario in scenarios:
        name, _, parts = scenario.partition("=")
        for part in parts.split(","):
            launch(text, folder / name, part)


if __name__ == "__main__":
    main()
