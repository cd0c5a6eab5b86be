"""What text to train on and how to cut it into tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from blockyard.errors import InputError, at_least, one_of
from blockyard.files import cache_home, user_path

TextFormat = Literal["auto", "txt", "jsonl", "json", "parquet", "arrow", "tokens", "folder"]
Pack = Literal["stream", "documents"]
TokenType = Literal["auto", "uint8", "uint16", "uint32", "int32", "int64"]


@dataclass(frozen=True)
class TextDataConfig:
    """The text data of a run.

    Args:
        path: file, folder (one that Hugging Face's datasets saved, too) or pattern such as 'data/*.parquet'; none means
            the Python standard library's own source.
        format: how to read it; auto decides by folder or file suffix (.jsonl .ndjson .parquet .arrow, else txt; a .json
            file by its records; .bin .npy: tokens), behind one of .gz .bz2 .xz .zst too. Compressed files are known
            by their bytes.
        text_field: field (JSONL) or column (parquet, Arrow) that holds the text.
        token_dtype: of the ids in raw files of tokens; auto takes the width at which all are in the vocabulary.
        tokenizer: byte, bpe (trained on this text), a folder with a saved or GPT-2 style tokenizer, a tokenizer.json, a
            .tiktoken file, or one of tiktoken's names (gpt2, cl100k_base, …) whose file is on this machine.
        vocab_size: number of tokens of a bpe tokenizer, its 256 bytes and special tokens included.
        special_tokens: let a special token that is written in a document (<|endoftext|>) be one; else it is text.
        pack: what stands in a row: stream cuts rows anywhere out of all documents one behind the other; documents puts
            whole ones side by side, each read as if it were alone.
        val_fraction: share of the tokens, at the end of the text, kept for validation.
        cache_dir: where encoded tokens are kept; none means $BLOCKYARD_CACHE or ~/.cache/blockyard.
        max_bytes: read no more than this many UTF-8 bytes of text; none reads everything.

    Raises:
        InputError: when a value is out of range.
    """

    path: str | None = None
    format: TextFormat = "auto"
    text_field: str = "text"
    token_dtype: TokenType = "auto"
    tokenizer: str = "byte"
    vocab_size: int = 4096
    special_tokens: bool = False
    pack: Pack = "stream"
    val_fraction: float = 0.1
    cache_dir: str | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        one_of(get_args(TextFormat), **{"data.format": self.format})
        one_of(get_args(TokenType), **{"data.token_dtype": self.token_dtype})
        one_of(get_args(Pack), **{"data.pack": self.pack})
        if self.path == "":
            raise InputError("data.path is an empty string; give a file or folder, or leave it out")
        if not 0.0 < self.val_fraction < 1.0:
            raise InputError(f"data.val_fraction={self.val_fraction} must lie between 0 and 1, both excluded")
        if self.vocab_size < 257:
            # 256 bytes and the end-of-text token.
            raise InputError(f"data.vocab_size={self.vocab_size} is too small; bpe needs at least 257")
        at_least(1, **{"data.max_bytes": self.max_bytes})

    def cache_folder(self) -> Path:
        """Return the folder for encoded tokens and trained tokenizers (it need not exist yet)."""
        if self.cache_dir is not None:
            return user_path(self.cache_dir)
        return cache_home()
