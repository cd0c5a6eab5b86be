"""A tokenizer from the folder that it was saved into."""

from __future__ import annotations

from pathlib import Path

from blockyard.errors import InputError, suggest
from blockyard.files import user_path
from blockyard.text.tokenizer import DESCRIPTION_FILE, ByteTokenizer, Tokenizer, described_tokenizer, read_json


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a tokenizer that `save` wrote, a folder with a tokenizer.json, or a GPT-2 style one with vocab.json and
    merges.txt.

    Raises:
        InputError: when the folder holds no tokenizer or a damaged one.
    """
    where = user_path(folder)
    if not where.is_dir():
        near = suggest(str(folder), ("byte", "bpe"))
        raise InputError(f"tokenizer={str(folder)!r} is not byte, bpe or a folder with a saved tokenizer{near}")
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
