"""Whole generations with the library's caches against a cache that grows by torch.cat, one thread, float32.

    python benchmarks/decode.py [--out OUT.json]

The peer keeps what the forward pass needs in the simplest way there is: each step joins the old and the new tensors.
It runs the same mixer, prompt and steps, in turns with the others. Seconds are of process CPU time and of wall clock,
medians over the rounds with quartiles; the ratio is the peer's time over ours in the same round.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from torch import Tensor

from blockyard.report.stats import quartiles
from blockyard.standard.attention import StandardAttention


class CatCache:
    """Keys and values joined at every step."""

    def __init__(self) -> None:
        self.length, self.dtype = 0, torch.float32
        self.parts: dict[str, Tensor] = {}

    def append(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        self.length += next(iter(tensors.values())).shape[-2]
        for name, new in tensors.items():
            self.parts[name] = torch.cat([self.parts[name], new], dim=-2) if name in self.parts else new
        return tuple(self.parts[name] for name in tensors)


def generation(mixers: list[StandardAttention], caches: list, tokens: int, x: Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of `tokens` steps from an empty cache through all layers."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(tokens):
        h = x
        for mixer, cache in zip(mixers, caches):
            h = h + mixer(h, cache=cache)[0]
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shapes", default="512x8x1,512x8x4,512x8x8", help="d_model x heads x batch, with commas")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for shape in arguments.shapes.split(","):
        d_model, heads, batch = map(int, shape.split("x"))
        mixers = [StandardAttention(d_model, heads, causal=True).eval() for _ in range(arguments.layers)]
        x, tokens = torch.randn(batch, 1, d_model), arguments.tokens

        def caches(kind: str, mixers=mixers, batch=batch, tokens=tokens) -> list:
            if kind == "cat":
                return [CatCache() for _ in mixers]
            return [mixer.new_cache(batch, max_len=tokens if kind == "static" else None) for mixer in mixers]

        times: dict[str, list[tuple[float, float]]] = {"cat": [], "growing": [], "static": []}
        order = list(times)
        with torch.inference_mode():
            for _ in range(arguments.rounds):
                for kind in order:
                    times[kind].append(generation(mixers, caches(kind), tokens, x))
                order.reverse()
        for kind, taken in times.items():
            ratios = [[peer[i] / ours[i] for peer, ours in zip(times["cat"], taken)] for i in (0, 1)]
            row = {
                "d_model": d_model, "heads": heads, "batch": batch, "layers": arguments.layers, "tokens": tokens,
                "cache": kind, "wall": quartiles([t[0] for t in taken]), "cpu": quartiles([t[1] for t in taken]),
                "faster_wall": quartiles(ratios[0]), "faster_cpu": quartiles(ratios[1]),
            }  # fmt: skip
            rows.append(row)
            print(
                f"d {d_model} heads {heads} batch {batch}: {kind:8} {row['wall']['median']:6.2f} s, "
                f"x{row['faster_wall']['median']:.2f} of torch.cat (CPU x{row['faster_cpu']['median']:.2f})",
                flush=True,
            )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
