"""A tokenizer from the folder that it was saved into, from a file, or by its name."""

from __future__ import annotations

from pathlib import Path

from blockyard.errors import InputError, suggest
from blockyard.files import user_path, write_atomically
from blockyard.text.tokenizer import DESCRIPTION_FILE, ByteTokenizer, Tokenizer, described_tokenizer, read_json


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a tokenizer that `save` wrote, a folder with a tokenizer.json, or a GPT-2 style one with vocab.json and
    merges.txt; a tokenizer.json or .tiktoken file; or one of tiktoken's by its name.

    Raises:
        InputError: when there is no tokenizer of that name, or a damaged one.
    """
    where = user_path(folder)
    if not where.is_dir():
        return _from_file_or_name(where, str(folder))
    described = where / DESCRIPTION_FILE
    if described.exists():
        description = read_json(described)
        kind, specials = described_tokenizer(description)
        if kind not in ("byte", "bpe", "library") or specials is None:
            raise InputError(f"{described} is not a tokenizer description; save the tokenizer again")
        if kind == "library":
            from blockyard.text.library import LibraryTokenizer

            size = description.get("vocab_size")
            if type(size) is not int or not 0 < size < 2**31:
                raise InputError(f"{described} has vocab_size={size!r}; save the tokenizer again")
            return LibraryTokenizer.load(where, size)
        if kind == "byte":
            tokenizer = ByteTokenizer(sorted(specials, key=specials.__getitem__))
            if tokenizer.special_tokens != specials:
                raise InputError(f"{described}: special tokens of a byte tokenizer are numbered from 256 on")
            return tokenizer
    elif (where / "tokenizer.json").exists():
        from blockyard.text.library import LibraryTokenizer

        return LibraryTokenizer.load(where)
    elif not (where / "vocab.json").exists():
        raise InputError(
            f"tokenizer={str(folder)!r} has neither {DESCRIPTION_FILE} nor tokenizer.json nor vocab.json, merges.txt"
        )
    # Its library is only needed by those who use it.
    from blockyard.text.bpe import BPETokenizer

    return BPETokenizer.load(where)


def _from_file_or_name(path: Path, name: str) -> Tokenizer:
    from blockyard.text.library import TOKENIZER, LibraryTokenizer
    from blockyard.text.tiktokens import ENCODINGS, SUFFIX, tokenizer_json_from, tokenizer_json_of

    if path.is_file():
        if path.name == TOKENIZER:
            # What stands beside it says how it is used.
            return LibraryTokenizer.load(path.parent)
        if path.suffix == SUFFIX:
            return LibraryTokenizer({TOKENIZER: tokenizer_json_from(path)})
        if path.suffix == ".json":
            try:
                return LibraryTokenizer({TOKENIZER: path.read_text(encoding="utf-8")})
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
        raise InputError(f"tokenizer={name!r} is neither a tokenizer.json nor a {SUFFIX} file")
    if name in ENCODINGS:
        return LibraryTokenizer({TOKENIZER: tokenizer_json_of(name)})
    near = suggest(name, ("byte", "bpe", *ENCODINGS))
    known = f"byte, bpe, a folder with a saved tokenizer, a tokenizer.json, a {SUFFIX} file"
    raise InputError(f"tokenizer={name!r} is not {known} or one of {', '.join(ENCODINGS)}{near}")


def copy_tokenizer(run: Path, folder: Path) -> None:
    """Write the files of a run's tokenizer that other programs read into a folder, unless they are there: those of
    transformers, or a BPE's vocab.json and merges.txt."""
    from blockyard.text.library import BESIDE, TOKENIZER

    for name in (TOKENIZER, *BESIDE, "vocab.json", "merges.txt"):
        kept = run / "tokenizer" / name
        if kept.is_file() and not (folder / name).exists():
            write_atomically(folder / name, kept.read_bytes())
