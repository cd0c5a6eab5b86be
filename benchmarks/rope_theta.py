"""Loss by position for two rotary bases, within the trained length and beyond it.

    python benchmarks/rope_theta.py [--blocks standard] [--lengths 128,512] [--thetas 1e4,1e6] [--out FILE.json]

Trains byte models of 4 layers, width 128, on the standard library's source at each length, and measures their loss on
held-out windows of four times that length, in nats per byte. The documents advise a larger base for longer sequences,
and say that rotation extrapolates: this is what comes of both.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.models import LMConfig, TransformerLM
from blockyard.text.corpus import read_standard_library

TOKENS, BYTES, WINDOWS = 4096, 4_000_000, 24


def text() -> tuple[Tensor, Tensor]:
    """Bytes to train on, and to measure on."""
    data = bytearray()
    for piece in read_standard_library():
        data += b"\n" if piece is None else piece.encode()
        if len(data) >= BYTES:
            break
    tokens = torch.frombuffer(data, dtype=torch.uint8).long()
    cut = int(0.95 * len(tokens))
    return tokens[:cut], tokens[cut:]


def train(model: TransformerLM, tokens: Tensor, length: int, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for step in range(steps):
        rate = 3e-3 * min(1.0, (step + 1) / 50) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimizer.param_groups[0]["lr"] = rate
        starts = torch.randint(len(tokens) - length - 1, (TOKENS // length,), generator=generator)
        rows = torch.stack([tokens[s : s + length + 1] for s in starts])
        loss = model(rows[:, :-1], targets=rows[:, 1:]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@torch.no_grad()
def loss_by_position(model: TransformerLM, tokens: Tensor, length: int) -> dict[str, float]:
    """Mean loss at positions within the trained length, up to twice, and up to four times it."""
    span = 4 * length
    starts = torch.linspace(0, len(tokens) - span - 2, WINDOWS).long()
    rows = torch.stack([tokens[s : s + span + 1] for s in starts])
    losses = torch.cat([F.cross_entropy(model(r[:, :-1]).logits.mT, r[:, 1:], reduction="none") for r in rows.split(4)])
    parts = {"first half": losses[:, : length // 2], "second half": losses[:, length // 2 : length]}
    parts |= {"to 2x": losses[:, length : 2 * length], "to 4x": losses[:, 2 * length :]}
    return {name: float(part.mean()) for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", default="standard")
    parser.add_argument("--lengths", default="128,512")
    parser.add_argument("--thetas", default="1e4,1e6")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", help="write JSON here, after each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    training, held_out = text()
    rows = []
    for seed in range(options.seeds):
        for length in map(int, options.lengths.split(",")):
            for theta in map(float, options.thetas.split(",")):
                torch.manual_seed(seed)
                config = LMConfig(256, options.blocks, d_model=128, context=length, rope_theta=theta)
                start, model = time.process_time(), TransformerLM(config)
                train(model, training, length, options.steps, seed)
                found = loss_by_position(model.eval(), held_out, length)
                rows.append({"length": length, "theta": theta, "seed": seed, **found})
                shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items())
                print(
                    f"T {length} theta {theta:g} seed {seed}: {shown}; {time.process_time() - start:.0f} s", flush=True
                )
                if options.out:
                    with open(options.out, "w", encoding="utf-8") as file:
                        json.dump({"torch": torch.__version__, "steps": options.steps, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
