"""One step of healing in its ways: whole logits and float32, rows of logits, layers shared, bf16.

    python benchmarks/healing.py MODEL [--out healing.json] [--blocks 'mla[kv_rank=128,rope_dim=64]'] [--rounds 3]

MODEL is a folder with config.json and safetensors. All ways stand in one process and take turns, timed by its CPU
seconds: the original forward, the transplanted model forward and back, on the same piece of random tokens. The new
mixers are fitted to no text, as their shapes decide. `layers` are those transplanted where layers are shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from blockyard.machine.processor import processor_name
from blockyard.pretrained import load_pretrained
from blockyard.transplant import HealSettings, LayerMoments, Moments, transplant
from blockyard.transplant.heal import Distilling, transplanted
from blockyard.transplant.parts import training_only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", default="healing.json")
    parser.add_argument("--blocks", default="mla[kv_rank=128,rope_dim=64]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    record = measure(asked)
    Path(asked.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of a step, by way."""
    original = load_pretrained(asked.model, check=False).model
    config = original.config
    depth, width, heads = len(original.layers), config.d_model, config.n_heads
    unit, one = torch.eye(width, dtype=torch.float64), torch.ones(heads, 1, dtype=torch.float64)
    # The weights alone: what they are does not change the time.
    moments = Moments({i: LayerMoments(unit, unit, unit, one) for i in range(depth)}, 1)
    last_third = list(range(2 * depth // 3, depth))
    ids = torch.randint(config.vocab_size, (1, asked.length), generator=torch.Generator().manual_seed(0))
    everywhere = transplant(original, asked.blocks, moments=moments)
    some = transplant(original, asked.blocks, layers=last_third, moments=moments)

    def by_rows(model: Any, bf16: bool) -> Callable[[], None]:
        parts = transplanted(model, original)
        settings = HealSettings(length=asked.length, tokens=asked.length)
        task = Distilling(model, original, parts, [ids[0]], settings, {}, {})

        def step() -> None:
            with training_only(model, list(parts.values())):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                    loss, _ = task.loss(task.model, {"ids": ids})
                loss.backward()

        return step

    def whole() -> None:
        with training_only(everywhere, list(transplanted(everywhere, original).values())):
            with torch.no_grad():
                wanted = original(ids).logits[0].log_softmax(-1)
            found = everywhere(ids).logits[0].log_softmax(-1)
            F.kl_div(found, wanted, reduction="batchmean", log_target=True).backward()

    ways: dict[str, Callable[[], None]] = {
        "whole logits, float32": whole,
        "rows of logits, float32": by_rows(everywhere, False),
        "rows of logits, bf16": by_rows(everywhere, True),
        "the last third of the layers, float32": by_rows(some, False),
        "the last third of the layers, bf16": by_rows(some, True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.rounds + 1):
        for name, step in ways.items():
            began = time.process_time()
            step()
            # The first turn warms up.
            if turn:
                seconds[name].append(time.process_time() - began)
    return {
        "model": Path(asked.model).name,
        "blocks": asked.blocks,
        "layers": last_third,
        "processor": processor_name(),
        "torch": torch.__version__,
        "threads": asked.threads,
        "length": asked.length,
        "cpu_seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "all": seconds,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
