"""Token batches as a pure function of (seed, step): nothing to save or restore, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.text.tokenizer import Tokenizer
from blockyard.text.tokens import byte_lengths


class TextData:
    """Tokens of a text, split into training and validation, and the batches cut from them.

    Args:
        tokens: all ids in order, uint8, uint16 or uint32, usually memory-mapped.
        tokenizer: what made them.
        val_fraction: share of the tokens, at the end, kept for validation.
        context: tokens a batch row will have; both parts must hold one row and its next token.
        fingerprint: source, version, sha256, bytes, tokens: what identifies the text in a run's records.
        notes: what whoever trains on it should know, one line each.
        specials_spell: whether special tokens stand for the text that spells them, as where a text was encoded; in
            tokens that come from elsewhere they were put between, and stand for no text.

    Raises:
        InputError: when the text is too short for the context.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        tokenizer: Tokenizer,
        *,
        val_fraction: float,
        context: int,
        fingerprint: dict[str, Any],
        notes: Sequence[str] = (),
        specials_spell: bool = True,
    ) -> None:
        at_least(1, context=context)
        n_val = round(len(tokens) * val_fraction)
        n_train = len(tokens) - n_val
        for part, size in (("training", n_train), ("validation", n_val)):
            if size < context + 1:
                raise InputError(
                    f"context={context} is longer than the text: its {part} part has {size} tokens and needs "
                    f"{context + 1}; use a shorter context or more text"
                )
        self.tokenizer = tokenizer
        self.context = context
        self.fingerprint = fingerprint
        self.notes = tuple(notes)
        self._specials_spell = specials_spell
        self.train = tokens[:n_train]
        self.val = tokens[n_train:]
        # Indexing a plain view of the memory map skips np.memmap's bookkeeping at every step.
        self._train = self.train.view(np.ndarray)
        self._val = self.val.view(np.ndarray)
        self._windows: dict[tuple[str, int], np.ndarray] = {}
        self._bytes_per_token: float | None = None

    @property
    def assets(self) -> Tokenizer:
        """What using a model of this text takes beside its weights."""
        return self.tokenizer

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per validation token: nats per token divided by this are nats per byte.

        A separator between documents counts as one byte, as it is one with the byte tokenizer.
        """
        if self._bytes_per_token is None:
            self._bytes_per_token = self._count_bytes() / len(self._val)
        return self._bytes_per_token

    def batch(
        self, seed: int, step: int, batch_size: int, context: int | None = None, rows: slice | None = None
    ) -> dict[str, Tensor]:
        """Return the training batch of a step: rows at random places of the training part.

        Args:
            seed: the run's seed, 0 or more.
            step: the step, 0 or more.
            batch_size: rows of the global batch.
            context: tokens a row; the data's own context by default.
            rows: which rows of the global batch to return (a rank's share); all by default.

        Returns:
            input_ids and targets (the next tokens), int64 [rows, context] each.
        """
        context = self.context if context is None else context
        windows = self._view("train", self._train, context)
        check_draw(seed, step, batch_size)
        # The raw bits of Philox are fixed for good; numpy's distributions may change between versions.
        bits = np.random.Philox(key=seed | step << 64).random_raw(batch_size)
        starts = bits % np.uint64(len(windows))
        return _as_batch(windows[starts if rows is None else starts[rows]])

    def val_batches(
        self, batch_size: int, context: int | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield validation batches: the same ones each time, from windows that do not overlap.

        Args:
            batch_size: rows a batch; the last batch may have fewer.
            context: tokens a row; the data's own context by default.
            limit: at most this many batches, spread over the whole validation part; all by default.

        Yields:
            input_ids and targets, int64 [rows, context] each.
        """
        context = self.context if context is None else context
        at_least(1, batch_size=batch_size, limit=limit)
        windows = self._view("val", self._val, context)
        count = (len(self._val) - 1) // context
        wanted = count if limit is None else min(count, limit * batch_size)
        chosen = np.arange(wanted, dtype=np.int64) * count // wanted * context
        for start in range(0, wanted, batch_size):
            yield _as_batch(windows[chosen[start : start + batch_size]])

    def _view(self, part: str, tokens: np.ndarray, context: int) -> np.ndarray:
        """Return every run of context + 1 tokens as a row, without copying: [len - context, context + 1]."""
        view = self._windows.get((part, context))
        if view is None:
            at_least(1, context=context)
            if len(tokens) < context + 1:
                raise InputError(
                    f"context={context} is longer than the text: the {part} part has {len(tokens)} tokens "
                    f"and needs {context + 1}"
                )
            view = np.lib.stride_tricks.sliding_window_view(tokens, context + 1)
            self._windows[part, context] = view
        return view

    def _count_bytes(self) -> float:
        if self.tokenizer.name == "byte" and not self.tokenizer.special_tokens:
            return len(self._val)
        lengths = byte_lengths(self.tokenizer, separator=1, specials=self._specials_spell)
        counts = np.zeros(len(lengths), np.int64)
        for start in range(0, len(self._val), 1 << 22):
            counts += np.bincount(self._val[start : start + (1 << 22)], minlength=len(lengths))
        return int(counts @ lengths)


def check_draw(seed: int, step: int, batch_size: int) -> None:
    """Raise InputError for a batch that cannot be drawn."""
    at_least(1, batch_size=batch_size)
    if not (0 <= seed < 1 << 64 and 0 <= step < 1 << 64):
        raise InputError(f"seed={seed} and step={step} must lie between 0 and 2**64 - 1")


def _as_batch(rows: np.ndarray) -> dict[str, Tensor]:
    # Converting each half apart gives two contiguous tensors, which losses flatten without another copy.
    return {
        "input_ids": torch.from_numpy(rows[:, :-1].astype(np.int64)),
        "targets": torch.from_numpy(rows[:, 1:].astype(np.int64)),
    }
