"""What is built in, by name: the one table of it. A new wing or task is its folder and a line here.

Strings, so that listing names imports nothing; modules are imported when a name is used.
"""

from __future__ import annotations

from typing import Literal

Kind = Literal["attn", "ffn", "block"]

# Where the classes register themselves. An FFN or mixer is `--ffn.impl NAME` or `--attn.impl NAME`; a block is a pair
# of both that becomes one.
BUILTIN: dict[Kind, dict[str, str]] = {
    "attn": {
        "standard": "blockyard.standard.attention",
        "mla": "blockyard.latent.attention",
        "tva": "blockyard.vein.attention",
        "complex": "blockyard.complex.attention",
        "spectral": "blockyard.spectral.mixer",
    },
    "ffn": {
        "standard": "blockyard.standard.dense",
        "swiglu": "blockyard.standard.gated",
        "glu": "blockyard.standard.gated",
        "relu2": "blockyard.standard.dense",
        "vft": "blockyard.vein.ffn",
        "complex_swiglu": "blockyard.complex.ffn",
        "moe": "blockyard.moe.mixture",
    },
    "block": {"tva+vft": "blockyard.vein.block"},
}

# The FFN of a layer that names a complex mixer and no FFN: no real one fits.
COMPLEX_FFN = "complex_swiglu"

# The kinds of task: `train NAME`, `compare NAME`, `tune NAME`.
TASKS: dict[str, str] = {
    "lm": "blockyard.tasks.lm.task",
    "price": "blockyard.tasks.price.task",
    "signal": "blockyard.tasks.signal.task",
    "recall": "blockyard.tasks.recall.task",
    "classify": "blockyard.tasks.classify.task",
}

# Options that systems add to the group `train`, each a dataclass that costs no torch.
TRAINING: dict[str, str] = {
    "spectral": "blockyard.spectral.options:SpectralTraining",
    "vein": "blockyard.vein.options:VeinTraining",
}
