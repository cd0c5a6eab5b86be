"""Models built from blocks: embed, blocks by layer pattern, norm, head."""

from blockyard.models.lm import LMConfig, LMOutput, TransformerLM

__all__ = ["LMConfig", "LMOutput", "TransformerLM"]
