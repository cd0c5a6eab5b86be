"""Does anything look ahead? Change the future of a series and see whether what is known of its past changes.

names = lookahead(my_features, prices.assets[0])      # [] when every feature keeps to the past
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from blockyard.errors import InputError
from blockyard.tasks.price.data.table import BARS, Asset, Prices

Columns = Mapping[str, np.ndarray]
# Log of the factor on the future's prices: beyond every price of most series, both ways.
JUMP = 5.0


def perturb_future(asset: Asset, row: int, seed: int = 0, jump: float = 0.0) -> Asset:
    """Return the same asset up to and with `row`, and another course after it: other returns, bars, volumes and extras.

    Dates, and columns that are known in advance, stay: features may look ahead at these.

    Args:
        asset: the series.
        row: the last row that stays.
        seed: of the other course.
        jump: log of the factor by which all later prices and volumes change besides; extras move by as many times
            their range. A maximum over the whole series, say, only shows when the future holds a higher one.
    """
    draw = np.random.default_rng(seed)
    n = len(asset) - row - 1
    factor = np.ones(len(asset))
    # A walk that soon leaves the true one by far, so that even a weak dependence shows.
    factor[row + 1 :] = np.exp(jump + np.cumsum(0.05 * draw.standard_normal(n)))
    bars: dict[str, Any] = {
        name: None if getattr(asset, name) is None else getattr(asset, name) * factor for name in BARS
    }
    volume = asset.volume
    if volume is not None:
        volume = volume.copy()
        volume[row + 1 :] *= np.exp(jump + draw.standard_normal(n))
    extra = {}
    for name, values in asset.extra.items():
        extra[name] = values.copy()
        if asset.scales.get(name) in ("level", "size"):
            # In units of price, and so above 0 for the most part.
            extra[name][row + 1 :] *= factor[row + 1 :] * np.exp(0.05 * draw.standard_normal(n))
            continue
        extra[name][row + 1 :] += (values.std() + 1.0) * draw.standard_normal(n) + jump * np.ptp(values)
    raw = None if asset.raw is None else asset.raw * factor
    return replace(asset, close=asset.close * factor, **bars, volume=volume, extra=extra, raw=raw)


def perturb_futures(prices: Prices, after: object, seed: int = 0) -> Prices:
    """Return every asset with another course after a date."""
    changed = [
        # mypy: numpy types no dates here.
        perturb_future(a, int(np.searchsorted(a.ds, after, "right")) - 1, seed + i)  # type: ignore[call-overload]
        for i, a in enumerate(prices.assets)
    ]
    return replace(prices, assets=tuple(changed))


def perturb_known(asset: Asset, row: int, seed: int = 0) -> Asset:
    """Return the same asset with other values of its columns known in advance, after `row`."""
    draw = np.random.default_rng(seed)
    future = {}
    for name, values in asset.future.items():
        future[name] = values.copy()
        future[name][row + 1 :] += (values.std() + 1.0) * draw.standard_normal(len(values) - row - 1)
    return replace(asset, future=future)


def lookahead(
    compute: Callable[[Asset], Columns], asset: Asset, *, rows: Sequence[int] | None = None, seed: int = 0
) -> list[str]:
    """Return names of the columns whose past depends on the future.

    Args:
        compute: columns by name, one value (or row of values) per row of the asset.
        asset: a series to try it on.
        rows: where to change the future; None = four places spread over the series.
        seed: of the change.

    Raises:
        InputError: when a column has not as many rows as the asset.
    """
    places = rows if rows is not None else [int(len(asset) * part) for part in (0.3, 0.5, 0.75, 0.95)]
    before = compute(asset)
    for name, values in before.items():
        if len(values) != len(asset):
            raise InputError(f"column {name!r} has {len(values)} rows, the asset {len(asset)}")
    leaking: dict[str, None] = {}
    for place, jump in itertools.product(places, (0.0, JUMP, -JUMP)):
        after = compute(perturb_future(asset, place, seed, jump))
        for name, values in before.items():
            if not np.array_equal(values[: place + 1], after[name][: place + 1], equal_nan=True):
                leaking[name] = None
    return list(leaking)
