"""Tokenizers as tiktoken keeps them: a file of tokens in the order of their ranks; read by us, into a tokenizer.json.

A file holds no more than ranks. How text is cut into words, and the special tokens, belong to the encoding's name, so
only encodings that are known here are read. Nothing is downloaded: a name is looked for where tiktoken keeps its files.

tiktoken merges the pair whose *joined* token ranks first, the tokenizers library the pair that is listed first. They
are the same where a token is made by one pair only: the last two parts that the lower ranks leave of it. That is so in
vocabularies learnt by BPE, and it is looked after here: a token that is not left as two parts is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from blockyard.errors import InputError
from blockyard.text.bpe_files import from_printable, printable, printable_order
from blockyard.text.tokenizer import END_OF_TEXT

SUFFIX = ".tiktoken"
# How GPT-2, and how GPT-4 cuts text into words.
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_ENDS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_ENDS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_STORE = "https://openaipublic.blob.core.windows.net"


@dataclass(frozen=True)
class Encoding:
    """What belongs to the name of an encoding.

    Args:
        pattern: how text is cut into words.
        tokens: how many tokens its file has.
        special_tokens: text -> id.
        url: where its file comes from, by which tiktoken names its copy.
    """

    pattern: str
    tokens: int
    special_tokens: Mapping[str, int] = field(default_factory=dict)
    url: str = ""


_R50K = Encoding(_GPT2, 50256, {END_OF_TEXT: 50256}, f"{_STORE}/encodings/r50k_base.tiktoken")
_FIM = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260}
ENCODINGS: dict[str, Encoding] = {
    "gpt2": _R50K,
    "r50k_base": _R50K,
    "p50k_base": Encoding(_GPT2, 50280, {END_OF_TEXT: 50256}, f"{_STORE}/encodings/p50k_base.tiktoken"),
    "cl100k_base": Encoding(
        _GPT4,
        100256,
        {END_OF_TEXT: 100257, **_FIM, "<|endofprompt|>": 100276},
        f"{_STORE}/encodings/cl100k_base.tiktoken",
    ),
    "o200k_base": Encoding(
        _GPT4O, 199998, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}, f"{_STORE}/encodings/o200k_base.tiktoken"
    ),
}
# tiktoken builds this one from GPT-2's own merges.
_GPT2_MERGES = f"{_STORE}/gpt-2/encodings/main/vocab.bpe"


def tokenizer_json_of(name: str) -> str:
    """Return the tokenizer.json of an encoding whose file tiktoken has on this machine.

    Raises:
        InputError: when it has none, naming where the file comes from.
    """
    encoding = ENCODINGS[name]
    copy = _kept(encoding.url)
    if copy is not None:
        return tokenizer_json(read_ranks(copy), encoding, str(copy))
    merges = _kept(_GPT2_MERGES) if name == "gpt2" else None
    if merges is not None:
        return tokenizer_json(_ranks_of_merges(merges), encoding, str(merges))
    raise InputError(
        f"tokenizer={name!r}: its file is not on this machine, and none is downloaded; get {encoding.url} and give its "
        f"path, {Path(encoding.url).name}"
    )


def tokenizer_json_from(path: Path) -> str:
    """Return the tokenizer.json of a .tiktoken file, whose name says which encoding it is.

    Raises:
        InputError: for another name, or a file that is damaged.
    """
    encoding = ENCODINGS.get(path.stem)
    if encoding is None:
        raise InputError(
            f"tokenizer={str(path)!r}: the file does not say how text is cut into words; its name should be that of "
            f"its encoding ({', '.join(ENCODINGS)}), or give a tokenizer.json"
        )
    return tokenizer_json(read_ranks(path), encoding, str(path))


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return token -> rank of a .tiktoken file: a token in base64 and its rank on each line.

    Raises:
        InputError: for a file that cannot be read or is none.
    """
    ranks: dict[bytes, int] = {}
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            text, rank = line.split()
            token = base64.b64decode(text, validate=True)
            if token in ranks or not token:
                raise ValueError
            ranks[token] = int(rank)
        except (ValueError, binascii.Error):
            raise InputError(f"{path} line {number} is not a new token in base64 and its rank") from None
    return ranks


def tokenizer_json(ranks: Mapping[bytes, int], encoding: Encoding, source: str) -> str:
    """Return a tokenizer.json that encodes as tiktoken does.

    Args:
        ranks: token -> rank.
        encoding: what belongs to its name.
        source: where the ranks come from, for the errors.

    Raises:
        InputError: for ranks that are not those of the encoding, or tokens that no two others make.
    """
    numbers = set(ranks.values())
    specials = encoding.special_tokens
    if len(ranks) != encoding.tokens or len(numbers) != len(ranks) or numbers & set(specials.values()):
        raise InputError(f"{source} has {len(ranks):,} tokens; its encoding has {encoding.tokens:,}: is it cut short?")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise InputError(f"{source} lacks a byte among its tokens")
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(ranks, token, rank)
            if len(parts) != 2:
                raise InputError(f"{source}: token {rank} is not made of two others; give a tokenizer.json")
            merges.append([printable(part) for part in parts])
    vocabulary = {printable(token): rank for token, rank in ranks.items()}
    clash = next((text for text in specials if text in vocabulary), None)
    if clash is not None:
        raise InputError(f"{source} has {clash!r} among its tokens, which its encoding has as a special one")
    split = {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [{"id": number, "content": text, **flags} for text, number in specials.items()],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "decoder": level,
            # A word that is a token is one, whatever merges would make of it: so does tiktoken.
            "model": {"type": "BPE", "ignore_merges": True, "vocab": {**vocabulary, **specials}, "merges": merges},
        },
        ensure_ascii=False,
    )


def _parts(ranks: Mapping[bytes, int], token: bytes, below: int) -> list[bytes]:
    """Return what merging by ranks below one leaves of a token's bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(left + right, below) for left, right in pairwise(parts)]
        best = min(range(len(found)), key=found.__getitem__)
        if found[best] >= below:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _ranks_of_merges(path: Path) -> dict[bytes, int]:
    """Return token -> rank of GPT-2's merges: the bytes in its order, then what each merge makes."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[1:]
        made = [
            from_printable(left) + from_printable(right) for left, right in (line.split() for line in lines if line)
        ]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    return {token: rank for rank, token in enumerate([*printable_order(), *made])}


def _kept(url: str) -> Path | None:
    """Return tiktoken's own copy of a file, which it names by the hash of the address."""
    given = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    folder = Path(tempfile.gettempdir(), "data-gym-cache") if given is None else Path(given)
    path = folder / hashlib.sha1(url.encode()).hexdigest()
    return path if given != "" and path.is_file() else None
