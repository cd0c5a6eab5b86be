"""Text that somebody else cut into tokens: files of ids, whose tokenizer is to be named.

Read are raw ids (.bin, as nanoGPT writes them), llm.c's .bin, litdata's chunks (litgpt) and NumPy's .npy. Raw ids do
not say how wide they are: where more than one width gives ids of the vocabulary alone, the user decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.text.config import TextDataConfig
from blockyard.text.progress import Counted
from blockyard.text.tokenizer import Tokenizer
from blockyard.text.tokens import byte_lengths, separates, stored, token_dtype

# Ids that are looked at at a time.
BLOCK = 1 << 20
# llm.c's header: 256 int32, the magic number, a version and the number of tokens first.
_LLM_C = {20240520: "uint16", 20240801: "uint32"}
_LLM_C_BYTES = 1024
# By position among torch's types in litdata, of those that hold ids.
_LITDATA = {11: "uint8", 13: "int16", 14: "int16", 15: "int32", 16: "int32", 17: "int64", 18: "int64"}


@dataclass(frozen=True)
class Layout:
    """Where a file holds ids.

    Args:
        path: the file.
        dtype: of the ids, as the file says; None where it does not.
        offset: bytes before the first.
        size: bytes of ids.
    """

    path: Path
    dtype: str | None
    offset: int
    size: int

    def ids(self, dtype: str) -> np.ndarray:
        """Return the ids, memory-mapped."""
        kind = np.dtype(dtype).newbyteorder("<") if self.dtype is None else np.dtype(dtype)
        try:
            return np.memmap(self.path, kind, "r", self.offset, (self.size // kind.itemsize,))
        except (OSError, ValueError) as error:
            raise InputError(f"{_said(self.path)} cannot be read: {error}") from error


@dataclass(frozen=True)
class FiledTokens:
    """The ids of some files, one file behind the other.

    Attributes:
        tokens: all of them, memory-mapped.
        sha256: of the ids as little-endian uint32, whatever they are kept as.
        n_bytes: of the text that they stand for, without separators and other special tokens.
        n_documents: stretches between separators.
        notes: what was decided in reading them.
    """

    tokens: np.ndarray
    sha256: str
    n_bytes: int
    n_documents: int
    notes: tuple[str, ...]


def read_token_files(
    files: Sequence[Path], config: TextDataConfig, tokenizer: Tokenizer, progress: Counted | None = None
) -> FiledTokens:
    """Read files of ids and check every id against the vocabulary.

    Raises:
        InputError: for a file that holds no ids, an id outside the vocabulary, a width that is to be said, or options
            that are for text.
    """
    for name, given in (("max_bytes", config.max_bytes is not None), ("special_tokens", config.special_tokens)):
        if given:
            raise InputError(f"data.{name} is for text, and {_said(files[0])} holds tokens; leave it out")
    layouts = [layout_of(path) for path in files]
    dtype, notes = _dtype(layouts, config, tokenizer)
    if tokenizer.name == "byte" and dtype != "uint8":
        raise InputError(
            f"{_said(files[0])} holds tokens as {dtype}, which are not bytes; name the tokenizer that made them with "
            "data.tokenizer (a folder or tokenizer.json, a .tiktoken file, or a name such as gpt2)"
        )
    parts = [layout.ids(layout.dtype or dtype) for layout in layouts]
    counts, sha256, n_documents = _looked_through(parts, layouts, tokenizer, progress)
    _check_made(counts, tokenizer, files[0])
    lengths = byte_lengths(tokenizer, separator=0, specials=False)
    if len(parts) == 1 and parts[0].dtype.kind == "u" and parts[0].dtype.itemsize <= 4:
        tokens = parts[0]
    else:
        # One array, as batches are cut from it, and no wider than it must be.
        kind = token_dtype(tokenizer.vocab_size)
        key = hashlib.sha256(f"token files 1 {sha256} {kind}".encode()).hexdigest()[:40]
        tokens = stored(key, config.cache_folder(), kind, lambda: _narrowed(parts, kind), {"tokens_sha256": sha256})
    if len(files) > 1:
        notes.append(
            f"{len(files)} files of tokens are one text, in the order of their names; its end is for validation"
        )
    return FiledTokens(tokens, sha256, int(counts @ lengths), n_documents, tuple(notes))


def layout_of(path: Path) -> Layout:
    """Find out where a file holds ids, and of what width if it says so.

    Raises:
        InputError: for a file that cannot be read, is empty, or holds no ids in one row.
    """
    try:
        size = path.stat().st_size
        if not size:
            raise InputError(f"{_said(path)} is empty; give a file with tokens")
        if path.suffix.lower() == ".npy":
            return _npy(path)
        with path.open("rb") as file:
            first = file.read(12)
        if first.startswith(b"LITPKDS"):
            raise InputError(f"{_said(path)} is lit-gpt's old packed format; write its tokens as .npy, or by litdata")
        words = np.frombuffer(first[: len(first) // 4 * 4], "<i4")
        if len(words) == 3 and int(words[0]) in _LLM_C:
            dtype, count = _LLM_C[int(words[0])], int(words[2])
            if size != _LLM_C_BYTES + count * np.dtype(dtype).itemsize:
                raise InputError(f"{_said(path)} says that it holds {count:,} tokens as {dtype}, but is cut short")
            return Layout(path, dtype, _LLM_C_BYTES, size - _LLM_C_BYTES)
        return _litdata(path, size) or Layout(path, None, 0, size)
    except OSError as error:
        raise InputError(f"{_said(path)} cannot be read: {error.strerror or error}") from error


def _npy(path: Path) -> Layout:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise InputError(f"{_said(path)} is not a readable .npy file: {str(error).splitlines()[0]}") from error
    if not isinstance(array, np.memmap) or array.ndim != 1 or array.dtype.kind not in "iu":
        shape = list(getattr(array, "shape", []))
        raise InputError(
            f"{_said(path)} holds {getattr(array, 'dtype', '?')} {shape}; expected whole numbers in one row"
        )
    if not array.size:
        raise InputError(f"{_said(path)} is empty; give a file with tokens")
    return Layout(path, array.dtype.str, int(array.offset), array.nbytes)


def _litdata(path: Path, size: int) -> Layout | None:
    """Return the layout of a chunk that litdata wrote for litgpt: how many rows, where each begins, then their ids."""
    index = path.parent / "index.json"
    try:
        config = parse_json(index.read_text(encoding="utf-8"))["config"]
        formats, packed = config["data_format"], config.get("compression")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    rows = int(np.fromfile(path, "<u4", 1)[0])
    begins = np.fromfile(path, "<u4", rows + 1, offset=4) if (rows + 2) * 4 <= size else np.zeros(0)
    code = str(formats[0]).rpartition(":") if isinstance(formats, list) and len(formats) == 1 else ("", "", "")
    dtype = _LITDATA.get(int(code[2])) if code[0] == "no_header_tensor" and code[2].isdigit() else None
    if packed or dtype is None or len(begins) != rows + 1 or begins[0] != (rows + 2) * 4 or begins[-1] != size:
        raise InputError(
            f"{_said(path)} is no chunk of plain tokens, as litdata's {index.name} beside it should describe"
        )
    return Layout(path, dtype, int(begins[0]), size - int(begins[0]))


def _dtype(layouts: Sequence[Layout], config: TextDataConfig, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """Return the type of the ids: as the files say, else as the user does, else the only one that fits."""
    said = {np.dtype(layout.dtype).name for layout in layouts if layout.dtype is not None}
    raw = [layout for layout in layouts if layout.dtype is None]
    asked = None if config.token_dtype == "auto" else config.token_dtype
    if asked is not None and said - {asked}:
        raise InputError(
            f"{_said(layouts[0].path)} holds {min(said)}, not {asked} as data.token_dtype says; leave it out"
        )
    if not raw:
        # The widest, where files differ: it is checked against bytes, and told.
        return max(said, key=lambda name: np.dtype(name).itemsize), []
    if asked is not None:
        for layout in raw:
            if layout.size % np.dtype(asked).itemsize:
                raise InputError(
                    f"{_said(layout.path)} has {layout.size:,} bytes, which are no whole number of {asked}"
                )
        return asked, []
    found = fitting(raw, tokenizer.vocab_size)
    where = _said(raw[0].path)
    if not found:
        raise InputError(
            f"{where} holds ids beyond the {tokenizer.vocab_size:,} tokens of the tokenizer ({tokenizer.name}), as "
            "uint16 or uint32; name the tokenizer that made them with data.tokenizer, or set data.token_dtype (or "
            "data.format=txt, if it is text)"
        )
    if len(found) > 1:
        raise InputError(f"{where} could be ids of uint16 or uint32; set data.token_dtype to the one it was written as")
    return found[0], [f"ids are read as {found[0]}, the only width at which all of them are in the vocabulary"]


def fitting(layouts: Sequence[Layout], vocab_size: int) -> list[str]:
    """Return the widths, of uint16 and uint32, at which raw files hold ids of a vocabulary alone."""
    # A larger vocabulary is never written as uint16, whatever else such a reading would give.
    kinds = [kind for kind in ("uint16", "uint32") if vocab_size <= 1 << 16 or kind == "uint32"]
    return [kind for kind in kinds if all(largest(layout, kind, vocab_size) < vocab_size for layout in layouts)]


def largest(layout: Layout, dtype: str, enough: int) -> int:
    """Return the largest id that a file holds when read so, or one of `enough` or more; 2**32 where it cannot be."""
    if layout.size % np.dtype(dtype).itemsize:
        return 1 << 32
    most = 0
    for block in _blocks(layout.ids(dtype)):
        most = max(most, int(block.max()))
        if most >= enough:
            break
    return most


def _blocks(ids: np.ndarray) -> Iterator[np.ndarray]:
    plain = ids.view(np.ndarray)
    for start in range(0, len(plain), BLOCK):
        yield plain[start : start + BLOCK]


def _check_made(counts: np.ndarray, tokenizer: Tokenizer, path: Path) -> None:
    """Refuse ids that are numbers of the vocabulary, but of no token: it has gaps, and rows that fill it up."""
    apart = set(tokenizer.special_tokens.values())
    unmade = next(
        (i for i in map(int, np.flatnonzero(counts)) if i not in apart and not tokenizer.token_bytes(i)), None
    )
    if unmade is not None:
        raise InputError(
            f"{_said(path)} has token {unmade}, which the tokenizer ({tokenizer.name}) has a number for, but never "
            "makes; name the one that made it with data.tokenizer"
        )


def _narrowed(parts: Sequence[np.ndarray], kind: np.dtype[Any]) -> Iterator[np.ndarray]:
    for part in parts:
        for block in _blocks(part):
            yield block.astype(kind)


def _looked_through(
    parts: Sequence[np.ndarray], layouts: Sequence[Layout], tokenizer: Tokenizer, progress: Counted | None
) -> tuple[np.ndarray, str, int]:
    """Return how often each id comes, the sha256 of all, and the number of documents."""
    # An ordinary token that serves as the separator of our own texts separates nothing in those of others.
    size, separator = tokenizer.vocab_size, tokenizer.separator_id if separates(tokenizer) else -1
    digest, counts = hashlib.sha256(), np.zeros(size, np.int64)
    documents, before, done = 0, True, 0
    whole = sum(part.nbytes for part in parts)
    for part, layout in zip(parts, layouts):
        place = 0
        for block in _blocks(part):
            if int(block.max()) >= size or int(block.min()) < 0:
                wrong = int(np.argmax((block >= size) | (block < 0)))
                raise InputError(
                    f"{_said(layout.path)} has token {int(block[wrong])} at place {place + wrong:,}, outside the "
                    f"{size:,} of the tokenizer ({tokenizer.name}); name the one that made it with data.tokenizer"
                )
            counts += np.bincount(block.astype(np.int64), minlength=size)
            digest.update(block.astype("<u4").tobytes())
            ends = block == separator
            starts = ~ends & np.concatenate([[before], ends[:-1]])
            documents, before = documents + int(starts.sum()), bool(ends[-1])
            place, done = place + len(block), done + block.nbytes
            if progress is not None:
                progress(done, whole)
    return counts, digest.hexdigest(), max(documents, 1)


def _said(path: Path) -> str:
    return f"data.path={str(path)!r}"


def describe_token_files(files: Sequence[Path]) -> dict[str, Any]:
    """Return what files of ids hold by themselves, without their tokenizer: widths, numbers of tokens, largest ids."""
    layouts = [layout_of(path) for path in files]
    readings = []
    said = {np.dtype(layout.dtype).name for layout in layouts if layout.dtype is not None}
    raw = any(layout.dtype is None for layout in layouts)
    for kind in ("uint16", "uint32") if raw else (" and ".join(sorted(said)),):
        if any(layout.dtype is None and layout.size % np.dtype(kind).itemsize for layout in layouts):
            continue
        kinds = [layout.dtype or kind for layout in layouts]
        readings.append(
            {
                "dtype": kind,
                "tokens": sum(layout.size // np.dtype(k).itemsize for layout, k in zip(layouts, kinds)),
                "largest": max(largest(layout, k, 1 << 62) for layout, k in zip(layouts, kinds)),
            }
        )
    return {"files": len(files), "raw": raw, "readings": readings}
