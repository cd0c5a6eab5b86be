"""Training, validation and test parts of price series without leaks, and the windows that a model is fed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.covariates import known_names
from blockyard.tasks.price.data.features import (
    WARM_UP,
    FeatureTable,
    common_features,
    feature_table,
    future_returns,
    targets,
)
from blockyard.tasks.price.data.reader import read_prices
from blockyard.tasks.price.data.rhythm import find_rhythm
from blockyard.tasks.price.data.table import Prices, show_ds

Part = Literal["train", "val", "test"]
# Below these a line is said; and from this ratio of volatilities on, either way.
FEW_ROWS, FEW_ORIGINS, UNLIKE = 1000, 30, 1.5


@dataclass(frozen=True)
class Borders:
    """The last dates of training and of validation; later rows are test. None = to the end."""

    train_end: Any
    val_end: Any

    def describe(self) -> dict[str, str | None]:
        ends = (self.train_end, self.val_end)
        train, val = (None if end is None else show_ds(end) for end in ends)
        return {"train_end": train, "val_end": val}


def borders_of(prices: Prices, config: PriceDataConfig) -> Borders:
    """Return borders by date over all assets, so that no asset's future is another one's past.

    Raises:
        InputError: for a date that cannot be read, or borders in the wrong order.
    """
    dates = np.unique(np.concatenate([asset.ds for asset in prices.assets]))
    n = len(dates)
    last_val = max(int(n * (1 - config.test_fraction)) - 1, 0)
    last_train = max(int(n * (1 - config.test_fraction - config.val_fraction)) - 1, 0)
    train_end = parse_ds("data.train_end", config.train_end, dates.dtype, dates[last_train])
    val_end = parse_ds("data.val_end", config.val_end, dates.dtype, dates[last_val])
    if config.train_end is None and config.val_end is not None:
        before = dates[dates <= val_end]
        share = config.val_fraction / (1 - config.test_fraction)
        train_end = before[max(int(len(before) * (1 - share)) - 1, 0)] if len(before) else train_end
    if not train_end < val_end:
        raise InputError(f"data.train_end={show_ds(train_end)} must come before data.val_end={show_ds(val_end)}")
    return Borders(train_end, val_end)


def parse_ds(option: str, text: str | None, dtype: np.dtype, default: Any) -> Any:
    """Return a date (or row number) as the series' own type."""
    if text is None:
        return default
    try:
        return np.datetime64(str(text), "ns") if dtype.kind == "M" else np.int64(str(text))
    except ValueError as error:
        what = "a date such as 2014-12-31" if dtype.kind == "M" else "a row number: the rows have no dates"
        raise InputError(f"{option}={text!r} should be {what}") from error


def origins_of(table: FeatureTable, part: Part, borders: Borders, context: int, reach: int, embargo: int) -> np.ndarray:
    """Return rows from which a part's forecasts start: the window before is complete, and every label lies inside the
    part.

    Purged: an origin whose furthest label would lie beyond the part's end belongs to no part. Embargo: the first rows
    after a border are left out, too.

    Args:
        table: one asset.
        part: which part.
        borders: where the parts end.
        context: rows of a window.
        reach: the largest horizon.
        embargo: rows left out after a border.
    """
    n = len(table)
    first = WARM_UP + context - 1
    start = {"train": None, "val": borders.train_end, "test": borders.val_end}[part]
    end = {"train": borders.train_end, "val": borders.val_end, "test": None}[part]
    low = first if start is None else max(first, int(np.searchsorted(table.ds, start, "right")) + embargo)
    high = (n if end is None else int(np.searchsorted(table.ds, end, "right"))) - reach
    return _without_holes(table, np.arange(low, max(high, low), dtype=np.int64), reach)


def _without_holes(table: FeatureTable, rows: np.ndarray, reach: int) -> np.ndarray:
    """Return rows from which no label reaches over a hole: what happened there is not a step's return."""
    return rows[~table.steps.crosses(reach)[rows]] if table.steps.hole.any() else rows


