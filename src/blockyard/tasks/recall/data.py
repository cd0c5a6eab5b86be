"""Synthetic recall: batches as pure functions of (seed, step), with the answers' positions marked.

- `mqar`, multi-query associative recall (Zoology, arXiv 2312.04927, as its code draws rows): key-value pairs, then
  every key once more at random even places; at a key's second coming the model is to give its value. Keys and values
  are halves of the vocabulary, and neither repeats in a row. Places near the pairs are likelier, by a power law;
  between the questions stand random tokens or blanks.
- `induction` (induction heads, arXiv 2209.11895; in this form arXiv 2312.00752, section 4.1.2): random tokens, a
  marker somewhere; the sequence ends with the marker, and the token that followed it is to be given.
- `copy` (arXiv 2402.01032): a string, a separator, and then the string again.
- `lag`: random tokens; at every position the one `lag` positions earlier is to be given: what a convolution can do.
- `selective_copy` (arXiv 2312.00752, section 4.1.1): tokens scattered among blanks, to be given in order at the end.
- `random`: uniform tokens, so that no model can do better than ln V nats: who does sees the future.

Token 0 is the blank, and the vocabulary's last token the marker or separator of tasks that have one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.recall.config import RecallConfig

IGNORED = -100
BLANK = 0
# Numbers that are sorted at once to draw without repetition.
MOST_AT_ONCE = 1 << 22
# Validation rows are those of steps that no training reaches.
VALIDATION = 1 << 62


class Draw:
    """Random numbers from the raw bits of Philox, which are fixed for good; numpy's distributions may change."""

    def __init__(self, seed: int, step: int) -> None:
        self._bits = np.random.Philox(key=seed | step << 64)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return floats in (0, 1]."""
        raw = self._bits.random_raw(int(np.prod(shape))).reshape(shape)
        return ((raw >> np.uint64(11)) + 1) * 2.0**-53

    def integers(self, low: int, high: int, *shape: int) -> np.ndarray:
        """Return integers from low to high - 1."""
        return low + np.minimum((self.uniform(*shape) * (high - low)).astype(np.int64), high - low - 1)

    def distinct(self, low: int, high: int, rows: int, count: int) -> np.ndarray:
        """Return rows of `count` different integers from low to high - 1, in random order."""
        # A few rows at once where there is much to choose from: the same bits in less memory.
        at_once = max(1, MOST_AT_ONCE // (high - low))
        parts = [
            np.argsort(self.uniform(min(at_once, rows - start), high - low), axis=1)[:, :count]
            for start in range(0, rows, at_once)
        ]
        return low + np.concatenate(parts)

    def weighted(self, weights: np.ndarray, rows: int, count: int) -> np.ndarray:
        """Return rows of `count` different indices, drawn one after the other in proportion to the weights.

        The smallest of exponential variables with these rates (Efraimidis and Spirakis, 2006).
        """
        return np.argsort(-np.log(self.uniform(rows, len(weights))) / weights, axis=1)[:, :count]


class RecallData:
    """The rows of a recall task.

    Args:
        config: the task.
    """

    def __init__(self, config: RecallConfig) -> None:
        self.config = config
        self.fingerprint: dict[str, Any] = {"source": f"{config.task}, generated", "sizes": list(config.all_sizes)}

    @property
    def assets(self) -> dict[str, int]:
        """What a model of this task has to know: the vocabulary's size and the sequence's length."""
        return {"vocab_size": self.config.n_tokens, "context": self.config.row_length}

    def batch(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> dict[str, Tensor]:
        """Return the training batch of a step; every row is of one of the sizes, in turn.

        Args:
            seed: the run's seed, 0 or more.
            step: the step, 0 or more.
            batch_size: rows of the global batch.
            rows: which of them to return; all by default.

        Returns: input_ids and targets, int64 [rows, length]; targets are −100 where nothing is asked.
        """
        if not (0 <= seed < 1 << 64 and 0 <= step < VALIDATION):
            raise InputError(f"seed={seed} and step={step} must be at least 0 and below 2**62")
        sizes = self.config.all_sizes
        ids = np.zeros((batch_size, self.config.row_length), np.int64)
        targets = np.full_like(ids, IGNORED)
        draw = Draw(seed, step)
        for i, size in enumerate(sizes):
            mine = slice(i, batch_size, len(sizes))
            count = len(range(batch_size)[mine])
            if count:
                ids[mine], targets[mine] = make_rows(self.config, size, count, draw)
        chosen = slice(None) if rows is None else rows
        return {"input_ids": torch.from_numpy(ids[chosen]), "targets": torch.from_numpy(targets[chosen])}

    def val_rows(self, size: int, limit: int | None = None) -> dict[str, Tensor]:
        """Return the validation rows of a size: the same ones whatever the run's seed."""
        count = self.config.val_rows if limit is None else min(limit, self.config.val_rows)
        ids, targets = make_rows(self.config, size, count, Draw(size, VALIDATION))
        return {"input_ids": torch.from_numpy(ids), "targets": torch.from_numpy(targets)}


