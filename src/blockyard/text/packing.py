"""Documents in rows: which stretches of the tokens stand together in a row, so that hardly a slot is left empty.

A document of n tokens takes n slots: each token predicts the next one and the last one the separator, which is never
read. Its first token is predicted by nothing. What is longer than a row is cut into rows, and the rest of it is a
piece like a short document. Rows are filled with the longest piece that still fits (best-fit decreasing, arXiv
2404.10830); where none fits and more than `MOST_FILLING` of the row is empty, the longest piece that is left is cut to
fill it. Every piece starts anew, at position 0.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from blockyard.errors import InputError

# Of a row, what may stay empty before a document is cut that would fit into a row.
MOST_FILLING = 1 / 8
# Tokens that are looked at at a time.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Packing:
    """Rows of pieces.

    Attributes:
        starts: where each piece begins in the tokens, in the order of rows: int64 [pieces].
        sizes: its slots: int64 [pieces].
        bounds: each row's first piece, and the number of pieces: int64 [rows + 1].
        filled: slots of each row that hold text: int64 [rows].
        context: slots of a row.
        documents: in these rows.
        cut: documents that were cut though they would fit into a row.
    """

    starts: np.ndarray
    sizes: np.ndarray
    bounds: np.ndarray
    filled: np.ndarray
    context: int
    documents: int
    cut: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.filled)

    @property
    def filling(self) -> float:
        """Share of the slots that hold no text."""
        return 1 - int(self.filled.sum()) / (self.rows * self.context)

    def pieces(self, row: int) -> list[tuple[int, int]]:
        """Return (start, slots) of each piece of a row."""
        part = slice(int(self.bounds[row]), int(self.bounds[row + 1]))
        return list(zip(self.starts[part].tolist(), self.sizes[part].tolist()))

    def unpredicted(self, size: int) -> np.ndarray:
        """Return the places, of so many tokens, that no slot predicts: first tokens of documents, and what stands
        between two of them beside one separator."""
        order = np.argsort(self.starts, kind="stable")
        # A piece predicts what stands behind its beginning, up to one token behind its end.
        behind = np.concatenate([[0], (self.starts + self.sizes)[order] + 1])
        until = np.concatenate([self.starts[order] + 1, [size]])
        lengths = until - behind
        within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(behind, lengths) + within


def separators_of(tokens: np.ndarray, separator: int) -> np.ndarray:
    """Return the places of a token: int64, rising."""
    found = [
        np.flatnonzero(tokens[start : start + _BLOCK] == separator) + start for start in range(0, len(tokens), _BLOCK)
    ]
    return np.concatenate([np.zeros(0, np.int64), *found])


def packed(tokens: np.ndarray, separator: int, context: int) -> Packing:
    """Lay the documents of a text out in rows: the same ones for the same tokens and context.

    Args:
        tokens: all ids in order, the separator between two documents.
        separator: its id.
        context: slots of a row.

    Raises:
        InputError: when no document has two tokens.
    """
    ends = separators_of(tokens, separator)
    starts = np.concatenate([[0], ends + 1])
    # What ends a text's last document is not known: its last token is a target alone.
    sizes = np.concatenate([ends, [len(tokens) - 1]]) - starts
    starts, sizes = starts[sizes > 0], sizes[sizes > 0]
    if not len(starts):
        raise InputError("data.pack=documents: the text has no document of two tokens or more")
    full = sizes // context
    # Each k-th part of a document that is longer than a row.
    number = np.arange(int(full.sum())) - np.repeat(np.cumsum(full) - full, full)
    whole = np.repeat(starts, full) + number * context
    rest = sizes - full * context
    pool = _Pool(starts[rest > 0] + (full * context)[rest > 0], rest[rest > 0], context)
    begins, slots, bounds = array("q"), array("q"), array("q")
    while pool.filled:
        bounds.append(len(begins))
        pool.fill_row(begins, slots)
    first = np.arange(len(whole), dtype=np.int64)
    bounds.append(len(begins))
    piece_sizes = np.concatenate([np.full(len(whole), context, np.int64), np.array(slots, np.int64)])
    all_bounds = np.concatenate([first, np.array(bounds, np.int64) + len(whole)])
    return Packing(
        np.concatenate([whole, np.array(begins, np.int64)]).astype(np.int64),
        piece_sizes,
        all_bounds,
        np.add.reduceat(piece_sizes, all_bounds[:-1]),
        context,
        len(starts),
        pool.cut,
    )


class _Pool:
    """Pieces shorter than a row, by length.

    Args:
        starts: where they begin.
        sizes: their slots.
        context: slots of a row.
    """

    def __init__(self, starts: np.ndarray, sizes: np.ndarray, context: int) -> None:
        self._context, self.cut = context, 0
        # Of Python's arrays, which grow and shrink at their ends and take 8 bytes a piece.
        self._by_size = [array("q") for _ in range(context + 1)]
        order = np.argsort(sizes, kind="stable")
        cuts = np.searchsorted(sizes[order], np.arange(context + 2))
        for size in range(1, context + 1):
            part = starts[order[cuts[size] : cuts[size + 1]]]
            # The last ones are taken first.
            self._by_size[size].frombytes(np.ascontiguousarray(part[::-1], np.int64).tobytes())
        # Bit n says that there is a piece of n slots: the longest that fits is the highest bit below a limit.
        self.filled = sum(1 << size for size in range(1, context + 1) if self._by_size[size])

    def fill_row(self, begins: array[int], slots: array[int]) -> None:
        """Take the pieces of one row, the longest first, and append where they begin and how many slots they take."""
        gap = self._context
        while gap:
            size = (self.filled & ((1 << (gap + 1)) - 1)).bit_length() - 1
            if size > 0:
                begins.append(self._take(size))
            elif self.filled and gap > MOST_FILLING * self._context:
                # The longest: what is left of it still reads much of its document.
                longest = self.filled.bit_length() - 1
                start, size = self._take(longest), gap
                begins.append(start)
                self._put(start + gap, longest - gap)
                self.cut += 1
            else:
                return
            slots.append(size)
            gap -= size

    def _take(self, size: int) -> int:
        start = self._by_size[size].pop()
        if not self._by_size[size]:
            self.filled &= ~(1 << size)
        return start

    def _put(self, start: int, size: int) -> None:
        self._by_size[size].append(start)
        self.filled |= 1 << size
