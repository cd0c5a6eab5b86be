"""Plain matrix products against SDPA on a CPU, one thread: where `blockyard.nn.attention_kernels` should change over.

    python benchmarks/attention.py [OUT.json]

Prints and writes milliseconds of process CPU time, best of several, forward and backward, causal.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Literal

import torch

from blockyard.nn.attention import attend

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
WIDTHS = (4, 16, 32, 64)


def best_of(run: Callable[[], object], repeats: int = 7) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def step(kernel: Literal["matmul", "sdpa"], length: int, width: int, dtype: torch.dtype) -> Callable[[], None]:
    batch = max(1, 1024 // length)
    q, k, v = (torch.randn(batch, 4, length, width, dtype=dtype, requires_grad=True) for _ in range(3))
    return lambda: attend(q, k, v, causal=True, kernel=kernel)[0].sum().backward()


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for width in WIDTHS:
            for length in LENGTHS:
                matmul, sdpa = (best_of(step(kernel, length, width, dtype)) for kernel in ("matmul", "sdpa"))
                rows.append({"dtype": str(dtype), "head_dim": width, "T": length, "matmul": matmul, "sdpa": sdpa})
                print(f"{dtype!s:15} head {width:3} T {length:5}: matmul {matmul:7.2f} ms, sdpa {sdpa:7.2f} ms")
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