def make_rows(config: RecallConfig, size: int, rows: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of one size: ids and targets, int64 [rows, length]."""
    ids = np.zeros((rows, config.row_length), np.int64)
    targets = np.full_like(ids, IGNORED)
    _MAKERS[config.task](config, size, draw, ids, targets)
    return ids, targets


def _mqar(config: RecallConfig, pairs: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    if config.definition == "early":
        _early_mqar(config, pairs, draw, ids, targets)
        return
    of_keys, of_values = config.halves
    keys = draw.distinct(of_keys.start, of_keys.stop, len(ids), pairs)
    values = draw.distinct(of_values.start, of_values.stop, len(ids), pairs)
    if config.noise == "random":
        # Of the whole vocabulary: a key of the row may be among it, with nothing of its own behind it.
        ids[:] = draw.integers(0, config.n_tokens, *ids.shape)
    pairs_end = 2 * pairs * config.passes
    ids[:, 0:pairs_end:2], ids[:, 1:pairs_end:2] = (np.tile(half, config.passes) for half in (keys, values))
    weights = np.arange(1, (config.row_length - pairs_end) // 2 + 1) ** (config.power_a - 1.0)
    _ask(pairs_end + 2 * draw.weighted(weights, len(ids), pairs), keys, values, ids, targets)


def _early_mqar(config: RecallConfig, pairs: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    """Write rows as they were before they were zoology's, to the bit: runs from then go on with them."""
    rows, (of_keys, of_values) = len(ids), config.halves
    ids[:] = draw.integers(of_values.start, of_values.stop, rows, config.row_length)
    keys = draw.distinct(of_keys.start, of_keys.stop, rows, pairs)
    values = draw.integers(of_values.start, of_values.stop, rows, pairs)
    ids[:, 0 : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2] = keys, values
    weights = 0.01 * np.arange(1, (config.row_length - 2 * pairs) // 2 + 1) ** (0.01 - 1.0)
    _ask(2 * pairs + 2 * draw.weighted(weights, rows, pairs), keys, values, ids, targets)


def _ask(at: np.ndarray, keys: np.ndarray, values: np.ndarray, ids: np.ndarray, targets: np.ndarray) -> None:
    """Put the keys at their second places, and ask for their values there."""
    np.put_along_axis(ids, at, keys, 1)
    np.put_along_axis(targets, at, values, 1)


def _induction(config: RecallConfig, distance: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    marker = config.n_tokens - 1
    ids[:] = draw.integers(1, marker, *ids.shape)
    ids[:, -1] = ids[:, -1 - distance] = marker
    targets[:, -1] = ids[:, -distance]


def _copy(config: RecallConfig, count: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    separator = config.n_tokens - 1
    text = draw.integers(1, separator, len(ids), count)
    # Blanks first, so that all sizes end together.
    start = config.row_length - 2 * count
    ids[:, start - 1 : start - 1 + count] = text
    ids[:, start - 1 + count] = separator
    ids[:, start + count :] = text
    targets[:, start - 1 + count : -1] = text


def _lag(config: RecallConfig, lag: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    ids[:] = draw.integers(1, config.n_tokens, *ids.shape)
    targets[:, lag:] = ids[:, :-lag]


def _selective_copy(config: RecallConfig, count: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    marker = config.n_tokens - 1
    text = draw.integers(1, marker, len(ids), count)
    places = np.sort(draw.distinct(0, config.row_length - count, len(ids), count), axis=1)
    np.put_along_axis(ids, places, text, 1)
    ids[:, -count:] = marker
    targets[:, -count:] = text


def _random(config: RecallConfig, size: int, draw: Draw, ids: np.ndarray, targets: np.ndarray) -> None:
    tokens = draw.integers(0, config.n_tokens, ids.shape[0], ids.shape[1] + 1)
    ids[:], targets[:] = tokens[:, :-1], tokens[:, 1:]


_MAKERS = {
    "mqar": _mqar,
    "induction": _induction,
    "copy": _copy,
    "lag": _lag,
    "selective_copy": _selective_copy,
    "random": _random,
}
