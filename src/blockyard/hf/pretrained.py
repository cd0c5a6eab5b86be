"""The other way: models of transformers' own families as models of the yard, which `blockyard.pretrained` reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from blockyard.pretrained.load import Pretrained


def load_pretrained(model: str | Path | nn.Module, *, tokenizer: str | Path | None = None) -> Pretrained:
    """Read a foreign language model, as `blockyard.pretrained.load_pretrained` does with its defaults.

    Args:
        model: a folder with config.json and safetensors, a .gguf file, or a model of transformers.
        tokenizer: a folder with a tokenizer.json, where the model's own has none.

    Raises:
        InputError: for what is not understood, damaged, or another function than transformers'.
    """
    from blockyard.pretrained.load import load_pretrained as read

    return read(model, tokenizer=tokenizer)
