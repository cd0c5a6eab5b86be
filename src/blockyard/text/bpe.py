"""Byte-level BPE: any text, cut into pre-tokens, each merged from bytes by learnt rules; files as GPT-2's.

Merging is done by the tokenizers library, once for each different pre-token; a memo does the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from blockyard.errors import InputError, require
from blockyard.files import user_path
from blockyard.text.bpe_files import printable, read_bpe, write_bpe
from blockyard.text.bpe_training import count_words, learn_merges
from blockyard.text.pretokens import pretokens, settled_blocks
from blockyard.text.progress import Progress
from blockyard.text.tokenizer import (
    END_OF_TEXT,
    SpecialSplitter,
    bytes_of,
    decoded,
    fingerprint_of,
    number_specials,
    utf8,
)

if TYPE_CHECKING:
    from blockyard.text.tokens import ScannedText

Merge = tuple[bytes, bytes]


class BPETokenizer:
    """Byte-level BPE with GPT-2's pre-tokens.

    Where the caller asks for special tokens, they are found first and kept whole (of several at one place the longest);
    no merge crosses a pre-token.

    Args:
        vocab: token bytes -> id; all 256 single bytes and the product of every merge.
        merges: the merges, first learnt first.
        special_tokens: special text -> id.

    Raises:
        InputError: when ids have gaps, a byte is missing, or a merge's part or product is not in the vocabulary.
    """

    name = "bpe"

    def __init__(self, vocab: Mapping[bytes, int], merges: Sequence[Merge], special_tokens: Mapping[str, int]) -> None:
        self.vocab = dict(vocab)
        self.merges = list(merges)
        self.special_tokens = dict(special_tokens)
        self._bytes = {token: text for text, token in self.vocab.items()}
        self._bytes |= {token: utf8(text) for text, token in self.special_tokens.items()}
        self.vocab_size = len(self._bytes)
        self._check()
        self.separator_id = self.special_tokens.get(
            END_OF_TEXT, next(iter(self.special_tokens.values()), self.vocab[b"\0"])
        )
        self._splitter = SpecialSplitter(self.special_tokens)
        self._memo = _Memo(self)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        special_tokens: Sequence[str] = (END_OF_TEXT,),
        progress: Callable[[int, int], None] | None = None,
    ) -> BPETokenizer:
        """Learn a tokenizer from texts, from their 300,000 most frequent words if they have more different ones.

        Ids: the 256 bytes first (a byte's id is its value), then the merges, then the special tokens.

        Args:
            texts: the documents; merges never reach from one into the next.
            vocab_size: tokens in all; the tokenizer has fewer when the text runs out of pairs.
            special_tokens: texts kept whole, and left out of the learning.
            progress: called with (tokens so far, tokens wanted).
        """
        return cls._trained(((text,) for text in texts), vocab_size, special_tokens, progress)

    @classmethod
    def _trained(
        cls,
        documents: Iterable[Iterable[str]],
        vocab_size: int,
        special_tokens: Sequence[str],
        progress: Callable[[int, int], None] | None,
    ) -> BPETokenizer:
        n_specials = len(number_specials(special_tokens, first=0))
        if vocab_size < 256 + n_specials:
            raise InputError(
                f"vocab_size={vocab_size} is too small; 256 bytes and {n_specials} special tokens need "
                f"{256 + n_specials}"
            )
        splitter = SpecialSplitter(dict.fromkeys(special_tokens, 0))
        words = (
            pretokens(block)
            for document in documents
            for block in settled_blocks(splitter.stream(document))
            if isinstance(block, str)
        )
        vocab, merges = learn_merges(count_words(words), vocab_size - n_specials, progress)
        return cls(vocab, merges, number_specials(special_tokens, first=len(vocab)))

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of a text; `special` keeps special tokens that it spells whole."""
        return list(chain.from_iterable(self.encode_blocks((text,), special=special)))

    def encode_iterable(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[int]:
        """Yield the ids of the joined chunks, however they are cut, holding back only what may still change."""
        for block in self.encode_blocks(chunks, special=special):
            yield from block

    def encode_blocks(self, chunks: Iterable[str], *, special: bool = False) -> Iterator[Sequence[int]]:
        """Yield the ids of the joined chunks in blocks."""
        known = self._memo.__getitem__
        for block in settled_blocks(self._splitter.stream(chunks) if special else chunks):
            if isinstance(block, int):
                yield (block,)
            else:
                yield list(chain.from_iterable(map(known, pretokens(block))))

    def decode(self, ids: Iterable[int], errors: str = "replace") -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD unless `errors` says otherwise."""
        return decoded(self._bytes, ids, errors)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes a token stands for."""
        return bytes_of(self._bytes, token)

    def fingerprint(self) -> str:
        """Return a sha256 that is equal for tokenizers that encode equally."""
        vocab = {printable(token): number for token, number in self.vocab.items()}
        merges = [[printable(left), printable(right)] for left, right in self.merges]
        return fingerprint_of({"vocab": vocab, "merges": merges, "special_tokens": self.special_tokens})

    def save(self, folder: str | Path) -> None:
        """Write vocab.json and merges.txt (GPT-2's format) and a description of the special tokens into a folder."""
        write_bpe(Path(folder), self.vocab, self.merges, self.special_tokens)

    @classmethod
    def load(cls, folder: str | Path) -> BPETokenizer:
        """Read a folder that `save` wrote, or one with GPT-2's vocab.json and merges.txt alone.

        Raises:
            InputError: when a file is missing, damaged, or does not fit the others.
        """
        vocab, merges, special_tokens = read_bpe(user_path(folder))
        return cls(vocab, merges, special_tokens)

    def _check(self) -> None:
        if sorted(self._bytes) != list(range(len(self.vocab) + len(self.special_tokens))):
            raise InputError("the tokenizer's ids must be 0, 1, 2, ... without gaps or repeats")
        for byte in range(256):
            if bytes((byte,)) not in self.vocab:
                raise InputError(f"the tokenizer's vocabulary lacks byte {byte}; a byte-level vocabulary has all 256")
        for number, (left, right) in enumerate(self.merges, 1):
            for token in (left, right, left + right):
                if token not in self.vocab:
                    raise InputError(f"merge {number} of the tokenizer: {printable(token)!r} is not in the vocabulary")

    def merge_word(self, word: str) -> tuple[int, ...]:
        """Return the ids of one pre-token, merged anew."""
        return tuple(token.id for token in self._memo.model.tokenize(printable(utf8(word))))


class _Memo(dict[str, tuple[int, ...]]):
    """Pre-token -> ids, filled on demand; the same words make up most of any text."""

    MOST_WORDS = 1 << 17
    LONGEST_WORD = 64

    def __init__(self, tokenizer: BPETokenizer) -> None:
        require("tokenizers", extra="train")
        from tokenizers import models

        self._tokenizer = tokenizer
        vocab = {printable(token): number for token, number in tokenizer.vocab.items()}
        merges = [(printable(left), printable(right)) for left, right in tokenizer.merges]
        # Made here, and not by the first text, so that what is wrong with it shows before anything is read, and the
        # first request of a server takes no longer than the next.
        self.model = models.BPE(vocab, merges)

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._tokenizer.merge_word(word)
        if len(word) <= self.LONGEST_WORD:
            if len(self) >= self.MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


def trained_once(text: ScannedText, vocab_size: int, folder: Path, progress: Progress | None = None) -> BPETokenizer:
    """Return the tokenizer trained on a text, from the cache folder when it was trained before.

    Raises:
        InputError: when the folder cannot be written.
    """
    key = hashlib.sha256(f"bpe 1 {text.sha256} {vocab_size}".encode()).hexdigest()[:40]
    saved = folder / "tokenizers" / key
    try:
        return BPETokenizer.load(saved)
    except InputError:
        pass  # Not there, or damaged: train it.
    tokenizer = BPETokenizer._trained(
        text.documents(None if progress is None else partial(progress, "counting words")),
        vocab_size,
        (END_OF_TEXT,),
        None if progress is None else partial(progress, "learning merges"),
    )
    tokenizer.save(saved)
    return tokenizer
