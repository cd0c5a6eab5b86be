"""Speed of vein blocks against a fused standard block, one thread, causal, float32.

    python benchmarks/vein_speed.py [--long] [--only SHAPE] [--out FILE]

Prints and writes milliseconds of process CPU time, forward and forward + backward, and ratios to the standard block
(fused qkv, SDPA, GELU; torch's own operations) of the same round; medians and quartiles over rounds in which the blocks
take turns of about equal length. "standard here" is the same block of this package, whose products are by the same
library as the vein blocks': ratios to it tell what the vein alone gives. "of the limit" is the least time that a block
could take, its matrix products and one reading and writing of the stream by either half at the rates that this run
measures, over its time.
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
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.protocol.block import build_block
from blockyard.registry.pattern import parse_choice
from blockyard.training.allocator import keep_freed_memory
from blockyard.vein.block import VFTBlock
from roofline import rates

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


def standard_here() -> nn.Module:
    """The same block of this package: LayerNorm, GELU, no positions."""
    spec = parse_choice(f"standard[rope=none,qk_norm=false]+standard[d_ff={4 * D_MODEL}]")[0]
    return build_block(spec, d_model=D_MODEL, n_heads=N_HEADS, causal=True, norm="layer")


def least(block: nn.Module, batch: int, length: int) -> tuple[float, float]:
    """FLOPs of the forward pass and numbers that it has to move: the stream in and out of either half."""
    rows = batch * length
    if isinstance(block, FusedStandard):
        flops = 2.0 * rows * 12 * D_MODEL**2 + 2.0 * batch * length**2 * D_MODEL
    else:
        one, none = block.cost(length), block.cost(0)
        # Of one sequence; scores are counted dense, and causality halves them.
        attn = block.attn
        scores = 2 * attn.n_heads * (attn.head_dim + attn.v_dim) * length**2
        flops = batch * (one.flops - none.flops - scores / 2)
    return flops, 4.0 * rows * D_MODEL


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


def measure(
    batch: int, length: int, rounds: int, only: str | None
) -> tuple[dict[str, list[list[float]]], dict[str, tuple[float, float]]]:
    """Milliseconds by block: [forward of each round, forward and backward of each round]; and what `least` gives."""
    x, gradient = torch.randn(batch, length, D_MODEL, requires_grad=True), torch.randn(batch, length, D_MODEL)
    # The seed's factored attention at great length is out of this benchmark's patience.
    chosen = {name: options for name, options in VARIANTS.items() if length < 2048 or "seed" not in name}
    blocks = {"standard": FusedStandard(), "standard here": standard_here()}
    blocks |= {name: build(options) for name, options in chosen.items() if only is None or only in name}
    runs = {name: steps(block, x, gradient) for name, block in blocks.items()}
    for pair in runs.values():
        for run in pair:
            run()
    calls = {name: [max(1, round(TURN_MS / cpu_ms(run))) for run in pair] for name, pair in runs.items()}
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in runs}
    for _ in range(rounds):
        for name, pair in runs.items():
            for times, run, repeats in zip(taken[name], pair, calls[name]):
                times.append(cpu_ms(run, repeats))
    return taken, {name: least(block, batch, length) for name, block in blocks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--long", action="store_true", help="also lengths 2048 and 4096")
    parser.add_argument("--only", help="one shape, e.g. 8x128")
    parser.add_argument("--block", help="only blocks whose names contain this, beside the standard ones")
    parser.add_argument("--rounds", type=int, help="rounds; 9, 7 or 4 by length")
    parser.add_argument("--out", help="write the figures to this JSON file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    shapes = SHAPES + LONG * given.long
    if given.only:
        shapes = [tuple(map(int, given.only.split("x")))]  # type: ignore[misc]
    rows, limits = [], rates()
    print(f"{limits.processor}: products {limits.gflops:.0f} GFLOP/s (torch's own {limits.torch_gflops:.0f}), "
          f"memory {limits.gbytes:.0f} GB/s")  # fmt: skip
    for batch, length in shapes:
        rounds = given.rounds or (9 if length < 512 else 7 if length < 1024 else 4)
        taken, floors = measure(batch, length, rounds, given.block)
        for name, pair in taken.items():
            row: dict[str, Any] = {"batch": batch, "T": length, "block": name}
            for i, what in enumerate(("forward", "forward_backward")):
                # Backward takes two products for each one, and goes through the stream twice as often.
                floor = limits.floor_ms(*floors[name]) * (1 + 2 * i)
                row[f"{what}_ms"] = statistics.median(pair[i])
                row[f"{what}_of_limit"] = floor / row[f"{what}_ms"]
                for peer in ("standard", "standard here"):
                    ratios = [b / t for b, t in zip(taken[peer][i], pair[i])]
                    key = what + ("_ratio" if peer == "standard" else "_ratio_here")
                    row[key] = statistics.median(ratios)
                    row[f"{key}_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
            rows.append(row)
            print(_line(row), flush=True)
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "threads": 1, "rates": asdict(limits), "rows": rows}, file, indent=1)


def _line(row: dict[str, Any]) -> str:
    parts = [f"B{row['batch']} T{row['T']:4} {row['block']:40}"]
    parts.append(" / ".join(f"{row[f'{what}_ms']:7.2f}" for what in ("forward", "forward_backward")) + " ms")
    for key, mark in (("ratio", "x"), ("ratio_here", "here x")):
        found = []
        for what in ("forward", "forward_backward"):
            low, high = row[f"{what}_{key}_quartiles"]
            found.append(f"{row[f'{what}_{key}']:.1f} ({low:.1f}-{high:.1f})")
        parts.append(mark + " / ".join(found))
    shares = " / ".join(f"{row[f'{what}_of_limit']:.0%}" for what in ("forward", "forward_backward"))
    return "  ".join(parts) + f"  {shares} of the limit"


if __name__ == "__main__":
    main()
