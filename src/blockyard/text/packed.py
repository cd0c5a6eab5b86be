"""A text whose rows hold whole documents: batches that say which slots belong together.

Every epoch takes each row once, in an order that is a function of the seed and the epoch; so a batch is a pure function
of (seed, step), as one of plain rows is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.text.batches import TextData, check_draw
from blockyard.text.packing import Packing, packed, separators_of
from blockyard.text.tokenizer import Tokenizer
from blockyard.text.tokens import byte_lengths

# Number of a slot that holds no text; its target is left out of the loss.
FILLING, NO_TARGET = -1, -100


class PackedText(TextData):
    """Tokens of a text, and batches of rows that hold documents side by side.

    Takes what `TextData` takes; the two parts are cut at the same token, so that a document there ends in one and
    begins anew in the other.

    Raises:
        InputError: as `TextData`, or when a part has no document of two tokens.
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
        super().__init__(
            tokens,
            tokenizer,
            val_fraction=val_fraction,
            context=context,
            fingerprint=fingerprint,
            notes=notes,
            specials_spell=specials_spell,
        )
        self._packings: dict[tuple[str, int], Packing] = {}
        self._orders: dict[tuple[int, int, int], np.ndarray] = {}
        self.notes = (*self.notes, *(self._told(part) for part in ("train", "val")))

    def packing(self, part: str, context: int | None = None) -> Packing:
        """Return the rows of a part, "train" or "val"."""
        context = self.context if context is None else context
        at_least(1, context=context)
        found = self._packings.get((part, context))
        if found is None:
            tokens = self._train if part == "train" else self._val
            found = self._packings[part, context] = packed(tokens, self.tokenizer.separator_id, context)
        return found

    def batch(
        self, seed: int, step: int, batch_size: int, context: int | None = None, rows: slice | None = None
    ) -> dict[str, Tensor]:
        """Return the training batch of a step: the next rows of the epoch's order.

        Args:
            seed: the run's seed, 0 or more.
            step: the step, 0 or more.
            batch_size: rows of the global batch.
            context: slots a row; the data's own context by default.
            rows: which rows of the global batch to return (a rank's share); all by default.

        Returns:
            input_ids, targets (the next tokens, −100 where there is none to predict) and segments (equal within a
            piece, −1 at filling), int64 [rows, context] each; and share, a scalar: the targets of these rows ÷ those
            of the mean row of the global batch, so that a mean over passes and ranks is that over all targets.
        """
        packing = self.packing("train", context)
        check_draw(seed, step, batch_size)
        every = [self._drawn(seed, step * batch_size + i, packing) for i in range(batch_size)]
        wanted = every if rows is None else every[rows]
        mean = packing.filled[every].mean()
        return {
            **self._rows(self._train, packing, wanted),
            "share": torch.tensor(float(packing.filled[wanted].mean() / mean), dtype=torch.float32),
        }

    def val_batches(
        self, batch_size: int, context: int | None = None, limit: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield validation batches: the same ones each time, every piece once.

        Args:
            batch_size: rows a batch; the last batch may have fewer.
            context: slots a row; the data's own context by default.
            limit: at most this many batches, spread over all rows; all by default.

        Yields:
            input_ids, targets and segments, as `batch`.
        """
        at_least(1, batch_size=batch_size, limit=limit)
        packing = self.packing("val", context)
        wanted = packing.rows if limit is None else min(packing.rows, limit * batch_size)
        chosen = (np.arange(wanted, dtype=np.int64) * packing.rows // wanted).tolist()
        for start in range(0, wanted, batch_size):
            yield self._rows(self._val, packing, chosen[start : start + batch_size])

    def _rows(self, tokens: np.ndarray, packing: Packing, rows: list[int]) -> dict[str, Tensor]:
        shape = (len(rows), packing.context)
        ids = np.full(shape, self.tokenizer.separator_id, np.int64)
        targets, segments = np.full(shape, NO_TARGET, np.int64), np.full(shape, FILLING, np.int64)
        for i, row in enumerate(rows):
            at = 0
            for number, (start, size) in enumerate(packing.pieces(row)):
                ids[i, at : at + size] = tokens[start : start + size]
                targets[i, at : at + size] = tokens[start + 1 : start + size + 1]
                segments[i, at : at + size] = number
                at += size
        arrays = {"input_ids": ids, "targets": targets, "segments": segments}
        return {name: torch.from_numpy(values) for name, values in arrays.items()}

    def _drawn(self, seed: int, place: int, packing: Packing) -> int:
        """Return the row at a place in the endless sequence of epochs."""
        epoch, at = divmod(place, packing.rows)
        key = (seed, epoch, packing.context)
        if key not in self._orders:
            # A batch reaches over two epochs at most times; small texts have many in one.
            while len(self._orders) > 2:
                del self._orders[next(iter(self._orders))]
            bits = np.random.Philox(key=seed | (epoch % (1 << 64)) << 64).random_raw(packing.rows)
            # By the raw bits, which are fixed for good; a generator's shuffling may change between versions.
            self._orders[key] = np.argsort(bits, kind="stable")
        return int(self._orders[key][at])

    def _count_bytes(self) -> float:
        # Bytes of what is predicted, as many a token as `val_loss` is a mean over.
        packing = self.packing("val")
        lengths = byte_lengths(self.tokenizer, separator=1, specials=self._specials_spell)
        left_out = int(lengths[self._val[packing.unpredicted(len(self._val))]].sum())
        return (super()._count_bytes() - left_out) / int(packing.filled.sum()) * len(self._val)

    def _told(self, part: str) -> str:
        packing = self.packing(part)
        pieces = len(packing.starts)
        words = "training" if part == "train" else "validation"
        cut = f" ({packing.cut:,} cut to fill a row)" if packing.cut else ""
        return (
            f"{words}: {packing.documents:,} document{'s' if packing.documents > 1 else ''} in {pieces:,} pieces{cut}, "
            f"packed in {packing.rows:,} rows of {packing.context}; {packing.filling:.1%} of the slots hold no text"
        )


def check_borders(tokens: np.ndarray, separator: int, documents: int | None, name: str) -> None:
    """Refuse a text whose documents' borders cannot be known.

    Args:
        tokens: all of them.
        separator: the id between two documents.
        documents: how many there are; None where the separators alone say so.
        name: of the tokenizer.

    Raises:
        InputError: when the separator also stands within documents, or nowhere at all though it alone tells borders.
    """
    found = len(separators_of(tokens, separator))
    if documents is None and not found:
        raise InputError(
            f"data.pack=documents: token {separator}, which ends a document to this tokenizer ({name}), is nowhere in "
            "these tokens: no border between documents can be known"
        )
    if documents is not None and found != documents - 1:
        raise InputError(
            f"data.pack=documents: token {separator}, which ends a document to this tokenizer ({name}), also stands "
            f"within documents ({found:,} times in {documents:,}): no border can be known; take it out of the text"
        )
