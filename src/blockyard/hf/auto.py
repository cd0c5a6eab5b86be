"""Registration with the Auto classes of transformers."""

from __future__ import annotations

from blockyard.errors import require
from blockyard.hf.causal import BlockyardForCausalLM
from blockyard.hf.config import BlockyardConfig
from blockyard.hf.sequence import BlockyardForSequenceClassification


def register() -> None:
    """Let AutoConfig, AutoModelForCausalLM and AutoModelForSequenceClassification know the family; again does no harm.

    Raises:
        MissingExtra: when transformers is not installed.
    """
    transformers = require("transformers", extra="hf")
    transformers.AutoConfig.register(BlockyardConfig.model_type, BlockyardConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(BlockyardConfig, BlockyardForCausalLM, exist_ok=True)
    transformers.AutoModelForSequenceClassification.register(
        BlockyardConfig, BlockyardForSequenceClassification, exist_ok=True
    )
