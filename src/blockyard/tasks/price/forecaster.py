"""A trained forecaster and what is done with it: forecasts of origins, and of a file's future as a tidy table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.files import writing
from blockyard.tasks.kind import Run
from blockyard.tasks.price.baselines import Forecast
from blockyard.tasks.price.calibrate import FILE, Calibration, chosen, fit_calibration
from blockyard.tasks.price.data.clock import in_zone
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.features import WARM_UP
from blockyard.tasks.price.data.table import Asset, Prices, show_ds
from blockyard.tasks.price.data.windows import PriceAssets, PriceData, PriceTables, parse_ds
from blockyard.tasks.price.future import future_dates
from blockyard.tasks.price.model import PriceConfig, PriceForecaster
from blockyard.tasks.run import load_run

if TYPE_CHECKING:
    import pandas as pd

ROWS = 256
Calibrate = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class Forecaster:
    """A model with its calibration.

    Args:
        model: in eval mode.
        calibration: shifts of its quantiles, or None.
        name: as tables show it.
        apart: whether it knows returns over nights and holes from those of a step (see steps.py); None = as the prices.
    """

    model: PriceForecaster
    calibration: Calibration | None = None
    name: str = "model"
    apart: bool | None = None

    @property
    def config(self) -> PriceConfig:
        return self.model.config

    def tables(self, prices: Prices) -> PriceTables:
        """Return the series as this model sees them.

        Raises:
            InputError: when a series lacks a feature that the model was trained with, or is too short.
        """
        need = WARM_UP + self.config.context
        for asset in prices.assets:
            if len(asset) < need:
                raise InputError(
                    f"{prices.source}: {asset.unique_id} has {len(asset)} rows, too few: a forecast takes {need} "
                    f"({WARM_UP} of warm-up and the model's context of {self.config.context})"
                )
        config = self.config
        if self.apart is not None:
            prices = replace(prices, apart=self.apart)
        return PriceTables(prices, context=config.context, horizons=config.horizons, features=config.features)

    def units(self, tables: PriceTables, assets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return uncalibrated forecasts in units of σ20 √h: points [N, H], quantiles [N, H, levels] or None."""
        starts = range(0, len(rows), ROWS)
        return predictions(self.model, (tables.windows(assets[i : i + ROWS], rows[i : i + ROWS]) for i in starts))

    def forecast(self, tables: PriceTables, assets: np.ndarray, rows: np.ndarray) -> Forecast:
        """Log returns over each horizon from the given origins (asset numbers and rows)."""
        point, quantiles = self.units(tables, assets, rows)
        if self.calibration is not None:
            quantiles = self.calibration.apply(point, quantiles)
        unit = tables.unit(assets, rows)
        return Forecast(self.name, point * unit, None if quantiles is None else quantiles * unit[..., None])

    def calibrated(self, data: PriceData, how: Calibrate = "auto") -> Forecaster:
        """Return the same model, calibrated on the validation part.

        Args:
            data: the data it was trained on.
            how: `on`, `off`, or `auto`: horizons with rows enough where one half of the part says that it helps the
                other. A model of points needs calibration for its quantiles, so for it `auto` means on.
        """
        if how == "off":
            return replace(self, calibration=None)
        assets, rows = data.origins("val")
        point, quantiles = self.units(data, assets, rows)
        y = data.returns(assets, rows) / data.unit(assets, rows)
        levels = self.config.quantiles
        if how == "on" or quantiles is None:
            return replace(self, calibration=fit_calibration(y, point, quantiles, levels))
        found = chosen(y, point, quantiles, levels, data.dates(assets, rows), data.horizons)
        return replace(self, calibration=found)


def load_forecaster(
    folder: Path | str, *, plugins: Sequence[str] = (), trust: bool = False
) -> tuple[Forecaster, PriceAssets, Run[PriceConfig, PriceDataConfig]]:
    """Return the forecaster of a run folder: its best checkpoint by validation loss, and its calibration.

    Args:
        folder: the run folder.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.

    Raises:
        InputError: when the folder holds no run of a price forecaster, no checkpoint, a damaged one, or wants a plug-in
            that is not agreed to.
    """
    folder = Path(folder)
    model, assets, run = load_run(folder, which="best", tasks=("price",), plugins=plugins, trust=trust)
    calibration = Calibration.load(folder)
    if calibration is not None and not calibration.fits(run.model.horizons, run.model.quantiles):
        raise InputError(f"{folder / FILE} is of another model; remove it to forecast without calibration")
    return Forecaster(model, calibration, short_name(run.model), assets.apart), assets, run


def short_name(config: PriceConfig) -> str:
    """Return the blocks without their options: "mla+swiglu", or "spectral+swiglu/standard+swiglu"."""
    return "/".join(dict.fromkeys(f"{spec.attn}+{spec.ffn}" for spec in config.layers))


