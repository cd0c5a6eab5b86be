"""Forecasting prices in Python: frame in, checked; features tried for look-ahead; trained; beside baselines; forecast.

The prices here are simulated, with volatility that comes and goes, so that there is something to forecast.

Run: python examples/forecast_prices.py
"""

import numpy as np
import pandas as pd
import torch

from blockyard.tasks.price import (
    Forecaster,
    PriceConfig,
    PriceData,
    PriceDataConfig,
    PriceTask,
    evaluation_table,
    future_table,
    lookahead,
    read_prices,
    run_baselines,
    summarise,
)
from blockyard.training import TrainConfig


def simulated(rows: int = 1500) -> pd.DataFrame:
    """A long frame: unique_id, ds, y."""
    draw = np.random.default_rng(0)
    sigma = 0.01 * np.exp(np.convolve(draw.standard_normal(rows + 40), np.ones(40) / 8, mode="valid")[:rows])
    y = 100 * np.exp(np.cumsum(sigma * draw.standard_normal(rows)))
    return pd.DataFrame({"unique_id": "SIM", "ds": pd.bdate_range("2015-01-01", periods=rows), "y": y})


def main() -> None:
    prices = read_prices(simulated())
    print(prices.report())
    # Anything computed from prices can be tried: what knows the whole series is named.
    print("look ahead:", lookahead(lambda a: {"share of the highest": a.close / a.close.max()}, prices.assets[0]))

    data = PriceData(prices, PriceDataConfig(), context=32, horizons=(1, 5, 20))
    model = PriceConfig(
        features=data.features, blocks="mla+swiglu", d_model=16, n_layers=1, context=32, horizons=(1, 5, 20)
    )
    task = PriceTask(model, data, TrainConfig(steps=60, batch_size=64))
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for step in range(60):
        loss, _ = task.loss(task.model, task.batch(step, slice(0, 64)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    forecaster = Forecaster(task.model.eval(), name="mla").calibrated(data)
    assets, rows = data.origins("test")
    until, levels = data.borders.val_end, model.quantiles
    everyone, _ = run_baselines(data, levels, assets=assets, rows=rows, fit_until=until)
    everyone["mla"] = forecaster.forecast(data, assets, rows)
    print(evaluation_table(summarise(data, assets, rows, everyone, levels=levels, border=until, repeats=200)))
    print(future_table(forecaster, prices).to_string(index=False))


if __name__ == "__main__":
    main()
