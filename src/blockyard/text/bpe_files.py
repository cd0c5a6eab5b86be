"""BPE files in GPT-2's format: vocab.json, merges.txt, tokens written in printable characters; never a pickle.

A third file of our own names the special tokens; without it, vocabulary entries in the manner of <|endoftext|> that no
merge makes are taken for special tokens, as GPT-2's is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from blockyard.errors import InputError
from blockyard.files import write_atomically
from blockyard.text.tokenizer import (
    DESCRIPTION_FILE,
    described_tokenizer,
    is_token_map,
    read_json,
    utf8,
    write_json,
)

Merge = tuple[bytes, bytes]


def _printable_characters() -> list[str]:
    # GPT-2 keeps the bytes that print in Latin-1 and moves the others, in order, to U+0100 and on.
    kept = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    moved = iter(range(256))
    return [chr(byte if byte in kept else 256 + next(moved)) for byte in range(256)]


_CHARACTER = dict(enumerate(_printable_characters()))
_BYTE = {character: byte for byte, character in _CHARACTER.items()}


def printable_order() -> list[bytes]:
    """Return the 256 bytes in GPT-2's order: those that print first."""
    return [bytes([byte]) for byte in sorted(range(256), key=lambda byte: (ord(_CHARACTER[byte]) >= 256, byte))]


def printable(token: bytes) -> str:
    """Write a token's bytes in GPT-2's printable characters (a space is Ġ)."""
    return token.decode("latin-1").translate(_CHARACTER)


def from_printable(text: str) -> bytes:
    """Read GPT-2's printable characters.

    Raises:
        KeyError: for a character that stands for no byte.
    """
    return bytes([_BYTE[character] for character in text])


def write_bpe(
    folder: Path, vocab: Mapping[bytes, int], merges: Sequence[Merge], special_tokens: Mapping[str, int]
) -> None:
    """Write vocab.json, merges.txt and the description into a folder."""
    # A special token spelt like an ordinary one stays out of vocab.json, which has room for one of them.
    tokens = {**special_tokens, **{printable(token): number for token, number in vocab.items()}}
    lines = [f"{printable(left)} {printable(right)}\n" for left, right in merges]
    write_json(folder / "vocab.json", dict(sorted(tokens.items(), key=lambda item: item[1])))
    write_atomically(folder / "merges.txt", "#version: 0.2\n" + "".join(lines))
    # Written last: a folder with a description is complete.
    description = {"kind": "bpe", "special_tokens": dict(special_tokens), "merges": len(merges)}
    write_json(folder / DESCRIPTION_FILE, description)


def read_bpe(folder: Path) -> tuple[dict[bytes, int], list[Merge], dict[str, int]]:
    """Read vocabulary, merges and special tokens from a folder.

    Raises:
        InputError: when a file is missing, damaged, or does not fit the others.
    """
    merges = _read_merges(folder / "merges.txt")
    entries = read_json(folder / "vocab.json")
    if not is_token_map(entries):
        raise InputError(f"{folder / 'vocab.json'} is not a map from tokens to ids")
    special_tokens: dict[str, int] | None = None
    if (folder / DESCRIPTION_FILE).exists():
        description = read_json(folder / DESCRIPTION_FILE)
        kind, special_tokens = described_tokenizer(description)
        if kind != "bpe" or special_tokens is None or description.get("merges") != len(merges):
            raise InputError(f"{folder / DESCRIPTION_FILE} does not describe this folder's merges; save it again")
    if special_tokens is None:
        special_tokens = _specials_among(entries, merges, folder)
    vocab: dict[bytes, int] = {}
    for text, number in entries.items():
        if special_tokens.get(text) == number:
            continue
        try:
            vocab[from_printable(text)] = number
        except KeyError:
            raise InputError(f"{folder / 'vocab.json'}: {text!r} is not written in GPT-2's characters") from None
    return vocab, merges, special_tokens


def _read_merges(path: Path) -> list[Merge]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    merges: list[Merge] = []
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        try:
            left, right = line.split(" ")
            merges.append((from_printable(left), from_printable(right)))
        except (ValueError, KeyError):
            raise InputError(f"{path} line {number}: {line[:40]!r} is not two tokens with a space between") from None
    return merges


def _specials_among(entries: Mapping[str, int], merges: Sequence[Merge], folder: Path) -> dict[str, int]:
    made = {printable(left + right) for left, right in merges} | set(_BYTE)
    others = {text: number for text, number in entries.items() if text not in made}
    for text in others:
        if not (len(text) > 2 and (text[0], text[-1]) in {("<", ">"), ("[", "]")}):
            shown = json.dumps(text, ensure_ascii=False)
            raise InputError(f"{folder / 'vocab.json'} has {shown}, which merges.txt does not make; is it cut short?")
        utf8(text)
    return others
