"""Connected cells of a spectrogram, in a stream of its rows: where something stands above the noise for a while.

A cell belongs to a region when it stands above a low threshold and is connected, over time and frequency, to cells
above a high one (hysteresis). A region may last for hours: of each only its sums are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blockyard.errors import require

# Gaps of so many rows and bins within a region are closed: a modulated signal fades from cell to cell.
GAP_ROWS, GAP_BINS = 3, 3


@dataclass
class Region:
    """Cells that are connected.

    Args:
        number: from 1 on, in the order of their beginnings.
        first: row of the first.
        last: row of the last so far.
        lower: lowest bin.
        upper: highest bin.
        spectrum: [bins], sum of the rows from the first to the last, as power over the noise floor.
        envelope: power over the noise within the region's bins of its first rows.
        ending: and of its last ones.
        is_open: whether it may go on in rows that are not there yet.
    """

    number: int
    first: int
    last: int
    lower: int
    upper: int
    spectrum: Any
    envelope: list[float] = field(default_factory=list)
    ending: list[float] = field(default_factory=list)
    is_open: bool = True

    @property
    def rows(self) -> int:
        return self.last - self.first + 1


class Regions:
    """Regions of a stream of rows.

    Args:
        bins: of a row.
        low: threshold of cells that belong, times the noise.
        high: threshold in two rows that follow one another, of which one makes a region.
        alone: threshold of a single cell that makes one.
    """

    def __init__(self, bins: int, low: float, high: float, alone: float) -> None:
        np = require("numpy", extra="train")
        self._np = np
        self._image = require("scipy.ndimage", extra="signals")
        self.bins, self.low, self.high, self.alone = bins, low, high, alone
        self._row, self.count = 0, 0
        self._open: dict[int, Region] = {}
        # Of the rows before: their powers, and which region each cell belongs to.
        self._before = np.zeros((0, bins), np.float32)
        self._owners = np.zeros((0, bins), np.int64)

    @property
    def oldest(self) -> int:
        """The first row of any region that is open; the next row where none is."""
        return min((region.first for region in self._open.values()), default=self._row)

    def push(self, rows: Any) -> list[Region]:
        """Take in the next rows, [n, bins] of power over the noise floor; return every region that has cells in them or
        ended before them, those that cannot go on with `is_open` off."""
        np = self._np
        context = len(self._before)
        power = np.concatenate([self._before, rows])
        labels, count = self._labelled(power)
        first = self._row - context
        touched: dict[int, Region] = {}
        places = self._image.find_objects(labels)
        # The largest component takes a region's name where several go on from it.
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        owners = np.zeros(labels.shape, np.int64)
        for label in sorted(range(1, count + 1), key=lambda k: -sizes[k]):
            place = places[label - 1]
            mask = labels[place] == label
            named = self._owners[place[0].start : min(place[0].stop, context), place[1]]
            ids = named[mask[: len(named)]] if len(named) else named.ravel()
            ids = ids[ids > 0]
            last = place[0].stop - 1
            known = next((i for i in self._by_size(ids) if i in self._open and i not in touched), None)
            if last < context:
                continue  # nothing new: it ended before
            if known is None:
                self.count += 1
                region = Region(
                    self.count, first + place[0].start, first + last, place[1].start, place[1].stop - 1,
                    np.zeros(self.bins),
                )  # fmt: skip
                start = place[0].start
            else:
                region = self._open[known]
                # Rows of the context are in its sums already, up to the last that it had.
                start = region.last + 1 - first
                region.last = max(region.last, first + last)
                region.lower, region.upper = min(region.lower, place[1].start), max(region.upper, place[1].stop - 1)
            touched[region.number] = region
            owners[place][mask] = region.number
            part = power[start : last + 1]
            region.spectrum += part.sum(0, dtype=np.float64)
            inside = (part[:, region.lower : region.upper + 1] - 1).mean(1).tolist()
            region.envelope = (region.envelope + inside)[:8]
            region.ending = (region.ending + inside)[-8:]
        kept = min(GAP_ROWS + 1, len(power))
        going_on = set(np.unique(owners[-kept:]).tolist()) - {0}
        ended = [region for number, region in self._open.items() if number not in touched]
        found = sorted([*ended, *touched.values()], key=lambda region: region.number)
        for region in found:
            region.is_open = region.number in going_on
        self._open = {region.number: region for region in found if region.is_open}
        self._before, self._owners = power[-kept:].copy(), owners[-kept:].copy()
        self._row += len(rows)
        return found

    def finish(self, rows: int = 0) -> list[Region]:
        """End all regions that are open and return them; the next row follows after a gap of `rows`."""
        found = list(self._open.values())
        for region in found:
            region.is_open = False
        self._open, self._before, self._owners = {}, self._before[:0], self._owners[:0]
        self._row += rows
        return found

    def _labelled(self, power: Any) -> tuple[Any, int]:
        """Return components with a seed, numbered from 1."""
        np, image = self._np, self._image
        low = image.binary_closing(
            np.pad(power > self.low, ((GAP_ROWS, GAP_ROWS), (GAP_BINS, GAP_BINS))),
            np.ones((GAP_ROWS, GAP_BINS), bool),
        )[GAP_ROWS:-GAP_ROWS, GAP_BINS:-GAP_BINS]
        low |= power > self.low
        labels, count = image.label(low, np.ones((3, 3), bool))
        if not count:
            return labels, 0
        high = power > self.high
        # Beside one another in time, at the same frequency or the next.
        wide = image.maximum_filter1d(high, 3, axis=1) if len(high) > 1 else high
        seeds = power > self.alone
        seeds[1:] |= high[1:] & wide[:-1]
        seeds[:-1] |= high[:-1] & wide[1:]
        good = np.zeros(count + 1, np.int64)
        good[np.unique(labels[seeds])] = 1
        # What goes on from a region needs no seed of its own in these rows.
        context = len(self._owners)
        good[np.unique(labels[:context][self._owners > 0])] = 1
        good[0] = 0
        return (np.cumsum(good) * good)[labels], int(good.sum())

    def _by_size(self, ids: Any) -> list[int]:
        if not len(ids):
            return []
        values, counts = self._np.unique(ids, return_counts=True)
        return values[counts.argsort()[::-1]].tolist()
