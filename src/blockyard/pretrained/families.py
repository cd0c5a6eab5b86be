"""The families that are read, by their `model_type`, and those that are refused with a reason of their own."""

from __future__ import annotations

from blockyard.pretrained.decoders import DECODERS
from blockyard.pretrained.mixtures import MIXTURES
from blockyard.pretrained.parts import Family

FAMILIES: dict[str, Family] = {kind: family for family in (*DECODERS, *MIXTURES) for kind in family.types}

_GEMMA = "its capped scores, norms on both sides of a sublayer and scaled embedding have no counterpart here"
REFUSED: dict[str, str] = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma4"), _GEMMA),
    **dict.fromkeys(("t5", "bart", "mt5", "bert", "roberta"), "it is no causal language model"),
    **dict.fromkeys(("mamba", "mamba2", "rwkv"), "it has no attention, and its mixer is none of the yard's"),
    "gpt_oss": "its attention sinks are learnt logits, and its experts are clamped",
}