def fit_scaling(tables: Sequence[FeatureTable], borders: Borders) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of every feature over the rows of training alone, all assets together.
    [F], [F]."""
    rows = [t.values[WARM_UP : int(np.searchsorted(t.ds, borders.train_end, "right"))] for t in tables]
    seen = np.concatenate(rows)
    if len(seen) < 2:
        raise InputError(f"data.train_end={show_ds(borders.train_end)} leaves no rows to train on")
    std = seen.std(axis=0)
    # A feature that never changed in training says nothing: it is left at 0 wherever it stays so.
    return seen.mean(axis=0), np.where(std > 1e-9, std, 1.0)


@dataclass(frozen=True)
class PriceAssets:
    """What using a trained forecaster takes beside its weights.

    Args:
        features: names of the input's features.
        known: those among them that are known in advance or say what the asset is.
        apart: whether returns over nights and holes are told from those of a step; runs of before did not.
        train_end: last date that training saw.
        val_end: last date that choices were made on.
        assets: names of the series it was trained on.
        source: where they came from.
        step: their step in words, "1 day"; "" where they differ in it, for rows without dates and in runs of before.
    """

    features: tuple[str, ...]
    train_end: str
    val_end: str
    assets: tuple[str, ...]
    source: str
    known: tuple[str, ...] = ()
    apart: bool = False
    step: str = ""

    def unlike(self, prices: Prices) -> list[str]:
        """Return notes of what sets prices apart from those that training saw."""
        notes = []
        for step, names in steps_of(prices).items():
            if self.step and step and step != self.step:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                notes.append(
                    f"{', '.join(names[:3])}{more}: a step is {step}, where training had {self.step}; "
                    "what the model knows of volatility is of its own step"
                )
        return notes


def steps_of(prices: Prices) -> dict[str, list[str]]:
    """Return the steps of series in words ("1 day"; "" for rows without dates), each with the series that have it."""
    found: dict[str, list[str]] = {}
    for asset in prices.assets:
        rhythm = find_rhythm(asset.ds)
        found.setdefault("" if rhythm is None else rhythm.step, []).append(asset.unique_id)
    return found


class PriceTables:
    """Feature tables of one or many assets, and windows of them.

    Args:
        prices: what was read.
        context: rows of a window.
        horizons: steps ahead, rising.
        features: which ones, None = all that every asset allows.
    """

    def __init__(
        self, prices: Prices, *, context: int, horizons: Sequence[int], features: Sequence[str] | None = None
    ) -> None:
        self.prices = prices
        self.context, self.horizons, self.reach = context, tuple(horizons), max(horizons)
        self.features = tuple(common_features(prices, self.horizons) if features is None else features)
        self.tables = [feature_table(asset, self.features, apart=prices.apart) for asset in prices.assets]
        self._starts = np.cumsum([0, *(len(t) for t in self.tables)])[:-1]
        self._inputs = torch.from_numpy(np.concatenate([t.values for t in self.tables]).astype(np.float32))
        y = [targets(t, self.horizons) for t in self.tables]
        self._targets = torch.from_numpy(np.concatenate(y).astype(np.float32))

    def windows(self, assets: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return unscaled features of the windows that end at the given rows: float32 [N, context, F]."""
        last = torch.from_numpy(self._starts[assets] + rows)
        return self._inputs[last[:, None] + torch.arange(1 - self.context, 1)]

    def labels(self, assets: np.ndarray, rows: np.ndarray) -> Tensor:
        """Return targets of the given origins: float32 [N, H]; NaN where they lie beyond the end."""
        return self._targets[torch.from_numpy(self._starts[assets] + rows)]

    def examples(self, assets: np.ndarray, rows: np.ndarray) -> dict[str, Tensor]:
        """Return windows and their targets."""
        return {"x": self.windows(assets, rows), "y": self.labels(assets, rows)}

    def returns(self, assets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return what happened: log returns over each horizon, float64 [N, H]; NaN beyond the end."""
        return self._gather([future_returns(t.log_close, self.horizons) for t in self.tables], assets, rows)

    def unit(self, assets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Compute σ20 · √h, see `FeatureTable.unit`: a target times this is a log return. [N, H]."""
        return self._gather([t.unit(self.horizons) for t in self.tables], assets, rows)

    def dates(self, assets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the date of each row, [N]."""
        return self._gather([t.ds for t in self.tables], assets, rows)

    def between(self, after: Any, until: Any = None, *, labelled: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return asset and row numbers of all origins after a date (None: from the first full window on).

        Args:
            after: a date.
            until: the last date of a label, or of an origin where labels do not matter; None = to the end.
            labelled: leave out origins whose furthest label is not known, or lies beyond a hole.
        """
        found = []
        for table in self.tables:
            low = WARM_UP + self.context - 1
            if after is not None:
                low = max(low, int(np.searchsorted(table.ds, after, "right")))
            high = len(table) if until is None else int(np.searchsorted(table.ds, until, "right"))
            rows = np.arange(low, max(low, high - (self.reach if labelled else 0)), dtype=np.int64)
            found.append(_without_holes(table, rows, self.reach) if labelled else rows)
        return np.repeat(np.arange(len(found)), [len(rows) for rows in found]), np.concatenate(found)

    def _gather(self, per_asset: Sequence[np.ndarray], assets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.concatenate(per_asset)[self._starts[assets] + rows]
        return found


class PriceData(PriceTables):
    """Windows of one or many assets, split by date.

    Args:
        prices: what was read.
        config: borders and embargo.
        context: rows of a window.
        horizons: steps ahead, rising.
        features: which ones, None = all that every asset allows.

    Raises:
        InputError: when a part is too short.
    """

    def __init__(
        self,
        prices: Prices,
        config: PriceDataConfig,
        *,
        context: int,
        horizons: Sequence[int],
        features: Sequence[str] | None = None,
    ) -> None:
        super().__init__(prices, context=context, horizons=horizons, features=features)
        self.config = config
        self.borders = borders_of(prices, config)
        self._parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for part in ("train", "val", "test"):
            if not len(self.origins(part)[0]):
                raise InputError(self._too_short(part))
        self.mean, self.std = fit_scaling(self.tables, self.borders)
        self.fingerprint: dict[str, Any] = prices.fingerprint() | self.borders.describe()
        if prices.apart and any(t.steps.intraday or not t.steps.plain for t in self.tables):
            # A run that was begun when every return was one of a step would go on with other inputs.
            told = f"{self.fingerprint['sha256']}\0nights and holes apart"
            self.fingerprint["sha256"] = sha256(told.encode()).hexdigest()
        self.notes = self._warnings()
        # Kept here by whoever computes them first: they depend on nothing but the data.
        self.baselines: dict[str, Any] | None = None

    @property
    def assets(self) -> PriceAssets:
        """What a trained model needs beside its weights."""
        ends = self.borders.describe()
        names = tuple(asset.unique_id for asset in self.prices.assets)
        possible = known_names(self.prices.assets[0], self.horizons)
        known = tuple(name for name in self.features if name in possible)
        steps = steps_of(self.prices)
        return PriceAssets(
            self.features,
            str(ends["train_end"]),
            str(ends["val_end"]),
            names,
            self.prices.source,
            known,
            self.prices.apart,
            next(iter(steps)) if len(steps) == 1 else "",
        )

    def origins(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return asset numbers and row numbers of a part's origins, asset after asset."""
        if part not in self._parts:
            name: Any = part
            found = [
                origins_of(t, name, self.borders, self.context, self.reach, self.config.embargo) for t in self.tables
            ]
            assets = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
            self._parts[part] = assets, np.concatenate(found)
        return self._parts[part]

    def batch(self, seed: int, step: int, batch_size: int, rows: slice) -> dict[str, Tensor]:
        """Return rows of the global training batch of a step: a pure function of (seed, step)."""
        assets, origins = self.origins("train")
        # As for text: the raw bits of Philox are fixed for good.
        bits = np.random.Philox(key=seed | step << 64).random_raw(batch_size)[rows]
        chosen = (bits % np.uint64(len(origins))).astype(np.int64)
        return self.examples(assets[chosen], origins[chosen])

    def batches(self, part: str, batch_size: int, limit: int | None = None) -> Iterator[dict[str, Tensor]]:
        """Yield a part in order, in batches; with a limit, at most so many, evenly spread over the part."""
        assets, rows = self.origins(part)
        wanted = len(rows) if limit is None else min(len(rows), limit * batch_size)
        chosen = np.arange(wanted, dtype=np.int64) * len(rows) // wanted
        for start in range(0, wanted, batch_size):
            some = chosen[start : start + batch_size]
            yield self.examples(assets[some], rows[some])

    def describe(self) -> str:
        """Return the parts in words."""
        words = []
        for part in ("train", "val", "test"):
            ds = self.dates(*self.origins(part))
            words.append(f"{part} {len(ds):,} origins {show_ds(ds.min())} … {show_ds(ds.max())}")
        return "; ".join(words)

    def _warnings(self) -> tuple[str, ...]:
        """Return what a reader of the results should know of the data: too little of it, or a test unlike the
        training."""
        notes = []
        rows, longest = len(self.prices), max(len(t) for t in self.tables)
        if longest < FEW_ROWS:
            notes.append(f"{longest:,} rows are few ({rows:,} in all): below {FEW_ROWS:,} EWMA or GARCH do as well")
        origins = len(self.origins("val")[0])
        if origins < FEW_ORIGINS:
            notes.append(f"{origins} validation origins choose the checkpoint: below {FEW_ORIGINS} they do by chance")
        size = {part: self._size_of_steps(part) for part in ("train", "test")}
        ratio = size["test"] / max(size["train"], 1e-12)
        if not 1 / UNLIKE < ratio < UNLIKE:
            word = "calmer" if ratio < 1 else "wilder"
            notes.append(
                f"the test span is {word} than training: its steps are {ratio:.2f} times as large, and skill against "
                "the unconditional distribution is mostly that"
            )
        return tuple(notes)

    def _size_of_steps(self, part: str) -> float:
        """Return the root mean square of the returns of one step from the first to the last origin of a part."""
        assets, rows = self.origins(part)
        squares = []
        for number, table in enumerate(self.tables):
            mine = rows[assets == number]
            if len(mine):
                inside = slice(int(mine[0]) + 1, int(mine[-1]) + 2)
                r = np.diff(table.log_close, prepend=table.log_close[0])[inside]
                squares.append(r[table.steps.within[inside]] ** 2)
        return float(np.sqrt(np.concatenate(squares).mean()))

    def _too_short(self, part: str) -> str:
        longest = max(len(t) for t in self.tables)
        need = WARM_UP + self.context + self.reach
        return (
            f"{self.prices.source}: no {part} window fits; the longest series has {longest} rows, and training needs "
            f"{need} ({WARM_UP} of warm-up, model.context={self.context}, horizon {self.reach}), validation and test "
            f"{self.reach + self.config.embargo} each and more to mean anything; give more rows, a shorter "
            f"model.context or horizons, or other data.train_end and data.val_end{self._holes()}"
        )

    def _holes(self) -> str:
        holes = sum(int(t.steps.hole.sum()) for t in self.tables)
        return f"; {holes:,} holes, which no label may reach over, leave fewer windows" if holes else ""


def load_price_data(config: PriceDataConfig, *, context: int, horizons: Sequence[int], source: Any = None) -> PriceData:
    """Read what the configuration names (or `source`) and cut it into parts."""
    # The parts' own check says better what is missing; this one is for files without any sense of scale.
    prices = read_prices(source, config, least=WARM_UP + context + max(horizons))
    return PriceData(prices, config, context=context, horizons=horizons)