def future_table(forecaster: Forecaster, prices: Prices, at: str | None = None, *, calendar: str | None = None) -> Any:
    """Return forecasts from the last row of every asset (or from a date) as a tidy pandas frame.

    Args:
        forecaster: a trained one.
        prices: the series.
        at: the date to forecast from; later rows are not looked at.
        calendar: an exchange's code such as XNYS, for the holidays among the dates forecast.

    Returns: one row per asset and horizon: unique_id, cutoff (the origin's date), ds (the date forecast), horizon,
        last (the origin's price), price (the median as the model has it, which calibration does not move), q0.05 …
        (quantiles of the price, calibrated where the run is, so q0.5 may be another than that). Dates are on the
        clock of the asset's file.

    Raises:
        InputError: when a series is too short or lacks a feature.
    """
    pandas = require("pandas", extra="prices")
    if at is not None:
        prices = _until(prices, at)
    dates = [_dates_ahead(asset, forecaster.config, prices.source, calendar) for asset in prices.assets]
    tables = forecaster.tables(prices)
    assets = np.arange(len(tables.tables))
    rows = np.array([len(table) - 1 for table in tables.tables])
    found = forecaster.forecast(tables, assets, rows)
    levels, horizons = forecaster.config.quantiles, tables.horizons
    frames = []
    for number, table in enumerate(tables.tables):
        last = float(table.price[-1])
        columns: dict[str, Any] = {
            "unique_id": table.unique_id,
            "cutoff": in_zone(table.ds[-1:], prices.assets[number].zone)[0],
            "ds": in_zone(dates[number], prices.assets[number].zone),
            "horizon": list(horizons),
            "last": last,
            "price": last * np.exp(found.point[number]),
        }
        if found.quantiles is not None:
            columns |= {f"q{level:g}": last * np.exp(found.quantiles[number, :, k]) for k, level in enumerate(levels)}
        frames.append(pandas.DataFrame(columns))
    return pandas.concat(frames, ignore_index=True)


def _dates_ahead(asset: Asset, config: PriceConfig, source: str, calendar: str | None) -> np.ndarray:
    """Return dates of the steps that are forecast; where columns known in advance are inputs, those of their rows.

    Raises:
        InputError: when the rows ahead are too few, or not those of the steps.
    """
    expected = future_dates(asset.ds, config.horizons, calendar)
    if not config.known or not asset.future:
        return expected
    reach, ahead = max(config.horizons), asset.ahead
    names = ", ".join(asset.future)
    have = 0 if ahead is None else len(ahead)
    if ahead is None or have < reach:
        raise InputError(
            f"{source}: {asset.unique_id} has {have} rows after {show_ds(asset.ds[-1])} with values of {names}, and a "
            f"forecast takes them for {reach} steps; add rows with a date, {names} and no price"
        )
    steps = future_dates(asset.ds, range(1, reach + 1), calendar)
    inside = steps[steps <= ahead[reach - 1]]
    missing = np.setdiff1d(inside, ahead)
    # A few holidays may be missing, which the file knows better.
    if len(missing) > 1 + reach // 10 or len(inside) < reach // 2:
        first = show_ds(missing[0] if len(missing) else ahead[0])
        raise InputError(
            f"{source}: the rows of {asset.unique_id} after {show_ds(asset.ds[-1])} are not those of its next {reach} "
            f"steps, from {first} on; give {names} for every step"
        )
    found: np.ndarray = ahead[np.asarray(config.horizons) - 1]
    return found


def _until(prices: Prices, at: str) -> Prices:
    cut = []
    for asset in prices.assets:
        end = int(np.searchsorted(asset.ds, parse_ds("--at", at, asset.ds.dtype, None), "right"))
        if not end:
            raise InputError(f"--at={at}: {asset.unique_id} begins later, {asset.span()}")
        cut.append(asset.until(end))
    return replace(prices, assets=tuple(cut))


def write_table(frame: pd.DataFrame, out: Path) -> None:
    """Write a tidy frame as CSV or, by its suffix, parquet.

    Raises:
        InputError: when the file cannot be written.
    """
    parquet = out.suffix.lower() in (".parquet", ".pq")
    if parquet:
        require("pyarrow", extra="prices")
    with writing(out) as file:
        if parquet:
            frame.to_parquet(file, index=False)
        else:
            frame.to_csv(file, index=False, float_format="%.8g")


def predictions(model: nn.Module, windows: Iterator[Tensor]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return forecasts of windows in batches, in units of σ20 √h.

    Returns: points [N, H], and quantiles [N, H, levels] (None with head=point), float64.
    """
    device = next(model.parameters()).device
    points, quantiles = [], []
    model.eval()
    with torch.no_grad():
        for x in windows:
            output = model(x.to(device))
            points.append(output.point.double().cpu().numpy())
            if output.quantiles is not None:
                quantiles.append(output.quantiles.double().cpu().numpy())
    return np.concatenate(points), np.concatenate(quantiles) if quantiles else None
