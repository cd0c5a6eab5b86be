"""Price forecasting: windows of features in, the distribution of the return at each horizon out, baselines beside it.

    target = log(close[t+h] / close[t]) ÷ (σ20 √h), σ20 the root mean square of the last 20 returns
    skill  = 1 − pinball loss of the forecast ÷ that of the unconditional distribution before the test

Everything in row t is known at the close of row t. Parts are split by date, and an origin whose label crosses a border
belongs to none; scaling is fitted on training rows alone.

Where to read, in this order:

    data/            prices in, checked; features and targets; windows without leaks; the look-ahead check
    model.py         PriceForecaster, with embedding.py (windows to tokens) and heads.py (quantiles, Student-t, point)
    task.py          PriceForecasting, the kind; PriceTask
    forecaster.py    a trained model, its calibration (calibrate.py) and a file's future as a table (dates: future.py)
    baselines.py     forecasts that need no net: variance.py (EWMA, HAR, GARCH), automatic.py (statsforecast), past.py
    evaluate.py      scores with intervals (scores.py) of forecasts of the same origins, also beside EWMA and GARCH
    walk.py          walk-forward evaluation; positions.py: from forecasts to weights, with rules, target and limits
    backtest.py      what weights would have earned, with lag and costs; earnings.py: in figures, drawdowns, months
    sheet.py         the tear sheet, drawn by sheet_charts.py; backtest_folder.py: which backtest a folder holds
    finish.py        what follows training: calibration, the test, plots
    report.py        what a comparison adds, from summary.py (also as text); charts.py draws it
    presets.py       the price document's sizes; estimate.py: how long a training will take

It forecasts how far prices may move, about as well as EWMA and GARCH, and not which way. With less than a thousand rows
use those.

Files, leaks, figures and the document's errors: docs/prices.md; an example: examples/forecast_prices.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.price.backtest import backtest_table as backtest_table
    from blockyard.tasks.price.backtest import run_backtest as run_backtest
    from blockyard.tasks.price.backtest import run_hold as run_hold
    from blockyard.tasks.price.baselines import run_baselines as run_baselines
    from blockyard.tasks.price.data.config import PriceDataConfig as PriceDataConfig
    from blockyard.tasks.price.data.features import feature_table as feature_table
    from blockyard.tasks.price.data.leakage import lookahead as lookahead
    from blockyard.tasks.price.data.leakage import perturb_future as perturb_future
    from blockyard.tasks.price.data.leakage import perturb_known as perturb_known
    from blockyard.tasks.price.data.reader import read_prices as read_prices
    from blockyard.tasks.price.data.table import Asset as Asset
    from blockyard.tasks.price.data.table import Prices as Prices
    from blockyard.tasks.price.data.windows import PriceData as PriceData
    from blockyard.tasks.price.data.windows import load_price_data as load_price_data
    from blockyard.tasks.price.evaluate import evaluate as evaluate
    from blockyard.tasks.price.finish import finish_run as finish_run
    from blockyard.tasks.price.forecaster import Forecaster as Forecaster
    from blockyard.tasks.price.forecaster import future_table as future_table
    from blockyard.tasks.price.forecaster import load_forecaster as load_forecaster
    from blockyard.tasks.price.model import PriceConfig as PriceConfig
    from blockyard.tasks.price.model import PriceForecaster as PriceForecaster
    from blockyard.tasks.price.model import PriceOutput as PriceOutput
    from blockyard.tasks.price.positions import BacktestConfig as BacktestConfig
    from blockyard.tasks.price.positions import decide as decide
    from blockyard.tasks.price.summary import evaluation_table as evaluation_table
    from blockyard.tasks.price.summary import summarise as summarise
    from blockyard.tasks.price.task import PriceForecasting as PriceForecasting
    from blockyard.tasks.price.task import PriceTask as PriceTask
    from blockyard.tasks.price.walk import walk_forward as walk_forward
else:
    __all__ = exports(
        __name__,
        {
            "backtest": "backtest_table run_backtest run_hold",
            "baselines": "run_baselines",
            "data.config": "PriceDataConfig",
            "data.features": "feature_table",
            "data.leakage": "lookahead perturb_future perturb_known",
            "data.reader": "read_prices",
            "data.table": "Asset Prices",
            "data.windows": "PriceData load_price_data",
            "evaluate": "evaluate",
            "finish": "finish_run",
            "forecaster": "Forecaster future_table load_forecaster",
            "model": "PriceConfig PriceForecaster PriceOutput",
            "positions": "BacktestConfig decide",
            "summary": "evaluation_table summarise",
            "task": "PriceForecasting PriceTask",
            "walk": "walk_forward",
        },
    )
