"""A sliding window as blocks of queries against views of the keys, against one dense mask and full causal attention.

    python benchmarks/window.py [--out OUT.json]

One thread, float32, one layer's attention without projections; median milliseconds over interleaved rounds, forward
and forward with backward.
"""

from __future__ import annotations

import argparse
import json

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.bench.timing import Case, Clock, interleave, summarise
from blockyard.nn.attention import attend


def cases(x: Tensor, heads: int, window: int) -> dict[str, Case]:
    """The three ways, on the same queries, keys and values."""
    length = x.shape[1]
    distance = torch.arange(length)[:, None] - torch.arange(length)
    mask = (distance >= 0) & (distance < window)

    def qkv() -> list[Tensor]:
        return [part.transpose(1, 2) for part in x.split([heads] * 3, dim=2)]

    ways = {
        "dense mask": lambda: F.scaled_dot_product_attention(*qkv(), attn_mask=mask),
        "full causal": lambda: F.scaled_dot_product_attention(*qkv(), is_causal=True),
        "blocks": lambda: attend(*qkv(), causal=True, window=window)[0],
    }

    def forward(way):
        def run(units: int) -> None:
            with torch.no_grad():
                for _ in range(units):
                    way()

        return Case(run)

    def both(way):
        def run(units: int) -> None:
            for _ in range(units):
                x.grad = None
                way().sum().backward()

        return Case(run)

    found = {f"forward, {name}": forward(way) for name, way in ways.items()}
    return found | {f"forward + backward, {name}": both(way) for name, way in ways.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default="4096x64,4096x256,4096x1024,1024x128", help="length x window, with commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in arguments.shapes.split(","):
        length, window = map(int, shape.split("x"))
        x = torch.randn(1, length, 3 * 8, 64, requires_grad=True)
        times = interleave(cases(x, 8, window), Clock(x.device), rounds=arguments.rounds, round_seconds=0.05)
        for name, taken in times.items():
            kind = name.split(",")[0]
            found = summarise(taken, times[f"{kind}, dense mask"])
            rows.append({"length": length, "window": window, "what": name, **found})
            ms, ratio = 1000 * found["wall_seconds"]["median"], found["speedup"]["median"]
            print(f"T {length} W {window}: {name:32} {ms:8.1f} ms, x{ratio:.2f} of the dense mask", flush=True)
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
