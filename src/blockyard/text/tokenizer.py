"""What every tokenizer does, and the simplest one: a token is a byte."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically

DESCRIPTION_FILE = "blockyard_tokenizer.json"
END_OF_TEXT = "<|endoftext|>"


@runtime_checkable
class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        name: "byte" or "bpe".
        vocab_size: number of ids; ids lie in [0, vocab_size).
        special_tokens: special text -> id. Text that spells one is ordinary text, unless the caller says `special`:
            what a user or a document writes must not end a document.
        separator_id: the id set between two documents.
    """

    name: str
    vocab_size: int
    special_tokens: dict[str, int]
    separator_id: int

    def encode(self, text: str, *, special: bool = False) -> list[int]: ...

    def encode_iterable(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[int]: ...

    def encode_blocks(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[Sequence[int]]: ...

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str: ...

    def token_bytes(self, token: int) -> bytes: ...

    def fingerprint(self) -> str: ...

    def save(self, folder: str | Path) -> None: ...


class ByteTokenizer:
    """One token per UTF-8 byte; special tokens, if any, follow from id 256.

    Documents are separated by byte 0, which no text file contains, so the vocabulary stays at 256.

    Args:
        special_tokens: texts kept whole, each with its own id, in this order.
    """

    name = "byte"
    separator_id = 0

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        self.special_tokens = number_specials(special_tokens, first=256)
        self.vocab_size = 256 + len(self.special_tokens)
        self._splitter = SpecialSplitter(self.special_tokens)
        self._bytes = {byte: bytes((byte,)) for byte in range(256)}
        self._bytes |= {token: text.encode() for text, token in self.special_tokens.items()}

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; `special` keeps special tokens that it spells whole."""
        return list(chain.from_iterable(self.encode_blocks([text], special=special)))

    def encode_iterable(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[int]:
        """Yield the ids of the joined chunks, holding back no more than a special token's length."""
        for block in self.encode_blocks(chunks, special=special):
            yield from block

    def encode_blocks(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[Sequence[int]]:
        """Yield the ids of the joined chunks in blocks (bytes are sequences of ids)."""
        if not (special and self.special_tokens):
            for chunk in chunks:
                yield utf8(chunk)
            return
        for part in self._splitter.stream(chunks):
            yield (part,) if isinstance(part, int) else utf8(part)

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD unless `errors` says otherwise."""
        return decoded(self._bytes, ids, errors)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for."""
        return bytes_of(self._bytes, token)

    def fingerprint(self) -> str:
        """Return a sha256 that is equal for tokenizers that encode equally."""
        return fingerprint_of(self._description())

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer into a folder (made if missing)."""
        write_json(Path(folder) / DESCRIPTION_FILE, self._description())

    def _description(self) -> dict[str, Any]:
        return {"kind": "byte", "special_tokens": self.special_tokens}


class SpecialSplitter:
    """Splits text at special tokens: leftmost first, and of several at one place the longest."""

    def __init__(self, specials: dict[str, int]) -> None:
        self._specials = specials
        longest_first = sorted(specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if specials else None
        self._prefixes = {text[:end] for text in specials for end in range(1, len(text))}
        self._reach = max(map(len, specials), default=1) - 1

    def split(self, text: str) -> Iterator[str | int]:
        """Yield ordinary stretches of a whole text as strings and special tokens as their ids."""
        position = 0
        if self._pattern is not None:
            for match in self._pattern.finditer(text):
                if match.start() > position:
                    yield text[position : match.start()]
                yield self._specials[match.group()]
                position = match.end()
        if position < len(text):
            yield text[position:]

    def stream(self, chunks: Iterable[str]) -> Iterator[str | int]:
        """Yield the parts of the joined chunks; an ordinary stretch may come in several strings."""
        held = ""
        for chunk in chunks:
            text = held + chunk
            parts, held = self.settled(text)
            yield from parts
        yield from self.split(held)

    def settled(self, text: str) -> tuple[list[str | int], str]:
        """Return the parts no continuation can change, and the rest: what may begin a special token."""
        parts: list[str | int] = []
        position, open_at = 0, self._open_at(text, 0)
        for match in self._pattern.finditer(text) if self._pattern is not None else ():
            # A match is final unless a longer special token may still grow at its place or before it.
            if match.start() >= open_at:
                break
            if match.start() > position:
                parts.append(text[position : match.start()])
            parts.append(self._specials[match.group()])
            position = match.end()
            if position > open_at:
                open_at = self._open_at(text, position)
        if open_at > position:
            parts.append(text[position:open_at])
        return parts, text[open_at:]

    def _open_at(self, text: str, position: int) -> int:
        """Return the first place from `position` on where the text ends inside a possible special token."""
        for start in range(max(position, len(text) - self._reach), len(text)):
            if text[start:] in self._prefixes:
                return start
        return len(text)


def number_specials(special_tokens: Sequence[str], first: int) -> dict[str, int]:
    """Number special tokens from `first` on.

    Raises:
        InputError: for an empty or repeated special token.
    """
    numbered: dict[str, int] = {}
    for text in special_tokens:
        if not isinstance(text, str) or not text:
            raise InputError(f"special_tokens has {text!r}; a special token has one character or more")
        if text in numbered:
            raise InputError(f"special_tokens has {text!r} twice; give each once")
        utf8(text)
        numbered[text] = first + len(numbered)
    return numbered


def utf8(text: str) -> bytes:
    """Encode text, refusing lone surrogates with a clear line."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the text is not UTF-8: lone surrogate U+{ord(text[error.start]):04X} in it") from error


def bytes_of(table: dict[int, bytes], token: int) -> bytes:
    """Return the bytes of a token, or say that there is no such token."""
    try:
        return table[int(token)]
    except KeyError:
        raise InputError(f"token {token} is outside the vocabulary; ids lie in 0..{len(table) - 1}") from None


def decoded(table: dict[int, bytes], ids: Iterable[int], errors: str = "replace") -> str:
    """Join the bytes of tokens into text."""
    return b"".join([bytes_of(table, token) for token in ids]).decode("utf-8", errors)


def described_tokenizer(description: Any) -> tuple[str | None, dict[str, int] | None]:
    """Return the kind and the special tokens that a description file names, None for what is not as it should be."""
    if not isinstance(description, dict):
        return None, None
    specials = description.get("special_tokens")
    return description.get("kind"), specials if is_token_map(specials) else None


def is_token_map(value: Any) -> bool:
    """Return whether a value read from JSON maps texts to ids."""
    return isinstance(value, dict) and all(type(token) is int and token >= 0 for token in value.values())


def fingerprint_of(description: Any) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON, with one clear line when it is missing or damaged."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
