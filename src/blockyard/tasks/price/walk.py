"""Walk-forward evaluation: fold by fold, everything fitted on the past of the fold and judged on the fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.tasks.kind import Run
from blockyard.tasks.price.backtest import HOLD, run_backtest, run_hold, weights_table
from blockyard.tasks.price.baselines import Forecast, run_baselines
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.table import Prices, show_ds
from blockyard.tasks.price.data.windows import PriceAssets, PriceData, PriceTables, parse_ds
from blockyard.tasks.price.forecaster import Calibrate, Forecaster, load_forecaster
from blockyard.tasks.price.model import PriceConfig
from blockyard.tasks.price.positions import BacktestConfig, check_assets, check_horizon, decide
from blockyard.tasks.price.summary import summarise
from blockyard.tasks.price.task import PriceTask
from blockyard.tasks.run import open_trainer
from blockyard.training.folder import CONFIG


@dataclass(frozen=True)
class Fold:
    """Origins that are judged together.

    Args:
        assets: asset number of each.
        rows: row of each.
        until: last date that may be fitted on.
    """

    assets: np.ndarray
    rows: np.ndarray
    until: Any


@dataclass(frozen=True)
class Walked:
    """What a walk-forward evaluation gives.

    Args:
        name: of the model's forecasts.
        summary: as `summarise` makes it.
        earned: backtest of every forecast, and of buying and holding; None for one that the rule cannot trade.
        notes: what a reader should know.
        weights: the model's, each with its dates, as a pandas frame; None where the rule cannot trade it.
    """

    name: str
    summary: dict[str, Any]
    earned: dict[str, dict[str, Any] | None]
    notes: list[str]
    weights: Any = None


def folds_of(tables: PriceTables, start: Any, count: int, embargo: int) -> list[Fold]:
    """Cut the origins after a date into equal stretches of dates.

    Args:
        tables: the assets.
        start: last date that may be fitted on before the first fold.
        count: how many folds.
        embargo: dates left out after each fold's border.

    Raises:
        InputError: when a fold would have no origin.
    """
    assets, rows = tables.between(start)
    ds = tables.dates(assets, rows)
    dates = np.unique(ds)
    if len(dates) < count * (embargo + 2):
        raise InputError(
            f"folds={count}: {len(dates)} dates after {show_ds(start)} have known outcomes, too few; each fold needs "
            f"{embargo + 2} and more to mean anything"
        )
    found = []
    for part in np.array_split(dates, count):
        every = np.unique(np.concatenate([table.ds for table in tables.tables]))
        until = every[int(np.searchsorted(every, part[0])) - 1]
        inside = (ds >= part[min(embargo, len(part) - 1)]) & (ds <= part[-1])
        found.append(Fold(assets[inside], rows[inside], until))
    return found


def walk_forward(
    folder: Path,
    prices: Prices,
    config: BacktestConfig,
    *,
    start: str | None = None,
    folds: int = 1,
    retrain: bool = False,
    out: Path | None = None,
    calibrate: Calibrate = "auto",
    plugins: Sequence[str] = (),
    trust: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Walked:
    """Judge a trained run and the baselines on rows that neither was fitted on.

    Args:
        folder: the run folder.
        prices: the series.
        config: how forecasts become positions.
        start: first date after this one; None = what the run's validation ended with. An earlier one is noted.
        folds: stretches; baselines are fitted anew before each.
        retrain: train the model anew before each fold, too, with the run's own settings.
        out: folder of the retrained runs.
        calibrate: calibration of retrained models.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.
        say: told what is being done.

    Raises:
        InputError: when no rows are left, or the series do not fit the model.
    """
    forecaster, seen, run = load_forecaster(folder, plugins=plugins, trust=trust)
    prices = replace(prices, apart=seen.apart)
    tables = forecaster.tables(prices)
    check_horizon(config, tables.horizons)
    check_assets(config, tables)
    border = _start(seen, tables, start)
    notes = seen.unlike(prices)
    if start is not None and _start(seen, tables, None) > border:
        notes.append(f"dates up to {seen.val_end} were used in training: figures that include them flatter the model")
    forecasts: dict[str, list[Forecast]] = {}
    cut = folds_of(tables, border, folds, run.data.embargo)
    for number, fold in enumerate(cut, start=1):
        say(f"fold {number} of {folds}: {len(fold.rows):,} origins after {show_ds(fold.until)}")
        model = forecaster
        if retrain:
            assert out is not None
            model = _retrained(run, prices, fold.until, out / f"fold-{number}", calibrate)
        beside, missing = run_baselines(
            tables, run.model.quantiles, assets=fold.assets, rows=fold.rows, fit_until=fold.until
        )
        notes += [note for note in missing if note not in notes]
        for name, one in {forecaster.name: model.forecast(tables, fold.assets, fold.rows), **beside}.items():
            forecasts.setdefault(name, []).append(one)
    assets, rows = (np.concatenate([getattr(fold, part) for fold in cut]) for part in ("assets", "rows"))
    # Folds come one after the other; scores and positions want asset after asset.
    order = np.lexsort((rows, assets))
    joined = {name: _join(name, parts, order) for name, parts in forecasts.items()}
    assets, rows, levels = assets[order], rows[order], run.model.quantiles
    summary = summarise(tables, assets, rows, joined, levels=levels, border=cut[0].until)
    earned = {name: run_backtest(tables, assets, rows, one, config, levels) for name, one in joined.items()}
    earned[HOLD] = run_hold(tables, assets, rows, config)
    held = decide(tables, assets, rows, joined[forecaster.name], config, levels)
    weights = None if held is None else weights_table(tables, assets, rows, held, config.lag)
    return Walked(forecaster.name, summary, earned, notes, weights)


def _start(seen: PriceAssets, tables: PriceTables, start: str | None) -> Any:
    dtype = tables.tables[0].ds.dtype
    try:
        border = parse_ds("val_end", seen.val_end, dtype, None)
    except InputError:
        if start is None:
            raise InputError("the run was trained on rows without dates; say where to begin with --from") from None
        border = None
    if start is not None:
        return parse_ds("--from", start, dtype, None)
    last = max(table.ds[-1] for table in tables.tables)
    if last <= border:
        raise InputError(
            f"{tables.prices.source} ends on {show_ds(last)}, and training used dates up to {seen.val_end}; give later "
            "rows, or --from DATE to look at earlier ones all the same"
        )
    return border


def _retrained(
    run: Run[PriceConfig, PriceDataConfig], prices: Prices, until: Any, folder: Path, calibrate: Calibrate
) -> Forecaster:
    """Return the run's model trained anew on everything up to a date."""
    settings = replace(run.data, train_end=None, val_end=show_ds(until))
    model = run.model
    data = PriceData(prices, settings, context=model.context, horizons=model.horizons, features=model.features)
    again = replace(run, data=settings)
    task = PriceTask(model, data, run.train)
    trainer = open_trainer(again, task, folder, resume=(folder / CONFIG).exists())
    try:
        trainer.run()
    finally:
        trainer.close()
    found, _, _ = load_forecaster(folder)
    return found.calibrated(data, calibrate)


def _join(name: str, parts: list[Forecast], order: np.ndarray) -> Forecast:
    quantiles = None
    if all(part.quantiles is not None for part in parts):
        quantiles = np.concatenate([part.quantiles for part in parts if part.quantiles is not None])[order]
    return Forecast(name, np.concatenate([part.point for part in parts])[order], quantiles)
