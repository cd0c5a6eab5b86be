"""Whether our model computes what transformers' does: the logits of both for the same random ids."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from blockyard.errors import InputError, require
from blockyard.machine.memory import available_bytes
from blockyard.nn.parity import evaluating
from blockyard.pretrained.sources import Source, without_bars

ROWS, LENGTH = 2, 48
# Of the largest logit: float32 sums in other orders are some 1e-6 apart after dozens of layers (measured: 1.1e-4 of
# 44 for 30 layers of SmolLM2). Half precision rounds at 8e-3 and 1e-3 in every layer.
TOLERANCES = {torch.float32: 1.2e-5, torch.float64: 1e-9, torch.bfloat16: 0.08, torch.float16: 0.02}


@dataclass(frozen=True)
class Parity:
    """Two models' logits for the same ids.

    Args:
        largest: the largest difference.
        size: the largest logit.
        tokens: how many ids were read.
    """

    largest: float
    size: float
    tokens: int

    def __str__(self) -> str:
        differ = f"differ from transformers' by {self.largest:.2g} at most, of ± {self.size:.3g}"
        return f"logits of {self.tokens} random ids {differ}"


def compare_with(source: Source, ours: Any) -> Parity | None:
    """Compare the logits; None where transformers is not installed, or both models do not fit into memory.

    Raises:
        InputError: when they differ by more than rounding.
    """
    # Another copy of the model: asked for only where there is room.
    original = source.module
    if original is None:
        if importlib.util.find_spec("transformers") is None:
            return None
        needed = 2 * sum(p.numel() * p.element_size() for p in ours.parameters())
        there = available_bytes()
        if there is not None and needed > there:
            return None
        original = _original(source, next(ours.parameters()).dtype)
    return measured(original, ours, source.where)


def _original(source: Source, dtype: torch.dtype) -> nn.Module:
    transformers = require("transformers", extra="hf")
    assert source.folder is not None
    try:
        with without_bars(transformers):
            return transformers.AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"transformers cannot read {source.where}, so nothing tells whether ours is right: {first}"
        ) from error


def measured(original: Any, ours: Any, where: str) -> Parity:
    """Ask both for the logits of random ids, rows of equal length.

    Raises:
        InputError: when they differ by more than rounding, or are not finite.
    """
    vocabulary, context = ours.config.vocab_size, ours.config.context
    # Random ids use every row of the embedding alike, and no text is needed.
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (ROWS, min(LENGTH, context)), generator=generator)
    mine = next(ours.parameters()).dtype
    with evaluating(original, ours):
        expected = original(ids.to(next(original.parameters()).device)).logits.float().cpu()
        actual = ours(ids).logits.float()
    if expected.shape != actual.shape or not bool(torch.isfinite(expected).all()):
        raise InputError(f"{where}: the original gives no finite logits {tuple(actual.shape)} for random ids")
    theirs = next(original.parameters()).dtype
    parity = Parity(float((actual - expected).abs().max()), float(expected.abs().max()), ids.numel())
    tolerance = max(TOLERANCES.get(dtype, 0.08) for dtype in (mine, theirs))
    if not parity.largest <= tolerance * max(parity.size, 1.0):
        raise InputError(f"{where} computes another function than what was read of it: {parity}")
    return parity
