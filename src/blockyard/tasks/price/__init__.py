"""Price forecasting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.tasks.price.backtest import BacktestConfig as BacktestConfig
    from blockyard.tasks.price.backtest import backtest_table as backtest_table
    from blockyard.tasks.price.backtest import run_backtest as run_backtest
    from blockyard.tasks.price.baselines import run_baselines as run_baselines
    from blockyard.tasks.price.data.config import PriceDataConfig as PriceDataConfig
    from blockyard.tasks.price.data.features import feature_table as feature_table
    from blockyard.tasks.price.data.leakage import lookahead as lookahead
    from blockyard.tasks.price.data.leakage import perturb_future as perturb_future
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
    from blockyard.tasks.price.summary import summarise as summarise
    from blockyard.tasks.price.tables import evaluation_table as evaluation_table
    from blockyard.tasks.price.task import PriceForecasting as PriceForecasting
    from blockyard.tasks.price.task import PriceTask as PriceTask
    from blockyard.tasks.price.walk import walk_forward as walk_forward
else:
    __all__ = exports(
        __name__,
        {
            "backtest": "BacktestConfig backtest_table run_backtest",
            "baselines": "run_baselines",
            "data.config": "PriceDataConfig",
            "data.features": "feature_table",
            "data.leakage": "lookahead perturb_future",
            "data.reader": "read_prices",
            "data.table": "Asset Prices",
            "data.windows": "PriceData load_price_data",
            "evaluate": "evaluate",
            "finish": "finish_run",
            "forecaster": "Forecaster future_table load_forecaster",
            "model": "PriceConfig PriceForecaster PriceOutput",
            "summary": "summarise",
            "tables": "evaluation_table",
            "task": "PriceForecasting PriceTask",
            "walk": "walk_forward",
        },
    )
