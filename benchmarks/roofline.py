"""What this machine can do at best, measured: float32 matrix products and passes over memory.

    python benchmarks/roofline.py

Other benchmarks measure both in the run whose times they compare with them. The rate of products is the better one of
the two libraries that torch has, on a product of 1024 rows with a 768 × 768 matrix; the rate of memory is that of
adding two tensors into a third, each as large as 1024 rows of 768, which lie in the processor's last cache as the
tensors of a block do.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from blockyard.machine.processor import processor_name
from blockyard.nn.products import product

ROWS, WIDTH, TURNS = 1024, 768, 15


@dataclass(frozen=True)
class Rates:
    """Best rates of one thread.

    Args:
        gflops: products by the library that the blocks use here, GFLOP/s.
        torch_gflops: products by `torch.mm`.
        gbytes: GB/s read and written by an addition.
        processor: its name.
    """

    gflops: float
    torch_gflops: float
    gbytes: float
    processor: str

    def floor_ms(self, flops: float, numbers: float = 0.0) -> float:
        """Return the least milliseconds for so many FLOPs, and so many float32 numbers read or written beside."""
        return 1e3 * (flops / (1e9 * self.gflops) + 4 * numbers / (1e9 * self.gbytes))


def rates() -> Rates:
    """Measure them; a second of process CPU time."""
    x, w, y = torch.randn(ROWS, WIDTH), torch.randn(WIDTH, WIDTH), torch.randn(ROWS, WIDTH)
    out = torch.empty_like(y)
    flops = 2.0 * ROWS * WIDTH * WIDTH
    with torch.inference_mode():
        ours = _seconds(lambda: product(x, w))
        theirs = _seconds(lambda: torch.mm(x, w.mT))
        added = _seconds(lambda: torch.add(x, y, out=out))
    best = min(ours, theirs)
    return Rates(flops / best / 1e9, flops / theirs / 1e9, 12 * x.numel() / added / 1e9, processor_name())


def _seconds(run: Callable[[], object]) -> float:
    """Return CPU seconds of the quickest quarter of the turns: a limit is what is reached undisturbed."""
    run()
    times = []
    for _ in range(TURNS):
        start = time.process_time()
        for _ in range(4):
            run()
        times.append((time.process_time() - start) / 4)
    return statistics.median(sorted(times)[: 1 + TURNS // 4])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(asdict(rates()), indent=1))
