"""Options of labelled text: the files, which of their columns hold text and label, and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from blockyard.errors import InputError, one_of
from blockyard.text.config import TextDataConfig

LabelledFormat = Literal["auto", "csv", "tsv", "jsonl", "parquet", "arrow"]


@dataclass(frozen=True)
class LabelledConfig:
    """The labelled text of a run: one document and its label in each row of a CSV or JSONL file.

    Args:
        path: CSV (with a header), JSONL, parquet or Arrow file, a folder that Hugging Face's datasets saved, or a
            pattern of parquet or Arrow files; none takes the standard library's source, labelled by package.
        val_path: file of validation rows; none keeps a share of every class.
        format: how to read them; auto decides by suffix (.jsonl .ndjson, .json with an object a line, .tsv, .parquet,
            .arrow, else csv), text behind one of .gz .bz2 .xz .zst too. A csv file's separator is told by its header.
        text_field: column or field (JSONL) that holds the text.
        label_field: column or field that holds the label; numbers that a dataset has names for become the names.
        tokenizer: byte, bpe (trained on the training rows), a folder with a saved or GPT-2 style tokenizer, a
            tokenizer.json, a .tiktoken file, or one of tiktoken's names (gpt2, cl100k_base, …) whose file is on this
            machine.
        vocab_size: number of tokens of a bpe tokenizer, its 256 bytes and special tokens included.
        val_fraction: share of each class kept for validation when there is no val_path.
        cache_dir: where trained tokenizers are kept; none means $BLOCKYARD_CACHE or ~/.cache/blockyard.

    Raises:
        InputError: when a value is out of range.
    """

    path: str | None = None
    val_path: str | None = None
    format: LabelledFormat = "auto"
    text_field: str = "text"
    label_field: str = "label"
    tokenizer: str = "byte"
    vocab_size: int = 4096
    val_fraction: float = 0.1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        one_of(get_args(LabelledFormat), **{"data.format": self.format})
        if self.text_field == self.label_field:
            raise InputError(f"data.text_field and data.label_field are both {self.text_field!r}")
        if self.val_path is not None and self.path is None:
            raise InputError("data.val_path without data.path: give the training file too")
        # The ranges of the options that both have are checked in one place.
        self.as_text()

    def as_text(self) -> TextDataConfig:
        """Return the options of the tokenizer, as those of plain text."""
        return TextDataConfig(
            path=self.path,
            tokenizer=self.tokenizer,
            vocab_size=self.vocab_size,
            val_fraction=self.val_fraction,
            cache_dir=self.cache_dir,
        )

    def cache_folder(self) -> Path:
        """Return the folder for trained tokenizers (it need not exist yet)."""
        return self.as_text().cache_folder()
