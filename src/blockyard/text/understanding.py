"""What a text on disk is understood as before anything is trained on it: files, documents, encodings, omissions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockyard.errors import InputError
from blockyard.text.config import TextDataConfig
from blockyard.text.listing import COMPRESSED_SUFFIXES, LeftOut, listing_of, notes_on, token_files_of
from blockyard.text.load import pieces_of
from blockyard.text.readers import format_of
from blockyard.text.streams import encoding_of
from blockyard.text.tokens import scan

_WORDS = {
    "txt": "as it stands, a document each",
    "jsonl": "a document a line",
    "json": "a document an object",
    "parquet": "a document a row",
    "arrow": "a document a row",
}


@dataclass(frozen=True)
class TextUnderstanding:
    """How a text is read.

    Args:
        source: the path, or what the text is when there is none.
        formats: number of files by format: txt, jsonl, json, parquet, arrow.
        compressed: how many of them are compressed.
        encodings: number of files by encoding, where it is not UTF-8.
        documents: with text in them.
        n_bytes: of UTF-8 text.
        sha256: as the run's environment will say.
        spells_separator: whether a document has the separator of documents written in it.
        left_out: number of files by suffix that are not read.
        left_out_bytes: how large these are together.
        notes: what a reader should know, one line each.
    """

    source: str
    formats: Mapping[str, int]
    compressed: int
    encodings: Mapping[str, int]
    documents: int
    n_bytes: int
    sha256: str
    spells_separator: bool
    left_out: Mapping[str, int]
    left_out_bytes: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """Return the same for people."""
        many = f"{self.documents:,} document{'s' if self.documents > 1 else ''}"
        found = [f"{self.source}: {many}, {self.n_bytes:,} bytes of text"]
        for kind, count in self.formats.items():
            found.append(f"  {count:,} {kind} file{'s' if count > 1 else ''}: {_WORDS[kind]}")
        if self.compressed:
            found.append(f"  {self.compressed:,} of them compressed")
        found += [f"  {count:,} in {name}" for name, count in self.encodings.items()]
        return found + [f"  note: {note}" for note in self.notes]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class TokensUnderstanding:
    """What files of tokens hold by themselves; which text that is, their tokenizer knows.

    Args:
        source: the path.
        files: how many there are.
        raw: whether one of them does not say how wide its ids are.
        readings: `dtype`, number of `tokens` and `largest` id, for each width that they may have.
    """

    source: str
    files: int
    raw: bool
    readings: tuple[Mapping[str, Any], ...]

    def lines(self) -> list[str]:
        """Return the same for people."""
        found = [f"{self.source}: {self.files:,} file{'s' if self.files > 1 else ''} of tokens"]
        found += [f"  as {r['dtype']}: {r['tokens']:,} tokens, the largest {r['largest']:,}" for r in self.readings]
        if self.raw and len(self.readings) > 1:
            found.append("  note: the width is decided by the tokenizer's vocabulary, or by data.token_dtype")
        return [*found, "  note: name the tokenizer that made them with data.tokenizer to train on them"]

    def as_dict(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return {**vars(self), "readings": [dict(reading) for reading in self.readings]}


def understand_text(config: TextDataConfig) -> TextUnderstanding | TokensUnderstanding:
    """Read a text through and say what it is.

    Raises:
        InputError: for whatever a training on it would refuse of the text itself.
    """
    tokens = token_files_of(config)
    if tokens is not None:
        from blockyard.text.token_files import describe_token_files

        found = describe_token_files(tokens)
        return TokensUnderstanding(str(config.path), found["files"], found["raw"], tuple(found["readings"]))
    left_out = LeftOut()
    text = scan(lambda: pieces_of(config, left_out))
    listing = listing_of(config)
    files = listing.files
    formats = Counter(_format(path, config, alone=len(files) == 1) for path in files)
    encodings = Counter(name for path in files if (name := _encoding(path)) is not None)
    return TextUnderstanding(
        "Python's standard library" if config.path is None else config.path,
        formats,
        sum(path.suffix.lower() in COMPRESSED_SUFFIXES for path in files),
        encodings,
        text.n_documents,
        text.n_bytes,
        text.sha256,
        text.spells_separator,
        listing.left_out,
        listing.left_out_bytes,
        notes_on(config, listing, text.spells_separator, left_out),
    )


def _format(path: Path, config: TextDataConfig, *, alone: bool) -> str:
    if config.format not in ("auto", "folder"):
        return config.format
    return format_of(path, config.text_field, alone=alone and config.format == "auto")


def _encoding(path: Path) -> str | None:
    try:
        return encoding_of(path)
    except (OSError, EOFError, InputError):
        return None
