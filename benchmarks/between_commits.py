"""Training and decoding speed of two versions of this package, in pairs, so that a machine that slows down slows both.

    python benchmarks/between_commits.py OLD NEW [--pairs 30] [--only tva,moe] [--what train,decode] [--out FILE.json]

OLD and NEW are checkouts (`git worktree add ../old COMMIT` makes one). Each is imported by a process of its own, with
one thread; the processes wait while the other works and are asked in turns, there and back. A pair gives a ratio of
process CPU times; told are the median of the ratios and the interval that holds the true median with 95 % confidence
whatever their distribution (order statistics of the sign test). One process may be some per cent faster than the next
that runs the same code (where its memory fell), so both are started anew several times.

What a step is stands in steps.py. bench_check.py compares with a record instead of a second checkout: cheaper, and less
sharp.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from steps import CONTESTANTS, STEPS


class Worker:
    """One version in a process of its own that answers a line with a line."""

    def __init__(self, checkout: Path) -> None:
        source = str((checkout / "src").resolve())
        settings = {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "BLOCKYARD_BENCH_SOURCE": source}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, *words: Any) -> float:
        """CPU seconds of what the words name."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended; see its error above")
        return float(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    """Answer `[what, mixer, ffn, repeats]` with the CPU seconds that it took."""
    import torch

    import blockyard

    assert str(Path(blockyard.__file__).parents[1]) == os.environ["BLOCKYARD_BENCH_SOURCE"], blockyard.__file__
    torch.set_num_threads(1)
    made: dict[tuple[str, str, str], Any] = {}
    for line in sys.stdin:
        what, mixer, ffn, repeats = json.loads(line)
        key = (what, mixer, ffn)
        if key not in made:
            made[key] = STEPS[what](mixer, ffn)
        begin = time.process_time()
        for _ in range(repeats):
            made[key]()
        print(json.dumps(time.process_time() - begin), flush=True)


def measure_pairs(
    asked: argparse.Namespace, what: str, mixer: str, ffn: str, pairs: int, start: int, ratios: list[float]
) -> float:
    """Start both versions anew and add the ratios of some pairs; returns the seconds of one step of the faster one."""
    order = ("old", "new") if start % 2 else ("new", "old")
    sides = {name: Worker(getattr(asked, name)) for name in order}
    for side in sides.values():
        side.ask(what, mixer, ffn, 3)  # warms up
    once = min(side.ask(what, mixer, ffn, 5) for side in sides.values()) / 5
    repeats = max(1, round(asked.seconds / once))
    for number in range(pairs):
        turns = order if number % 2 else order[::-1]
        spent = {name: sides[name].ask(what, mixer, ffn, repeats) for name in turns}
        ratios.append(spent["new"] / spent["old"])
    for side in sides.values():
        side.close()
    return once


def main() -> None:
    # Workers serve other versions of this package, which need not have it.
    from blockyard.report.stats import median_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument(
        "--starts", type=int, default=6, help="fresh pairs of processes, over which the pairs are spread"
    )
    parser.add_argument("--seconds", type=float, default=0.4, help="CPU time of one side of a pair")
    parser.add_argument("--only", default="", help="mixers and FFNs, separated by commas")
    parser.add_argument("--what", default="train,decode")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        return serve()
    if asked.old is None or asked.new is None:
        parser.error("two checkouts are needed: OLD NEW")
    names = [name for name in asked.only.split(",") if name]
    rows = []
    for what in asked.what.split(","):
        for mixer, ffn in (pair for pair in CONTESTANTS if not names or {*pair} & {*names}):
            ratios: list[float] = []
            for start in range(asked.starts):
                once = measure_pairs(asked, what, mixer, ffn, -(-asked.pairs // asked.starts), start, ratios)
            middle, low, high = median_interval(ratios)
            rows.append({"what": what, "mixer": mixer, "ffn": ffn, "milliseconds": once * 1e3, "pairs": len(ratios),
                         "ratio": middle, "low": low, "high": high, "ratios": ratios})  # fmt: skip
            print(
                f"{what:6} {mixer:8} {ffn:6} {once * 1e3:8.2f} ms  new/old {middle:.4f} ({low:.4f} to {high:.4f})",
                flush=True,
            )
    if asked.out:
        import torch

        from blockyard.machine.processor import processor_name
        from blockyard.training.environment import describe_environment

        where = describe_environment(torch.device("cpu"), 1) | {"processor": processor_name()}
        asked.out.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
