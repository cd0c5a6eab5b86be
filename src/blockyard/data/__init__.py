"""Text in, token batches out: readers, tokenizers, a token cache, batches that depend on (seed, step) alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockyard.data.batches import TextData
    from blockyard.data.bpe import BPETokenizer
    from blockyard.data.config import TextDataConfig
    from blockyard.data.saved import load_tokenizer
    from blockyard.data.text import load_text
    from blockyard.data.tokenizer import ByteTokenizer, Tokenizer

# Read lazily: the command line needs TextDataConfig without paying for numpy.
_HOME = {
    "BPETokenizer": "bpe",
    "ByteTokenizer": "tokenizer",
    "TextData": "batches",
    "TextDataConfig": "config",
    "Tokenizer": "tokenizer",
    "load_text": "text",
    "load_tokenizer": "saved",
}

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "TextData",
    "TextDataConfig",
    "Tokenizer",
    "load_text",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"blockyard.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
