"""Speed of vein blocks against a fused standard block, one thread, causal, float32.

    python benchmarks/vein_speed.py [OUT.json] [--long]

Prints and writes milliseconds of process CPU time, forward and forward + backward, and ratios to the standard block
(fused qkv, SDPA, GELU). Blocks take turns, and the best of several rounds counts, so that a busy machine slows all
alike.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.blocks_vein import VFTBlock

D_MODEL, N_HEADS = 768, 12
SHAPES = [(8, 128), (4, 512)]
LONG = [(1, 2048), (1, 4096)]
VARIANTS: dict[str, dict[str, Any]] = {
    "seed, rank 4": {"rank": 4, "preset": "seed"},
    "folded, full stabiliser, rank 4": {"rank": 4, "stabilizer": "full"},
    "folded, no stabiliser, rank 4": {"rank": 4},
    "folded, no stabiliser, no correction, rank 4": {"rank": 4, "s": 0},
    "3 heads x 16, ffn rank 4, no correction": {"n_heads": 3, "rank": 16, "ffn_rank": 4, "s": 0},
    "fast preset, default ranks": {},
}


class FusedStandard(nn.Module):
    """Pre-norm block with one qkv matrix, SDPA and a GELU FFN of 4 · d_model."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.qkv, self.out = nn.Linear(D_MODEL, 3 * D_MODEL), nn.Linear(D_MODEL, D_MODEL)
        self.up, self.down = nn.Linear(D_MODEL, 4 * D_MODEL), nn.Linear(4 * D_MODEL, D_MODEL)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.ln1(x)).unflatten(-1, (3, N_HEADS, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


def build(options: dict[str, Any]) -> nn.Module:
    return VFTBlock(
        D_MODEL,
        options.get("n_heads", N_HEADS),
        causal=True,
        **{name: value for name, value in options.items() if name != "n_heads"},
    )


def cpu_ms(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return 1000 * (time.process_time() - start)


def steps(block: nn.Module, x: Tensor) -> list[Callable[[], object]]:
    def forward() -> None:
        with torch.no_grad():
            block(x)

    def both() -> None:
        block.zero_grad(set_to_none=True)
        out = block(x)
        (out[0] if isinstance(out, tuple) else out).sum().backward()

    return [forward, both]


def measure(batch: int, length: int, rounds: int) -> dict[str, list[float]]:
    x = torch.randn(batch, length, D_MODEL)
    # The seed's factored attention at great length is out of this benchmark's patience.
    chosen = {name: options for name, options in VARIANTS.items() if length < 2048 or "seed" not in name}
    runs = {"standard": steps(FusedStandard(), x), **{name: steps(build(o), x) for name, o in chosen.items()}}
    best = {name: [float("inf")] * 2 for name in runs}
    for round_ in range(rounds + 1):
        for name, pair in runs.items():
            for i, run in enumerate(pair):
                taken = cpu_ms(run)
                if round_:  # the first round warms up
                    best[name][i] = min(best[name][i], taken)
    return best


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for batch, length in SHAPES + LONG * ("--long" in sys.argv):
        best = measure(batch, length, rounds=8 if length < 1024 else 3)
        base = best["standard"]
        for name, (forward, both) in best.items():
            row = {"batch": batch, "T": length, "block": name, "forward_ms": forward, "forward_backward_ms": both}
            rows.append(row)
            ratios = f"x{base[0] / forward:5.1f} / x{base[1] / both:5.1f}"
            print(f"B{batch} T{length:5} {name:46} {forward:8.2f} / {both:8.2f} ms  {ratios}", flush=True)
    paths = [word for word in sys.argv[1:] if not word.startswith("--")]
    if paths:
        with open(paths[0], "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
