"""The same training on one process and on two: equal losses, since a batch is a function of the seed and the step.

Run: python examples/two_ranks.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRAIN = ["train", "lm", "--model.d_model", "32", "--model.n_layers", "1", "--model.context", "32", "--train.steps", "6",
         "--train.batch_size", "8", "--train.log_every", "1", "--train.precision", "fp32", "--train.eval_every", "6",
         "--train.device", "cpu", "--data.max_bytes", "200000"]  # fmt: skip


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def main() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        words = [sys.executable, "-m", "blockyard", *TRAIN, "--out", str(one)]
        subprocess.run(words, check=True, env=environment)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*torchrun, "-m", "blockyard", *TRAIN, "--out", str(two)], check=True, env=environment)
        for step, (a, b) in enumerate(zip(losses(one), losses(two), strict=True), start=1):
            print(f"step {step}: one process {a:.6f}, two {b:.6f}")
            assert abs(a - b) < 1e-5, "two ranks should see the same batch"


if __name__ == "__main__":
    main()
