"""Price series in memory: one `Asset` per series, checked, adjusted, in the order of time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blockyard.tasks.price.data.rhythm import Rhythm, find_rhythm

BARS = ("open", "high", "low")


@dataclass(frozen=True, eq=False)
class Asset:
    """One series of prices.

    Args:
        unique_id: its name.
        ds: strictly rising: datetime64[ns], or int64 for rows without dates; [T].
        close: the price to forecast, adjusted where the file allows it; float64 above 0, [T].
        open: adjusted by the same factor, or None.
        high: likewise.
        low: likewise.
        volume: as the file has it, at least 0, or None.
        extra: further columns by name, [T] each.
        zone: the clock that its file shows, where `ds` is UTC and the file is not; see `Clock`.
        raw: unadjusted closes, where `close` is adjusted.
        scales: which of `extra` are in units of price, and how they go with it; see `covariates.scale_of`.
        future: columns known in advance, [T + A]: of the rows, and of A steps after the last.
        ahead: dates of those steps, [A].
        static: what the asset is: one number or category a column.
        categories: those that all assets together have, of each static column that is no number.
    """

    unique_id: str
    ds: np.ndarray
    close: np.ndarray
    open: np.ndarray | None = None
    high: np.ndarray | None = None
    low: np.ndarray | None = None
    volume: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    zone: str | None = None
    raw: np.ndarray | None = None
    scales: dict[str, str] = field(default_factory=dict)
    future: dict[str, np.ndarray] = field(default_factory=dict)
    ahead: np.ndarray | None = None
    static: dict[str, float | str] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.close)

    @property
    def dated(self) -> bool:
        """Whether rows have dates rather than numbers."""
        return self.ds.dtype.kind == "M"

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """All columns but the dates, by name."""
        bars = {name: getattr(self, name) for name in (*BARS, "volume")}
        beside = {**self.extra, **{name: values[: len(self)] for name, values in self.future.items()}}
        return {"close": self.close, **{k: v for k, v in bars.items() if v is not None}, **beside}

    def until(self, end: int) -> Asset:
        """Return the asset with its first `end` rows; of later ones remains what is known in advance."""
        bars = {name: getattr(self, name) for name in (*BARS, "volume", "raw")}
        parts: dict[str, Any] = {name: None if values is None else values[:end] for name, values in bars.items()}
        extra = {name: values[:end] for name, values in self.extra.items()}
        ahead = self.ds[end:] if self.ahead is None else np.concatenate([self.ds[end:], self.ahead])
        return replace(self, ds=self.ds[:end], close=self.close[:end], **parts, extra=extra, ahead=ahead)

    def span(self) -> str:
        """Word "1999-01-04 … 2018-12-31", as rows say when they are."""
        return f"{show_ds(self.ds[0])} … {show_ds(self.ds[-1])}"


@dataclass(frozen=True, eq=False)
class Prices:
    """What was read.

    Args:
        assets: one or more series.
        source: where they come from, in words.
        notes: what the reader noticed or did, one line each.
        understood: how tables and clocks were read, one line each.
        apart: whether returns over nights and holes are told from those of a step; see steps.py.
    """

    assets: tuple[Asset, ...]
    source: str
    notes: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()
    apart: bool = True

    def __len__(self) -> int:
        return sum(len(asset) for asset in self.assets)

    def __getitem__(self, unique_id: str) -> Asset:
        return next(asset for asset in self.assets if asset.unique_id == unique_id)

    def fingerprint(self) -> dict[str, Any]:
        """Return source, sha256 of all values, sizes: what identifies the data in a run's records."""
        digest = hashlib.sha256()
        for asset in self.assets:
            digest.update(f"{asset.unique_id}\0{len(asset)}\0".encode())
            digest.update(np.ascontiguousarray(asset.ds).view(np.int64).tobytes())
            for name, values in asset.columns.items():
                digest.update(name.encode() + np.ascontiguousarray(values, np.float64).tobytes())
            for name, value in asset.static.items():
                digest.update(f"{name}\0{value}\0".encode())
        return {
            "source": self.source,
            "sha256": digest.hexdigest(),
            "assets": len(self.assets),
            "rows": len(self),
            "span": [str(show_ds(min(a.ds[0] for a in self.assets))), str(show_ds(max(a.ds[-1] for a in self.assets)))],
        }

    def report(self) -> str:
        """Return what was read and how it was understood: tables, columns and clocks, a line per asset, then the
        notes."""
        lines = [f"{self.source}: {len(self.assets)} asset{'s' * (len(self.assets) != 1)}, {len(self):,} rows"]
        lines += [f"  {line}" for line in self.understood]
        for asset in self.assets[:8]:
            bars = [n for n in (*BARS, "volume") if getattr(asset, n) is not None]
            columns = ", ".join(["close", *bars, *asset.extra])
            if asset.future:
                steps = 0 if asset.ahead is None else len(asset.ahead)
                after = f"{steps} step{'s' * (steps != 1)} after the last row"
                columns += f"; known in advance: {', '.join(asset.future)}, for {after}"
            if asset.static:
                columns += "; " + ", ".join(f"{name} {value}" for name, value in asset.static.items())
            lines.append(f"  {asset.unique_id}: {len(asset):,} rows, {asset.span()}; {columns}")
            if (rhythm := find_rhythm(asset.ds)) is not None:
                lines.append(f"    step: {show_rhythm(rhythm)}")
        if len(self.assets) > 8:
            lines.append(f"  … and {len(self.assets) - 8} more")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """Return the report as data that JSON can hold."""
        assets = []
        for asset in self.assets:
            rhythm = find_rhythm(asset.ds)
            assets.append(
                {
                    "unique_id": asset.unique_id,
                    "rows": len(asset),
                    "first": show_ds(asset.ds[0]),
                    "last": show_ds(asset.ds[-1]),
                    "columns": list(asset.columns),
                    "step": None if rhythm is None else show_rhythm(rhythm),
                }
            )
        found = {"source": self.source, "understood": list(self.understood), "assets": assets}
        return {**found, "notes": list(self.notes)}


def show_ds(value: Any) -> str:
    """Return a date without a time of midnight, or a row number."""
    if isinstance(value, np.datetime64):
        text = str(value.astype("datetime64[s]"))
        return text.removesuffix("T00:00:00").replace("T", " ")
    return str(value)


def show_rhythm(rhythm: Rhythm) -> str:
    """Return a rhythm in words: "1 day, Mon–Fri; 9 holes, 12 rows missing, the longest 4 after 2001-09-10"."""
    words = rhythm.step + (f", {rhythm.market}" if rhythm.market else "")
    if not rhythm.holes:
        return f"{words}; no holes"
    rows = f"{rhythm.missing:,} row{'s' * (rhythm.missing != 1)} missing"
    longest = f", the longest {rhythm.longest:,}" if rhythm.holes > 1 else ""
    after = f"{longest} after {show_ds(rhythm.before)}"
    return f"{words}; {rhythm.holes:,} hole{'s' * (rhythm.holes != 1)}, {rows}{after}"
