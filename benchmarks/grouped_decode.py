"""Few queries of grouped heads on a CPU, one thread: folded into queries of one head, head by head, or plain products.

    python benchmarks/grouped_decode.py [--out FILE.json]

Where `FEW_QUERIES` in `blockyard.nn.attention_kernels` should lie. The keys are latents, of which the values are the
first columns (MLA), or as wide as the values (GQA). Median milliseconds, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn import attention, attention_kernels

# keys, heads, key heads, width of keys, width of values
SHAPES = [(2048, 8, 1, 288, 256), (8192, 8, 1, 160, 128), (2048, 32, 1, 160, 128), (4096, 8, 2, 64, 64)]


def timed(q: Tensor, k: Tensor, v: Tensor, rounds: int = 9) -> dict[str, float]:
    """Milliseconds by kernel."""
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])

    def head_by_head() -> Tensor:
        return F.scaled_dot_product_attention(q, k, k, attn_mask=mask, enable_gqa=True)[..., : v.shape[-1]]

    runs = {
        "folded": lambda: attention.attend(q, k, v, causal=True, kernel="sdpa"),
        "head by head": head_by_head,
        "products": lambda: attention.attend(q, k, v, causal=True, kernel="matmul"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # Fold at every number of queries that is tried.
    attention_kernels.FEW_QUERIES = 10**9
    rows = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for keys, heads, key_heads, width, v_width in SHAPES:
                k = torch.randn(1, key_heads, keys, width, dtype=dtype)
                for queries in (1, 2, 4, 8, 16, 32):
                    found = timed(torch.randn(1, heads, queries, width, dtype=dtype), k, k[..., :v_width])
                    shape = {"dtype": str(dtype), "keys": keys, "heads": heads, "key_heads": key_heads, "width": width}
                    rows.append({**shape, "queries": queries, **found})
                    shown = ", ".join(f"{name} {ms:.3f}" for name, ms in found.items())
                    print(f"{dtype!s:14} S {keys} {heads}/{key_heads} x {width}, {queries:2} queries: {shown}")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
