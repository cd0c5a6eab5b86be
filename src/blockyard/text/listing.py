"""Which files of a folder are read as text, and which are left out and why."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import user_path
from blockyard.text.config import TextDataConfig
from blockyard.text.datasets import data_files
from blockyard.text.tokenizer import END_OF_TEXT

JSONL_SUFFIXES = frozenset({".jsonl", ".ndjson"})
PARQUET_SUFFIXES = frozenset({".parquet"})
ARROW_SUFFIXES = frozenset({".arrow", ".feather"})
TOKEN_SUFFIXES = frozenset({".bin", ".npy"})
# What a name may end with behind that of its content; the content is told by its bytes.
COMPRESSED_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".zst"})
_TEXT = (
    ".txt .text .md .rst .tex .html .htm .xml .csv .tsv .log .json .yaml .yml .toml .cfg .ini "
    ".py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .jsx .ts .tsx .rb .pl .lua .r .jl "
    ".hs .ml .scala .swift .sh .bash .sql .css"
)
TEXT_SUFFIXES = frozenset(_TEXT.split())
READ_SUFFIXES = TEXT_SUFFIXES | JSONL_SUFFIXES | PARQUET_SUFFIXES | ARROW_SUFFIXES


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Args:
        files: those that are read, in order.
        left_out: how many of each suffix ("" for none) are not: hidden ones are not counted.
        left_out_bytes: how large these are together.
    """

    files: tuple[Path, ...]
    left_out: Mapping[str, int]
    left_out_bytes: int = 0

    def note(self) -> str:
        """Return what was left out, in a line; "" when nothing was."""
        if not self.left_out:
            return ""
        many = sum(self.left_out.values())
        kinds = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        told = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in kinds[:6])
        more = f", and {len(kinds) - 6} more kinds" if len(kinds) > 6 else ""
        files = "file is" if many == 1 else "files are"
        size = f"{self.left_out_bytes:,} bytes"
        return f"{many} {files} left out ({size}), as they are not text by their names: {told}{more}"


@dataclass
class LeftOut:
    """What a reading left out of the files that it read.

    Args:
        empty: documents without a character.
        cut: whether text goes on behind the limit.
    """

    empty: int = 0
    cut: bool = False


def list_folder(folder: Path) -> Listing:
    """Return the files of a folder and all below it; of a dataset saved by Hugging Face's datasets, its rows' files.

    Raises:
        InputError: when a folder in it cannot be read, or holds a dataset whose split is to be named.
    """
    found: list[tuple[str, Path]] = []
    left_out: Counter[str] = Counter()
    left_out_bytes = 0
    unreadable: list[OSError] = []
    for base, folders, files in os.walk(folder, onerror=unreadable.append):
        # Hidden folders hold repositories' and editors' own files, not the user's text.
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        if (rows := data_files(Path(base), files)) is not None:
            # A number before each: they are in the dataset's order, whatever their names.
            inside = Path(base).relative_to(folder).as_posix()
            found += [(f"{inside}/{number:09d}", Path(base, name)) for number, name in enumerate(rows)]
            continue
        for name in files:
            path = Path(base, name)
            if name.startswith(".") or not path.is_file():
                continue
            if content_suffix(path) in READ_SUFFIXES:
                found.append((path.relative_to(folder).as_posix(), path))
            else:
                left_out["".join(path.suffixes[-2:]).lower() if _compressed(path) else path.suffix.lower()] += 1
                left_out_bytes += path.stat().st_size
    if unreadable:
        error = unreadable[0]
        raise InputError(f"data.path={str(folder)!r}: {error.filename} cannot be read: {error.strerror}")
    # Sorted by name, not as the file system lists them: the same folder gives the same text everywhere.
    found.sort()
    return Listing(tuple(path for _, path in found), dict(left_out), left_out_bytes)


def is_pattern(path: Path) -> bool:
    """Return whether a path is a pattern such as `data/*.parquet`, and not a file that is called so."""
    return glob.has_magic(str(path)) and not path.exists()


def list_pattern(pattern: Path) -> Listing:
    """Return the files that a pattern matches, by name; all of them are read, as their names were asked for.

    Raises:
        InputError: when it matches none, or a folder.
    """
    found = sorted(Path(name) for name in glob.glob(str(pattern), recursive=True))
    for path in found:
        if path.is_dir():
            raise InputError(
                f"data.path={str(pattern)!r} matches the folder {str(path)!r}; end it with the files' suffix, such as "
                "*.parquet, or give the folder itself"
            )
    if not found:
        raise InputError(f"data.path={str(pattern)!r} matches no file")
    return Listing(tuple(found), {})


def content_suffix(path: Path) -> str:
    """Return the suffix that names a file's content: of `a.jsonl.gz` it is `.jsonl`."""
    return (Path(path.stem) if _compressed(path) else path).suffix.lower()


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in COMPRESSED_SUFFIXES


def listing_of(config: TextDataConfig) -> Listing:
    """Return the files that are read, and what is left out; none for the default text."""
    if config.path is None:
        return Listing((), {})
    where = user_path(config.path, "data.path")
    if is_pattern(where):
        return list_pattern(where)
    return list_folder(where) if where.is_dir() else Listing((where,), {})


def token_files_of(config: TextDataConfig) -> tuple[Path, ...] | None:
    """Return the files of a configuration that hold tokens in the place of text; None where it is text.

    In a folder with any text beside them they are left out like pictures, unless data.format=tokens.

    Raises:
        InputError: for a path that is not there, or holds no files of tokens though data.format says so.
    """
    if config.path is None or config.format not in ("auto", "tokens"):
        return None
    where = user_path(config.path, "data.path")
    asked = config.format == "tokens"
    if is_pattern(where):
        found = list_pattern(where).files
        return found if asked or all(path.suffix.lower() in TOKEN_SUFFIXES for path in found) else None
    if not where.is_dir():
        if asked and not where.is_file():
            raise InputError(f"data.path={config.path!r} does not exist; give a file of tokens, a folder or a pattern")
        tokens = where.is_file() and where.suffix.lower() in TOKEN_SUFFIXES
        return (where,) if asked or tokens else None
    found = tuple(
        path
        for path in sorted(where.rglob("*"))
        if path.suffix.lower() in TOKEN_SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(where).parts)
    )
    if asked and not found:
        raise InputError(f"data.path={config.path!r} has no files of tokens in it; .bin and .npy are read")
    # litdata describes its chunks in index.json, which is no text of the user's.
    asked = asked or (bool(found) and not any(path.name != "index.json" for path in list_folder(where).files))
    return found if asked else None


def notes_on(
    config: TextDataConfig, listing: Listing, spells_separator: bool, left_out: LeftOut | None = None
) -> tuple[str, ...]:
    """Return what whoever trains on a text should know of how it is read, one line each."""
    found = [listing.note()]
    if left_out is not None and left_out.empty:
        several = left_out.empty > 1
        found.append(f"{left_out.empty:,} empty document{'s are' if several else ' is'} left out")
    if left_out is not None and left_out.cut:
        found.append(f"the text goes on behind data.max_bytes={config.max_bytes:,}; the rest is left out")
    if spells_separator:
        does = "ends it there, as data.special_tokens asks" if config.special_tokens else "is text like any other there"
        found.append(f"{END_OF_TEXT} is written in a document and {does}")
    return tuple(note for note in found if note)
