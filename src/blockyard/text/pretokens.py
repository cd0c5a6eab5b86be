"""Pre-tokens: the words BPE works inside (merges never cross them), as GPT-2 cuts them.

Source: the pattern of GPT-2's encoder.py. Python's re lacks its Unicode classes, so the tokenizers library cuts text
that has them; plain ASCII is cut by re with the same classes written out, several times faster.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from blockyard.errors import require
from blockyard.text.tokenizer import utf8

GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_ASCII_PATTERN = re.compile(
    r"""'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+""", re.ASCII
)

# Text is worked on in blocks about this long: short enough that a few foreign letters cost the fast path little.
BLOCK_CHARACTERS = 4096

# Characters whose class no version of Unicode disputes; elsewhere a cut is simply not looked for.
_LETTERS = r"A-Za-z\u3041-\u3094\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3"
_MARKS = r"!-/:-@\[-`{-~\u3001-\u3003\u3008-\u3011\uff01-\uff0f\uff1a-\uff20"
_SPACES = r" \t\n\r\f\v"
# Places where the text can be cut whatever comes before and after: both sides' pre-tokens stay as they were. No cut
# stands before a letter that follows a mark (it may be 's or 'll) or after a space (it belongs to the next word).
_SAFE_CUT = re.compile(
    rf"(?<=\S)[{_SPACES}]|(?<=[{_LETTERS}])[{_MARKS}0-9]|(?<=[0-9])[{_LETTERS}{_MARKS}]|(?<=[{_MARKS}])[0-9]"
)


def pretokens(text: str) -> list[str]:
    """Cut text into pre-tokens; joined they are the text."""
    if text.isascii():
        return _ASCII_PATTERN.findall(text)
    utf8(text)
    return [word for word, _ in _unicode_splitter().pre_tokenize_str(text)]


def settled_blocks(parts: Iterable[str | int]) -> Iterator[str | int]:
    """Regroup streamed text into blocks that can be cut into pre-tokens each on its own.

    Args:
        parts: stretches of text, in any number of strings, and special tokens (ids), which end a stretch.

    Yields:
        blocks of text and the special tokens in their places. Text is held back only until the next safe cut.
    """
    held: list[str] = []
    length = 0
    for part in parts:
        if isinstance(part, int):
            if held:
                yield "".join(held)
                held, length = [], 0
            yield part
            continue
        held.append(part)
        length += len(part)
        # What was held before has no cut beyond the first block, so only the new part and its seam can bring one.
        if length < BLOCK_CHARACTERS or not _SAFE_CUT.search(_seam(held)):
            continue
        text = "".join(held)
        start, search_from = 0, max(BLOCK_CHARACTERS, length - len(part))
        while cut := _SAFE_CUT.search(text, search_from):
            yield text[start : cut.start()]
            start = cut.start()
            search_from = start + BLOCK_CHARACTERS
        held, length = [text[start:]], len(text) - start
    if held:
        yield "".join(held)


def _seam(held: list[str]) -> str:
    """Return the newest string with the character before it."""
    return (held[-2][-1:] if len(held) > 1 else "") + held[-1]


@functools.cache
def _unicode_splitter() -> Any:
    require("tokenizers", extra="train")
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(GPT2_PATTERN), "isolated")
