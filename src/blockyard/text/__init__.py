"""Text in, token batches out: readers, tokenizers, a token cache, batches that depend on (seed, step) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.text.batches import TextData as TextData
    from blockyard.text.bpe import BPETokenizer as BPETokenizer
    from blockyard.text.config import TextDataConfig as TextDataConfig
    from blockyard.text.load import load_text as load_text
    from blockyard.text.saved import load_tokenizer as load_tokenizer
    from blockyard.text.tokenizer import ByteTokenizer as ByteTokenizer
    from blockyard.text.tokenizer import Tokenizer as Tokenizer
else:
    __all__ = exports(
        __name__,
        {
            "batches": "TextData",
            "bpe": "BPETokenizer",
            "config": "TextDataConfig",
            "load": "load_text",
            "saved": "load_tokenizer",
            "tokenizer": "ByteTokenizer Tokenizer",
        },
    )
