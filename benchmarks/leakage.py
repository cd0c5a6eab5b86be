"""The leakage zoo, measured: what four common mistakes add to a figure that is worth nothing.

    python benchmarks/leakage.py --out leakage.json

S&P 500 daily bars of the `arch` package, ridge regression or nearest neighbours, so that everything is the mistake and
nothing the model. Honest figures stand beside the leaking ones on the same rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from blockyard.tasks.price.data.features import feature_table, future_returns
from blockyard.tasks.price.data.reader import read_prices

TEST = 0.2


def ridge(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, strength: float = 10.0) -> np.ndarray:
    """Predictions for the test rows."""
    mean, std = x[train].mean(axis=0), x[train].std(axis=0) + 1e-12
    z = (x - mean) / std
    a, level = z[train], y[train].mean()
    return z[test] @ np.linalg.solve(a.T @ a + strength * np.eye(x.shape[1]), a.T @ (y[train] - level)) + level


def r2(y: np.ndarray, forecast: np.ndarray) -> float:
    """1 − squared error ÷ that of the mean."""
    return float(1 - np.mean((y - forecast) ** 2) / np.var(y))


def split(rows: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """The first four fifths less `gap` rows, and the last fifth."""
    cut = int(len(rows) * (1 - TEST))
    return rows[: cut - gap], rows[cut:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    asset = read_prices().assets[0]
    table = feature_table(asset)
    p, x = table.log_close, table.values
    found: dict[str, dict[str, float]] = {}

    # 1. A random split: neighbours of every test row, whose 30-step labels share 29 steps, are in the training rows.
    y = future_returns(p, (30,))[:, 0]
    rows = np.arange(250, len(p) - 30)
    # Features that change slowly let any flexible model recognise a row's neighbours; here the five nearest rows.
    slow = [np.roll(p, k) - p for k in (20, 60, 120, 250)]
    slow += [x[:, table.names.index(name)] for name in ("return_60", "volatility_20", "volatility_60", "drawdown")]
    slowly = np.stack(slow, axis=1)
    shuffled = np.random.default_rng(0).permutation(rows)
    cut = int(len(rows) * (1 - TEST))
    a, b = shuffled[:cut], shuffled[cut:]
    leak = r2(y[b], nearest(slowly, y, a, b))
    a, b = split(rows, 30)
    found["random split, 30-step return, R²"] = {"leaking": leak, "honest": r2(y[b], nearest(slowly, y, a, b))}

    # 2. Scaling by the whole series: min-max tells how far the price is from its final highest.
    def level(scaled: Callable[[np.ndarray], np.ndarray]) -> float:
        y = future_returns(p, (250,))[:, 0]
        rows = np.arange(250, len(p) - 250)
        s = scaled(p)[:, None]
        waves = np.concatenate([s, s**2], axis=1)
        # Judged as published figures are: fitted and scored on the same span.
        return r2(y[rows], ridge(waves, y, rows, rows, 1e-6))

    expanding = lambda p: (p - running(p, np.minimum)) / (running(p, np.maximum) - running(p, np.minimum) + 1e-9)  # noqa: E731
    found["min-max over the whole series, 250-step return, R²"] = {
        "leaking": level(lambda p: (p - p.min()) / np.ptp(p)),
        "honest": level(expanding),
    }

    # 3. A z-score over window and horizon together: the mean of the inputs gives the outcome away.
    look, ahead = 60, 20
    windows = np.lib.stride_tricks.sliding_window_view(p, look + ahead)
    both = (windows - windows.mean(axis=1, keepdims=True)) / windows.std(axis=1, keepdims=True)
    past = (windows - windows[:, :look].mean(axis=1, keepdims=True)) / windows[:, :look].std(axis=1, keepdims=True)
    a, b = split(np.arange(len(windows)), look + ahead)
    up = windows[:, -1] > windows[:, look - 1]
    rates = {}
    for name, scaled in (("leaking", both), ("honest", past)):
        move = scaled[:, -1] - scaled[:, look - 1]
        forecast = ridge(scaled[:, :look], move, a, b)
        rates[name] = float(np.mean((forecast > 0) == up[b]) - up[b].mean())
    found["z-score over window and horizon, hit rate − always up, h = 20"] = rates

    # 4. The level as target: the last close "explains" the next one.
    a, b = split(np.arange(len(p) - 1), 1)
    price = np.exp(p)
    found["price level as target, R² of the last close, h = 1"] = {
        "leaking": r2(price[b + 1], price[b]),
        "honest": r2(p[b + 1] - p[b], np.zeros(len(b))),
    }
    for name, values in found.items():
        print(f"{name}: {values['leaking']:+.3f}; honestly {values['honest']:+.3f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def running(p: np.ndarray, function: np.ufunc) -> np.ndarray:
    """Largest or smallest value so far."""
    found: np.ndarray = function.accumulate(p)
    return found


def nearest(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, k: int = 5) -> np.ndarray:
    """The mean outcome of the k training rows whose scaled features are nearest."""
    mean, std = x[train].mean(axis=0), x[train].std(axis=0)
    a, b = ((x[rows] - mean) / std for rows in (train, test))
    distance = (b**2).sum(axis=1)[:, None] - 2 * b @ a.T + (a**2).sum(axis=1)
    found: np.ndarray = y[train][np.argpartition(distance, k, axis=1)[:, :k]].mean(axis=1)
    return found


if __name__ == "__main__":
    main()
