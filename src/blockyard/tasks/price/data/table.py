"""Price series in memory: one `Asset` per series, checked, adjusted, in the order of time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
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
        return {"close": self.close, **{k: v for k, v in bars.items() if v is not None}, **self.extra}

    def rows(self, part: slice) -> Asset:
        """The asset with some of its rows."""
        bars = {n: None if getattr(self, n) is None else getattr(self, n)[part] for n in (*BARS, "volume")}
        extra = {name: values[part] for name, values in self.extra.items()}
        return Asset(self.unique_id, self.ds[part], self.close[part], **bars, extra=extra, zone=self.zone)

    def span(self) -> str:
        """ "1999-01-04 … 2018-12-31", as rows say when they are."""
        return f"{show_ds(self.ds[0])} … {show_ds(self.ds[-1])}"


@dataclass(frozen=True, eq=False)
class Prices:
    """What was read.

    Args:
        assets: one or more series.
        source: where they come from, in words.
        notes: what the reader noticed or did, one line each.
        understood: how tables and clocks were read, one line each.
    """

    assets: tuple[Asset, ...]
    source: str
    notes: tuple[str, ...] = ()
    understood: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(asset) for asset in self.assets)

    def __getitem__(self, unique_id: str) -> Asset:
        return next(asset for asset in self.assets if asset.unique_id == unique_id)

    def fingerprint(self) -> dict[str, Any]:
        """Source, sha256 of all values, sizes: what identifies the data in a run's records."""
        digest = hashlib.sha256()
        for asset in self.assets:
            digest.update(f"{asset.unique_id}\0{len(asset)}\0".encode())
            digest.update(np.ascontiguousarray(asset.ds).view(np.int64).tobytes())
            for name, values in asset.columns.items():
                digest.update(name.encode() + np.ascontiguousarray(values, np.float64).tobytes())
        return {
            "source": self.source,
            "sha256": digest.hexdigest(),
            "assets": len(self.assets),
            "rows": len(self),
            "span": [str(show_ds(min(a.ds[0] for a in self.assets))), str(show_ds(max(a.ds[-1] for a in self.assets)))],
        }

    def report(self) -> str:
        """What was read and how it was understood: tables, columns and clocks, a line per asset, then the notes."""
        lines = [f"{self.source}: {len(self.assets)} asset{'s' * (len(self.assets) != 1)}, {len(self):,} rows"]
        lines += [f"  {line}" for line in self.understood]
        for asset in self.assets[:8]:
            bars = [n for n in (*BARS, "volume") if getattr(asset, n) is not None]
            columns = ", ".join(["close", *bars, *asset.extra])
            lines.append(f"  {asset.unique_id}: {len(asset):,} rows, {asset.span()}; {columns}")
            if (rhythm := find_rhythm(asset.ds)) is not None:
                lines.append(f"    step: {show_rhythm(rhythm)}")
        if len(self.assets) > 8:
            lines.append(f"  … and {len(self.assets) - 8} more")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def as_dict(self) -> dict[str, Any]:
        """The report as data that JSON can hold."""
        assets = []
        for asset in self.assets:
            rhythm = find_rhythm(asset.ds)
            assets.append({
                "unique_id": asset.unique_id,
                "rows": len(asset),
                "first": show_ds(asset.ds[0]),
                "last": show_ds(asset.ds[-1]),
                "columns": list(asset.columns),
                "step": None if rhythm is None else show_rhythm(rhythm),
            })  # fmt: skip
        found = {"source": self.source, "understood": list(self.understood), "assets": assets}
        return {**found, "notes": list(self.notes)}


def show_ds(value: Any) -> str:
    """A date without a time of midnight, or a row number."""
    if isinstance(value, np.datetime64):
        text = str(value.astype("datetime64[s]"))
        return text.removesuffix("T00:00:00").replace("T", " ")
    return str(value)


def show_rhythm(rhythm: Rhythm) -> str:
    """A rhythm in words: "1 day, Mon–Fri; 9 holes, 12 rows missing, the longest 4 after 2001-09-10"."""
    words = rhythm.step + (f", {rhythm.market}" if rhythm.market else "")
    if not rhythm.holes:
        return f"{words}; no holes"
    rows = f"{rhythm.missing:,} row{'s' * (rhythm.missing != 1)} missing"
    longest = f", the longest {rhythm.longest:,}" if rhythm.holes > 1 else ""
    after = f"{longest} after {show_ds(rhythm.before)}"
    return f"{words}; {rhythm.holes:,} hole{'s' * (rhythm.holes != 1)}, {rows}{after}"
