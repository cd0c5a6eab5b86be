"""Labelled text as padded batches: each a pure function of (seed, step), each epoch in an order of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.files import parse_json
from blockyard.tasks.classify.config import LabelledConfig
from blockyard.tasks.classify.reader import Row, read_rows, standard_library_rows
from blockyard.text.corpus import standard_library_version
from blockyard.text.load import tokenizer_for
from blockyard.text.readers import Pieces, joined
from blockyard.text.saved import load_tokenizer
from blockyard.text.tokenizer import Tokenizer, write_json
from blockyard.text.tokens import scan, token_dtype

LABELS = "labels.json"
# Batches are padded to a multiple of this, so that there are not as many shapes as lengths.
PAD_TO = 32


@dataclass(frozen=True)
class TextAssets:
    """What using a text classifier takes beside its weights.

    Args:
        tokenizer: text to tokens.
        labels: the classes, in the order of the model's outputs.
    """

    tokenizer: Tokenizer
    labels: tuple[str, ...]

    def save(self, folder: Path) -> None:
        """Write them into a run folder."""
        self.tokenizer.save(folder / "tokenizer")
        write_json(folder / LABELS, {"labels": list(self.labels)})

    @classmethod
    def load(cls, folder: Path) -> TextAssets:
        """Read them again.

        Raises:
            InputError: when a file is missing or damaged.
        """
        try:
            labels = parse_json((folder / LABELS).read_text(encoding="utf-8"))["labels"]
            if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
                raise ValueError("no list of labels")
        except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{folder / LABELS} cannot be read: {error}") from error
        return cls(load_tokenizer(folder / "tokenizer"), tuple(labels))


class Documents:
    """Documents as tokens, cut at `most` tokens.

    Args:
        texts: the documents.
        tokenizer: what encodes them.
        most: tokens kept of each.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, most: int) -> None:
        dtype = token_dtype(tokenizer.vocab_size)
        # Far beyond what `most` tokens cover: a book of which a page is read need not be encoded whole.
        self.tokens = [np.array(tokenizer.encode(text[: 64 * most])[:most] or [0], dtype) for text in texts]
        self.lengths = np.array([len(ids) for ids in self.tokens])

    def padded(self, indices: Sequence[int] | np.ndarray, context: int, chunks: int) -> dict[str, Tensor]:
        """Return some documents as a batch.

        Returns: input_ids int64 and padding_mask bool, [B, T] or, with several chunks, [B, C, T]; T and C are those
            of the longest, T rounded up to a multiple of 32 within the context.
        """
        longest = max(int(self.lengths[i]) for i in indices)
        width = min(context, -(-min(longest, context) // PAD_TO) * PAD_TO)
        count = -(-longest // context) if chunks > 1 else 1
        ids = np.zeros((len(indices), count * context if count > 1 else width), np.int64)
        mask = np.zeros(ids.shape, bool)
        for row, i in enumerate(indices):
            ids[row, : self.lengths[i]] = self.tokens[i]
            mask[row, : self.lengths[i]] = True
        shape = (len(indices), count, -1) if chunks > 1 else ids.shape
        return {
            "input_ids": torch.from_numpy(ids.reshape(shape)),
            "padding_mask": torch.from_numpy(mask.reshape(shape)),
        }


class LabelledData:
    """Training and validation documents with their classes.

    Args:
        train: training rows.
        val: validation rows.
        assets: tokenizer and labels.
        context: tokens of a chunk.
        chunks: chunks that are read of a document.
        fingerprint: what identifies the data.
    """

    def __init__(
        self,
        train: Sequence[Row],
        val: Sequence[Row],
        assets: TextAssets,
        *,
        context: int,
        chunks: int,
        fingerprint: dict[str, Any],
    ) -> None:
        self.assets, self.context, self.chunks, self.fingerprint = assets, context, chunks, fingerprint
        number = {label: i for i, label in enumerate(assets.labels)}
        most = context * chunks
        self.train = Documents([row.text for row in train], assets.tokenizer, most)
        self.val = Documents([row.text for row in val], assets.tokenizer, most)
        self.train_classes = np.array([number[str(row.label)] for row in train], np.int64)
        self.val_classes = np.array([number[str(row.label)] for row in val], np.int64)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def batch(self, seed: int, step: int, batch_size: int, rows: slice | None = None) -> dict[str, Tensor]:
        """Return the training batch of a step: every epoch goes through all documents in an order of its own.

        Args:
            seed: the run's seed.
            step: the step.
            batch_size: documents of the global batch.
            rows: which of them to return; all by default.

        Returns: input_ids, padding_mask and targets.
        """
        count = len(self.train_classes)
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        chosen = np.array([self._order(seed, int(place // count))[place % count] for place in places])
        if rows is not None:
            chosen = chosen[rows]
        return self._with_classes(self.train, self.train_classes, chosen)

    def val_batches(self, batch_size: int, limit: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield validation batches, the same each time; with a limit, documents spread over the whole part."""
        count = len(self.val_classes)
        wanted = count if limit is None else min(count, limit * batch_size)
        chosen = np.arange(wanted) * count // wanted
        for start in range(0, wanted, batch_size):
            yield self._with_classes(self.val, self.val_classes, chosen[start : start + batch_size])

    def chunk_lengths(self) -> list[list[int]]:
        """Return, for every training document, the tokens of its chunks."""
        return [
            [min(self.context, int(length) - start) for start in range(0, int(length), self.context)]
            for length in self.train.lengths
        ]

    def _with_classes(self, documents: Documents, classes: np.ndarray, chosen: np.ndarray) -> dict[str, Tensor]:
        return {
            **documents.padded(chosen, self.context, self.chunks),
            "targets": torch.from_numpy(classes[chosen]),
        }

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        order = self._orders.get((seed, epoch))
        if order is None:
            # The raw bits of Philox are fixed for good; numpy's own permutation may change between versions.
            bits = np.random.Philox(key=seed | (epoch + 1) << 64).random_raw(len(self.train_classes))
            order = np.argsort(bits, kind="stable")
            if len(self._orders) > 3:
                self._orders.clear()
            self._orders[seed, epoch] = order
        return order


def load_labelled(config: LabelledConfig, context: int, chunks: int) -> LabelledData:
    """Read, split and encode labelled text.

    Args:
        config: what to read.
        context: tokens of a chunk.
        chunks: chunks that are read of a document.

    Raises:
        InputError: for rows that cannot be used, fewer than two classes, or a class without a training row.
    """
    read = {"format": config.format, "text_field": config.text_field, "label_field": config.label_field}
    train = standard_library_rows() if config.path is None else read_rows(config.path, **read)
    if config.val_path is not None:
        val = read_rows(config.val_path, **read)
    else:
        train, val = split(train, config.val_fraction)
    labels = tuple(sorted({str(row.label) for row in train}))
    source = "the standard library" if config.path is None else config.path
    if len(labels) < 2:
        raise InputError(f"{source}: every row has the label {labels[0]!r}; classification needs two or more")
    unknown = sorted({str(row.label) for row in val} - set(labels))
    if unknown:
        raise InputError(f"{config.val_path}: no training row has the label {unknown[0]!r}")
    text = scan(lambda: _pieces(train))
    tokenizer = tokenizer_for(config.as_text(), text, None)
    digest = hashlib.sha256()
    for row in (*train, Row("", "\0"), *val):
        digest.update(f"{row.label}\x1f{row.text}\x1e".encode("utf-8", "surrogatepass"))
    fingerprint = {
        "source": "Python standard library, by package" if config.path is None else config.path,
        "version": standard_library_version() if config.path is None else None,
        "sha256": digest.hexdigest(),
        "rows": len(train),
        "val_rows": len(val),
        "classes": len(labels),
        "tokenizer": tokenizer.name,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer_sha256": tokenizer.fingerprint(),
    }
    assets = TextAssets(tokenizer, labels)
    return LabelledData(train, val, assets, context=context, chunks=chunks, fingerprint=fingerprint)


def split(rows: Sequence[Row], fraction: float) -> tuple[list[Row], list[Row]]:
    """Keep a share of every class for validation, the same rows each time.

    Rows of one group (pieces of one file) stay together. Of a class whose rows are one, or one group, none is kept.
    """
    by_class: dict[str, dict[str, list[Row]]] = {}
    for number, row in enumerate(rows):
        by_class.setdefault(str(row.label), {}).setdefault(row.group or f"\0{number}", []).append(row)
    train: list[Row] = []
    val: list[Row] = []
    for groups in by_class.values():
        # By a hash of what is written there: the order of the file does not matter, sorted files are no trap.
        order = sorted(groups.values(), key=lambda group: _digest(group[0].group or group[0].text))
        wanted, kept = fraction * sum(map(len, order)), 0
        for i, group in enumerate(order):
            if kept < wanted and i < len(order) - 1:
                val += group
                kept += len(group)
            else:
                train += group
    if not val:
        raise InputError("too few rows to keep any for validation: give every class two or more, or data.val_path")
    return train, val


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _pieces(rows: Sequence[Row]) -> Pieces:
    return joined([row.text] for row in rows)


def needed(padding_mask: Tensor) -> Tensor | None:
    """Return the mask, or None when nothing is padding: mixers have faster ways without one."""
    return None if bool(padding_mask.all()) else padding_mask
