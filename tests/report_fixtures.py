"""A realistic report without training: loss curves from a power law plus seed noise, costs of a small model."""

from __future__ import annotations

import math
import random
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    # name: (floor, params, flops/token, train tok/s, decode tok/s, cache bytes/token, peak bytes)
    "standard": {"floor": 1.50, "p": 787_456, "f": 1.71e6, "v": 14200, "d": 610, "c": 4096, "m": 142e6},
    "tva+vft": {"floor": 1.91, "p": 779_100, "f": 1.69e6, "v": 17100, "d": 720, "c": 256, "m": 118e6},
    "standard[window=64]+relu2": {
        "floor": 1.56,
        "p": 790_016,
        "f": 1.72e6,
        "v": 13100,
        "d": 600,
        "c": 4096,
        "m": 139e6,
    },
    "spectral*3/standard": {
        "floor": 1.74,
        "p": 770_040,
        "f": 1.60e6,
        "v": 9800,
        "d": 330,
        "c": 1024,
        "m": 171e6,
    },
}


def synthetic_report(
    names: tuple[str, ...] = ("standard", "tva+vft"),
    seeds: int = 3,
    *,
    floors: dict[str, float] | None = None,
    noise: float = 0.006,
    diverged: tuple[tuple[str, int], ...] = (),
    unit: str = "tokens",
    points: int = 400,
) -> dict[str, Any]:
    """A report.json before analysis, deterministic in its arguments."""
    steps, tokens_per_step = 1200, 32 * 64
    choices = []
    for name in names:
        shape = {**SHAPES[name], "floor": (floors or {}).get(name, SHAPES[name]["floor"])}
        runs = [
            _run(name, shape, seed, steps, tokens_per_step, noise, (name, seed) in diverged, points)
            for seed in range(seeds)
        ]
        choices.append(_choice(name, shape, runs))
    return {
        "schema": "blockyard.compare/1",
        "status": "complete",
        "created": "2026-01-02T03:04:05+00:00",
        "task": "lm",
        "reference": names[0],
        "budget": {
            "unit": unit,
            "value": {"tokens": steps * tokens_per_step, "seconds": 170, "flops": 1.2e13}[unit],
        },
        "match": "params",
        "seeds": list(range(seeds)),
        "quality": {"metric": "validation loss", "unit": "nats/byte", "bytes_per_token": 1.0},
        "settings": {
            "model": {"d_model": 128, "n_layers": 4, "n_heads": 4, "context": 64, "vocab_size": 256},
            "train": {
                "batch_size": 32,
                "lr": 0.003,
                "optimizer": "muon",
                "schedule": "cosine",
                "precision": "fp32",
            },
            "data": {"tokenizer": "byte"},
            "compare": {"slice_steps": 50},
        },
        "provenance": {
            "command": "blockyard compare lm --blocks 'standard;tva+vft' --match params --budget.unit tokens",
            "versions": {"blockyard": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.9", "numpy": "2.1.0"},
            "data": {"source": "Python 3.11.9 standard library", "sha256": "ab" * 32, "bytes": 21_345_678},
            "machine": {
                "cpu": "Example CPU @ 2.10GHz",
                "threads": 1,
                "cores": 2,
                "memory_bytes": 8 << 30,
                "system": "Linux-6.1",
                "accelerator": None,
            },
            "seconds_total": 1234.5,
        },
        "notes": [],
        "choices": choices,
    }


def _run(
    name: str,
    shape: dict[str, Any],
    seed: int,
    steps: int,
    per_step: int,
    noise: float,
    lost: bool,
    points: int,
) -> dict[str, Any]:
    random_ = random.Random(f"{name}/{seed}")
    offset = random_.gauss(0, noise)
    stop = steps // 3 if lost else steps

    def loss_at(step: int) -> float:
        progress = (step + 12) / (steps + 12)
        return shape["floor"] + offset + 0.16 * (progress**-0.75 - 1) * math.exp(-0.1 * progress)

    def curve(every: int, jitter: float) -> dict[str, list[Any]]:
        at = list(range(every, stop + 1, every))
        return {
            "step": at,
            "tokens": [s * per_step for s in at],
            "seconds": [round(s * per_step / shape["v"] * (1 + 0.002 * seed), 3) for s in at],
            "flops": [s * per_step * shape["f"] * 3 for s in at],
            "loss": [round(min(5.5, loss_at(s)) + random_.gauss(0, jitter), 5) for s in at],
        }

    train, validation = curve(max(1, steps // points), 0.06), curve(steps // 12, 0.004)
    if lost:
        train["loss"][-1] = None
    final = None if lost else validation["loss"][-1]
    known = [value for value in validation["loss"] if value is not None]
    return {
        "seed": seed,
        "status": "diverged" if lost else "finished",
        "folder": f"runs/{name}/seed-{seed}",
        "steps": stop,
        "tokens": stop * per_step,
        "seconds": stop * per_step / shape["v"],
        "cpu_seconds": stop * per_step / shape["v"] * 0.99,
        "flops": stop * per_step * shape["f"] * 3,
        "final_loss": final,
        "best_loss": min(known) if known and not lost else None,
        "note": f"loss became non-finite at step {stop}" if lost else "",
        "train": train,
        "validation": validation,
    }


def _choice(name: str, shape: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"median": value, "low": value * 0.98, "high": value * 1.015, "n": 9}

    target = SHAPES["standard"]["p"]
    return {
        "name": name,
        "blocks": name if "+" in name or "/" in name else f"{name}+swiglu",
        "shape": {"d_model": 128, "n_layers": 4, "n_heads": 4},
        "parameters": shape["p"] + 2 * 256 * 128,
        "parameters_core": shape["p"],
        "flops_per_token": shape["f"],
        "cache_bytes_per_token": shape["c"],
        "match": {
            "unit": "params",
            "target": target,
            "got": shape["p"],
            "miss": (shape["p"] - target) / target,
            "changed": {} if name == "standard" else {"d_ff": 372},
            "note": "",
        },
        "speed": {
            "train_wall": around(shape["v"]),
            "train_cpu": around(shape["v"] * 1.02),
            "decode_wall": around(shape["d"]),
        },
        "memory": {
            "peak_bytes": int(shape["m"]),
            "how": "peak resident size of a fresh process over ten training steps",
        },
        "sample": {
            "prompt": "def ",
            "text": "get_name(self, value=None):\n        if value is None:\n"
            "            return '<b>none</b>' & self._data\n"
            "        for item in self._item:\n            self._write(item)\n"
            "        return value\n\n    def __init__(self, ",
            "seed": 0,
        },
        "runs": runs,
    }
