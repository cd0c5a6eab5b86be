"""Encoded text on disk: one memory-mapped file of token ids per (text, tokenizer), made once.

A file is a 4096-byte JSON header, then the ids (uint16, or uint32 for vocabularies beyond 65536). It is written
under another name and renamed when complete, so two processes that encode the same text do not disturb each other.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.files import parse_json, sweep, writing
from blockyard.text.progress import Counted
from blockyard.text.readers import Pieces
from blockyard.text.tokenizer import END_OF_TEXT, Tokenizer

HEADER_BYTES = 4096
# Text up to this size is kept after the first reading; larger text is read again for each pass.
KEEP_BYTES = 128 << 20
_CHECK_BYTES = 16 << 20


@dataclass(frozen=True)
class ScannedText:
    """Text whose length and identity are known.

    Attributes:
        pieces: call it to read the text from its beginning; None stands between documents.
        sha256: of the UTF-8 text with a byte 255 between documents; for a single document, its plain sha256.
        n_bytes: UTF-8 bytes.
        n_documents: number of documents.
        spells_separator: whether a document has <|endoftext|> written in it.
    """

    pieces: Callable[[], Pieces]
    sha256: str
    n_bytes: int
    n_documents: int
    spells_separator: bool = False

    def documents(self, progress: Counted | None = None) -> Iterator[Iterator[str]]:
        """Read the text once more, document by document; each is to be read to its end before the next.

        Args:
            progress: called with (bytes read, bytes in all).

        Raises:
            InputError: when the text changed since it was scanned.
        """
        pieces, done, more = self.pieces(), 0, True

        def document() -> Iterator[str]:
            nonlocal done, more
            for piece in pieces:
                if piece is None:
                    return
                yield piece
                done += len(piece) if piece.isascii() else len(piece.encode())
                if progress is not None:
                    progress(done, self.n_bytes)
            more = False

        while more:
            yield document()
        if done != self.n_bytes:
            raise InputError(f"data.path changed while it was read ({self.n_bytes} bytes, then {done}); try again")


def scan(read: Callable[[], Pieces], progress: Counted | None = None) -> ScannedText:
    """Read text once for its sha256 and length, keeping it when it is small.

    Args:
        read: begins to read the text.
        progress: called with (bytes read, 0: how many there are is found here).

    Raises:
        InputError: when there is no text.
    """
    digest = hashlib.sha256()
    kept: list[str | None] | None = []
    n_bytes, n_documents, spells, before = 0, 1, False, ""
    for piece in read():
        if piece is None:
            # 255 never occurs in UTF-8, so two ways of cutting the same text into documents differ.
            digest.update(b"\xff")
            n_documents, before = n_documents + 1, ""
        else:
            raw = piece.encode()
            # A piece may end within it.
            spells = spells or END_OF_TEXT in piece or END_OF_TEXT in before + piece[: len(END_OF_TEXT)]
            before = (before + piece[-len(END_OF_TEXT) :])[-len(END_OF_TEXT) :]
            digest.update(raw)
            n_bytes += len(raw)
            if progress is not None:
                progress(n_bytes, 0)
        if kept is not None:
            kept.append(piece)
            if n_bytes > KEEP_BYTES:
                kept = None
    if n_bytes == 0:
        raise InputError("data.path has no text in it; give a file or folder with text")
    pieces = read if kept is None else kept.__iter__
    return ScannedText(pieces, digest.hexdigest(), n_bytes, n_documents, spells)


def encoded(
    text: ScannedText, tokenizer: Tokenizer, folder: Path, progress: Counted | None = None, *, special: bool = False
) -> np.ndarray:
    """Return all token ids of a text, memory-mapped from the cache folder, encoding what is not there.

    Documents are separated by the tokenizer's separator.

    Args:
        folder: the cache folder; made if missing. A damaged file in it is replaced.
        progress: called now and then while encoding, with bytes of text.
        special: whether special tokens that a document spells are such.

    Raises:
        InputError: when the folder cannot be written, or the text changed while it was read.
    """
    # Files of the first kind held special tokens wherever a document spelt one.
    kind = 1 if special else 2
    key = hashlib.sha256(f"tokens {kind} {text.sha256} {tokenizer.fingerprint()}".encode()).hexdigest()[:40]
    about = {"text_sha256": text.sha256, "tokenizer": tokenizer.name}
    return stored(
        key,
        folder,
        token_dtype(tokenizer.vocab_size),
        lambda: token_arrays(text, tokenizer, progress, special=special),
        about,
    )


def stored(
    key: str, folder: Path, dtype: np.dtype[Any], arrays: Callable[[], Iterable[np.ndarray]], about: Mapping[str, str]
) -> np.ndarray:
    """Return the ids that are kept under a key, memory-mapped, writing what is not there.

    Args:
        key: what they are made of, as a hash.
        folder: the cache folder; made if missing. A damaged file in it is replaced.
        dtype: of the ids.
        arrays: gives the ids in arrays of this type; called only when they are not there.
        about: what else the file says of them.

    Raises:
        InputError: when the folder cannot be written.
    """
    path = folder / "tokens" / f"{key}.tokens"
    tokens = _read(path, key)
    if tokens is None:
        try:
            _write(path, key, dtype, arrays(), about)
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            raise InputError(
                f"data.cache_dir={str(folder)!r} cannot be written: {error.__cause__.strerror or error.__cause__}; "
                "set data.cache_dir or BLOCKYARD_CACHE to a folder with space that you may write"
            ) from error.__cause__
        tokens = _read(path, key)
        if tokens is None:
            raise InputError(f"data.cache_dir={str(folder)!r} does not keep what is written; use another folder")
    return tokens


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest of uint16 and uint32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def byte_lengths(tokenizer: Tokenizer, *, separator: int, specials: bool = True) -> np.ndarray:
    """Return the bytes that each token stands for: int64 [vocab_size].

    Args:
        tokenizer: the vocabulary.
        separator: what the separator of documents counts as.
        specials: whether special tokens stand for the text that spells them, and not for nothing.
    """
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.int64)
    if not specials:
        lengths[[token for token in tokenizer.special_tokens.values() if token < len(lengths)]] = 0
    if specials or separates(tokenizer):
        lengths[tokenizer.separator_id] = separator
    return lengths


def separates(tokenizer: Tokenizer) -> bool:
    """Return whether the separator of a tokenizer is a token of its own: one that has none takes an ordinary token."""
    return tokenizer.name == "byte" or tokenizer.separator_id in tokenizer.special_tokens.values()


def token_arrays(
    text: ScannedText, tokenizer: Tokenizer, progress: Counted | None = None, *, special: bool = False
) -> Iterator[np.ndarray]:
    """Yield the ids of a text in arrays, with the separator between documents."""
    dtype = token_dtype(tokenizer.vocab_size)
    for number, document in enumerate(text.documents(progress)):
        if number:
            yield np.asarray([tokenizer.separator_id], dtype=dtype)
        for block in tokenizer.encode_blocks(document, special=special):
            yield _as_array(block, dtype)


def _as_array(block: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    if isinstance(block, bytes):
        return np.frombuffer(block, dtype=np.uint8).astype(dtype)
    return np.asarray(block, dtype=dtype)


def _write(path: Path, key: str, dtype: np.dtype[Any], arrays: Iterable[np.ndarray], about: Mapping[str, str]) -> None:
    sweep(path.parent)
    check, count = 0, 0
    with writing(path) as file:
        file.write(b" " * HEADER_BYTES)
        for array in arrays:
            raw = array.tobytes()
            check = zlib.crc32(raw, check)
            count += len(array)
            file.write(raw)
        header = {"key": key, "dtype": dtype.name, "tokens": count, "crc32": check, **about}
        file.seek(0)
        file.write(json.dumps(header).encode())


def _read(path: Path, key: str) -> np.ndarray | None:
    """Return the ids of a cache file, or None when it is missing or not exactly what was written."""
    try:
        with open(path, "rb") as file:
            header = parse_json(file.read(HEADER_BYTES))
            if header["key"] != key:
                return None
            dtype, count = np.dtype(header["dtype"]), int(header["tokens"])
            if path.stat().st_size != HEADER_BYTES + count * dtype.itemsize:
                return None
            check = 0
            # Read, not by the map: what is looked at there counts as the process's memory from then on.
            while part := file.read(_CHECK_BYTES):
                check = zlib.crc32(part, check)
        if check != header["crc32"]:
            return None
        return np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(count,))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
