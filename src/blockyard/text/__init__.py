"""Text in, token batches out: readers, tokenizers, a token cache, batches that depend on (seed, step) alone."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockyard.text.batches import TextData
    from blockyard.text.bpe import BPETokenizer
    from blockyard.text.config import TextDataConfig
    from blockyard.text.load import load_text
    from blockyard.text.saved import load_tokenizer
    from blockyard.text.tokenizer import ByteTokenizer, Tokenizer

# Read lazily: the command line needs TextDataConfig without paying for numpy.
_HOME = {
    "BPETokenizer": "bpe",
    "ByteTokenizer": "tokenizer",
    "TextData": "batches",
    "TextDataConfig": "config",
    "Tokenizer": "tokenizer",
    "load_text": "load",
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
        return getattr(importlib.import_module(f"blockyard.text.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
