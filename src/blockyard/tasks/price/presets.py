"""The price document's sizes as settings of `train price`: laid below what the user gives, like a settings file."""

from __future__ import annotations

from typing import Any

# Width, layers, heads, rank of the latents; the document's FFN is 2048 wide in all of them.
SIZES = {"tiny": (256, 4, 4, 128), "small": (512, 6, 8, 256), "base": (512, 8, 8, 256), "large": (1024, 12, 16, 512)}
D_FF, CONTEXT = 2048, 180
# Steps of 16 windows, so that on two cores tiny ends in a quarter of an hour and small within the hour. A window costs
# 0.11 s and 0.33 s of a core, forward and back; validation and test take as long as a fifth of the steps.
STEPS = {"tiny": 300, "small": 400, "base": 400, "large": 400}
BATCH, EVALUATIONS = 16, 5


def preset(name: str) -> dict[str, dict[str, Any]]:
    """Return option groups of the document's layout in one of its sizes: tiny, small, base or large."""
    width, layers, heads, rank = SIZES[name]
    return {
        "model": {
            "d_model": width,
            "n_layers": layers,
            "n_heads": heads,
            "context": CONTEXT,
            "layout": "day",
            "instance": "none",
            "pool": "last",
            "shortcut": "none",
            "dropout": 0.1,
            "pattern": f"mla[kv_rank={rank},rope=full]+swiglu[d_ff={D_FF}]",
        },
        "train": {
            "lr": 1e-4,
            "weight_decay": 0.01,
            "steps": STEPS[name],
            "batch_size": BATCH,
            "eval_every": STEPS[name] // EVALUATIONS,
        },
    }
