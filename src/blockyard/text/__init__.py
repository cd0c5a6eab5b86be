"""Text in, token batches out: readers, tokenizers, a token cache, batches that depend on (seed, step) alone.

    files -> pieces of text -> token ids, encoded once into a memory-mapped file -> batch(seed, step)

A batch is a pure function of seed and step, so there is nothing to save for an exact resume, and any number of ranks
sees the same. Validation is the end of the text and does not depend on the seed.

Files, in reading order:

    config.py         TextDataConfig: which text, how it is cut into tokens
    readers.py        text files, records and folders as a stream of pieces: listing.py (which files of a folder or
                      pattern; datasets.py: of one that datasets saved), streams.py (compressed.py, encodings),
                      records.py (JSON Lines, JSON arrays), tables.py (parquet, Arrow)
    corpus.py         the default text: the source of Python's own standard library
    tokenizer.py      what every tokenizer does; bytes as tokens
    bpe.py            byte-level BPE; pretokens.py cuts its words, bpe_training.py learns merges, bpe_files.py reads and
                      writes GPT-2's format
    library.py        a foreign tokenizer by its tokenizer.json, and how its model's conversations are written
    tiktokens.py      tiktoken's files, as a tokenizer.json
    saved.py          a tokenizer from the folder it was saved into, a file, or its name
    tokens.py         encoded text on disk; token_files.py: text that comes as tokens
    load.py           load_text: from a configuration to tokens; understanding.py: what a text is taken for;
                      progress.py: what is shown meanwhile
    batches.py        TextData: the two parts, and the batches cut from them
    packed.py         PackedText: batches whose rows hold documents; packing.py: which ones stand together

The tasks lm and classify read text through it; use `load_text` for a loop of your own.

Options: docs/training.md; what is read how: docs/security.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.text.batches import TextData as TextData
    from blockyard.text.bpe import BPETokenizer as BPETokenizer
    from blockyard.text.config import TextDataConfig as TextDataConfig
    from blockyard.text.library import LibraryTokenizer as LibraryTokenizer
    from blockyard.text.load import load_text as load_text
    from blockyard.text.packed import PackedText as PackedText
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
            "library": "LibraryTokenizer",
            "load": "load_text",
            "packed": "PackedText",
            "saved": "load_tokenizer",
            "tokenizer": "ByteTokenizer Tokenizer",
        },
    )
