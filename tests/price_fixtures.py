"""Small series of prices for tests: simulated with changing volatility, as frames and as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.table import Asset, Prices
from blockyard.tasks.price.data.windows import PriceData


def ohlcv(rows: int = 400, seed: int = 0, start: str = "2015-01-01") -> Any:
    """A frame Date, Open, High, Low, Close, Volume of business days."""
    import pandas as pd

    draw = np.random.default_rng(seed)
    sigma = 0.01 * np.exp(0.8 * np.sin(np.arange(rows) / 25))
    close = 100 * np.exp(np.cumsum(sigma * draw.standard_normal(rows)))
    opening = np.concatenate([[100.0], close[:-1]]) * np.exp(0.2 * sigma * draw.standard_normal(rows))
    up, down = (np.exp(np.abs(sigma * draw.standard_normal(rows)) * 0.5) for _ in range(2))
    return pd.DataFrame({
        "Date": pd.bdate_range(start, periods=rows),
        "Open": opening,
        "High": np.maximum(opening, close) * up,
        "Low": np.minimum(opening, close) / down,
        "Close": close,
        "Volume": np.round(1e6 * np.exp(0.3 * draw.standard_normal(rows))),
    })  # fmt: skip


def asset(rows: int = 400, seed: int = 0, name: str = "A", **extra: np.ndarray) -> Asset:
    frame = ohlcv(rows, seed)
    columns = {part: frame[part.capitalize()].to_numpy() for part in ("close", "open", "high", "low", "volume")}
    return Asset(name, frame["Date"].to_numpy("datetime64[ns]"), **columns, extra=extra)


def prices(rows: int = 400, assets: int = 1, **extra: np.ndarray) -> Prices:
    return Prices(tuple(asset(rows, seed, "ABCDEFGH"[seed], **extra) for seed in range(assets)), "simulated")


def price_data(
    rows: int = 400, assets: int = 1, *, context: int = 16, horizons: tuple[int, ...] = (1, 2, 5), **options: Any
) -> PriceData:
    config = PriceDataConfig(**{"val_fraction": 0.2, "test_fraction": 0.25, **options})
    return PriceData(prices(rows, assets), config, context=context, horizons=horizons)


def write(frame: Any, path: Path) -> str:
    frame.to_csv(path, index=False)
    return str(path)
