"""Which files of a folder are read as text, and which are left out and why."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blockyard.errors import InputError
from blockyard.text.config import TextDataConfig
from blockyard.text.tokenizer import END_OF_TEXT

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
# What a name may end with behind that of its content; the content is told by its bytes.
COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})
_TEXT = (
    ".txt .text .md .rst .tex .html .htm .xml .csv .tsv .log .json .yaml .yml .toml .cfg .ini "
    ".py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .jsx .ts .tsx .rb .pl .lua .r .jl "
    ".hs .ml .scala .swift .sh .bash .sql .css"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Args:
        files: those that are read, in order.
        left_out: how many of each suffix ("" for none) are not: hidden ones are not counted.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, int]

    def note(self) -> str:
        """Return what was left out, in a line; "" when nothing was."""
        if not self.left_out:
            return ""
        many = sum(self.left_out.values())
        kinds = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in kinds[:6])
        more = f", and {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
        files = "file is" if many == 1 else "files are"
        return f"{many} {files} left out, as they are not text by their names: {told}{more}"


def list_folder(folder: Path) -> Listing:
    """Return the files of a folder and all below it.

    Raises:
        InputError: when a folder in it cannot be read.
    """
    found: list[tuple[str, Path]] = []
    left_out: Counter[str] = Counter()
    unreadable: list[OSError] = []
    for base, folders, files in os.walk(folder, onerror=unreadable.append):
        # Hidden folders hold repositories' and editors' own files, not the user's text.
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        for name in files:
            path = Path(base, name)
            if name.startswith(".") or not path.is_file():
                continue
            if content_suffix(path) in TEXT_SUFFIXES | JSONL_SUFFIXES | PARQUET_SUFFIXES:
                found.append((path.relative_to(folder).as_posix(), path))
            else:
                left_out["".join(path.suffixes[-2:]).lower() if _compressed(path) else path.suffix.lower()] += 1
    if unreadable:
        error = unreadable[0]
        raise InputError(f"data.path={str(folder)!r}: {error.filename} cannot be read: {error.strerror}")
    # Sorted by name, not as the file system lists them: the same folder gives the same text everywhere.
    found.sort()
    return Listing(tuple(path for _, path in found), dict(left_out))


def content_suffix(path: Path) -> str:
    """Return the suffix that names a file's content: of `a.jsonl.gz` it is `.jsonl`."""
    return (Path(path.stem) if _compressed(path) else path).suffix.lower()


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED_SUFFIXES


def listing_of(config: TextDataConfig) -> Listing:
    """Return the files that are read, and what is left out; none for the default text."""
    if config.path is None:
        return Listing((), {})
    where = Path(config.path).expanduser()
    return list_folder(where) if where.is_dir() else Listing((where,), {})


def notes_on(config: TextDataConfig, listing: Listing, spells_separator: bool) -> tuple[str, ...]:
    """Return what whoever trains on a text should know of how it is read, one line each."""
    found = [listing.note()]
    if spells_separator:
        does = "ends it there, as data.special_tokens asks" if config.special_tokens else "is text like any other there"
        found.append(f"{END_OF_TEXT} is written in a document and {does}")
    return tuple(note for note in found if note)
