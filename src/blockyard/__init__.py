"""A yard of interchangeable Transformer blocks: one protocol, honest comparisons.

Importing the package is cheap: names are resolved when they are first used (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "InputError": "blockyard.errors",
    "LMConfig": "blockyard.models.lm",
    "LayerSpec": "blockyard.registry.pattern",
    "MultiheadAttention": "blockyard.multihead.attention",
    "TransformerLM": "blockyard.models.lm",
    "attention_class": "blockyard.registry.register",
    "ffn_class": "blockyard.registry.register",
    "get_attention": "blockyard.registry.register",
    "get_ffn": "blockyard.registry.register",
    "list_attention": "blockyard.registry.register",
    "list_ffn": "blockyard.registry.register",
    "register_attn": "blockyard.registry.register",
    "register_block": "blockyard.registry.register",
    "register_ffn": "blockyard.registry.register",
    "Traits": "blockyard.registry.register",
}
__all__ = ["__version__", *_EXPORTS]

if TYPE_CHECKING:
    from blockyard.errors import InputError as InputError
    from blockyard.models.lm import LMConfig as LMConfig
    from blockyard.models.lm import TransformerLM as TransformerLM
    from blockyard.multihead.attention import MultiheadAttention as MultiheadAttention
    from blockyard.registry.pattern import LayerSpec as LayerSpec
    from blockyard.registry.register import Traits as Traits
    from blockyard.registry.register import attention_class as attention_class
    from blockyard.registry.register import ffn_class as ffn_class
    from blockyard.registry.register import get_attention as get_attention
    from blockyard.registry.register import get_ffn as get_ffn
    from blockyard.registry.register import list_attention as list_attention
    from blockyard.registry.register import list_ffn as list_ffn
    from blockyard.registry.register import register_attn as register_attn
    from blockyard.registry.register import register_block as register_block
    from blockyard.registry.register import register_ffn as register_ffn


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'blockyard' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
