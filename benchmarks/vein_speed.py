"""Speed of vein blocks against a fused standard block, one thread, causal, float32.

    python benchmarks/vein_speed.py [--long] [--only SHAPE] [--out FILE]

Prints and writes milliseconds of process CPU time, forward and forward + backward, and ratios to the standard block
(fused qkv, SDPA, GELU) of the same round; medians over rounds in which the blocks take turns of about equal length.
As in the middle of a model, the backward pass starts from a dense gradient and goes on to the input; as in
`blockyard train`, freed memory is kept by the process. The standard block has no positions, so the vein blocks it is
compared with have none either; "rotary" rows have them on both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.training.allocator import keep_freed_memory
from blockyard.vein.block import VFTBlock

D_MODEL, N_HEADS = 768, 12
SHAPES = [(8, 128), (4, 512)]
LONG = [(1, 2048), (1, 4096)]
VARIANTS: dict[str, dict[str, Any]] = {
    "seed, rank 4": {"rank": 4, "preset": "seed"},
    "folded, full stabiliser": {"rank": 4, "stabilizer": "full", "s": 0, "rope": "none", "qk_norm": False},
    "folded, full stabiliser, one correction": {"rank": 4, "stabilizer": "full", "rope": "none", "qk_norm": False},
    "folded, no stabiliser": {"rank": 4, "s": 0, "rope": "none", "qk_norm": False},
    "folded, no stabiliser, one correction": {"rank": 4, "rope": "none", "qk_norm": False},
    "folded, no stabiliser, rotary": {"rank": 4, "s": 0, "qk_norm": False},
    "3 heads x 16, ffn rank 4": {"n_heads": 3, "rank": 16, "ffn_rank": 4, "s": 0, "rope": "none", "qk_norm": False},
    "fast preset, default ranks, rotary": {},
}
# Each block's turn in a round lasts about this long.
TURN_MS = 60.0


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


def cpu_ms(run: Callable[[], object], times: int = 1) -> float:
    """Process CPU milliseconds per call."""
    start = time.process_time()
    for _ in range(times):
        run()
    return 1000 * (time.process_time() - start) / times


def steps(block: nn.Module, x: Tensor, gradient: Tensor) -> list[Callable[[], object]]:
    def forward() -> None:
        with torch.inference_mode():
            block(x)

    def both() -> None:
        block.zero_grad(set_to_none=True)
        x.grad = None
        out = block(x)
        (out[0] if isinstance(out, tuple) else out).backward(gradient)

    return [forward, both]


def measure(batch: int, length: int, rounds: int) -> dict[str, list[list[float]]]:
    """Milliseconds by block: [forward of each round, forward and backward of each round]."""
    x, gradient = torch.randn(batch, length, D_MODEL, requires_grad=True), torch.randn(batch, length, D_MODEL)
    # The seed's factored attention at great length is out of this benchmark's patience.
    chosen = {name: options for name, options in VARIANTS.items() if length < 2048 or "seed" not in name}
    runs = {name: steps(build(options), x, gradient) for name, options in chosen.items()}
    runs = {"standard": steps(FusedStandard(), x, gradient), **runs}
    for pair in runs.values():
        for run in pair:
            run()
    calls = {name: [max(1, round(TURN_MS / cpu_ms(run))) for run in pair] for name, pair in runs.items()}
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in runs}
    for _ in range(rounds):
        for name, pair in runs.items():
            for times, run, repeats in zip(taken[name], pair, calls[name]):
                times.append(cpu_ms(run, repeats))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="also lengths 2048 and 4096")
    parser.add_argument("--only", help="one shape, e.g. 8x128")
    parser.add_argument("--out", help="write the figures to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shapes = SHAPES + LONG * given.long
    if given.only:
        shapes = [tuple(map(int, given.only.split("x")))]  # type: ignore[misc]
    rows = []
    for batch, length in shapes:
        taken = measure(batch, length, rounds=9 if length < 512 else 7 if length < 1024 else 4)
        for name, pair in taken.items():
            row: dict[str, Any] = {"batch": batch, "T": length, "block": name}
            for what, times, base in zip(("forward", "forward_backward"), pair, taken["standard"]):
                row[f"{what}_ms"] = statistics.median(times)
                row[f"{what}_ratio"] = statistics.median(b / t for b, t in zip(base, times))
            rows.append(row)
            print(
                f"B{batch} T{length:5} {name:46} {row['forward_ms']:8.2f} / {row['forward_backward_ms']:8.2f} ms  "
                f"x{row['forward_ratio']:5.1f} / x{row['forward_backward_ratio']:5.1f}",
                flush=True,
            )
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
