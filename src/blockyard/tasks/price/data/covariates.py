"""Columns beside prices as features: what a row knows, what is known in advance, and what an asset is.

    lot                    a further column as it stands, known at the end of its row
    log(upper/close)       one in units of price that stays near it: bands, averages, other prices of the day
    atr/close              one that grows with the price: ranges, spreads
    event@0, event@6-10    one known in advance: now, and its mean over the steps from one horizon to the next
    sector=Tech, beta      one value per asset: a feature for each category, or the number

A column in units of price would tell a model how high prices stood in training, and nothing of another asset. The
names say all that computing takes, so that a trained model computes its own features of any file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from blockyard.errors import InputError
from blockyard.tasks.price.data.table import Asset

# How a column of numbers goes with the price: stays near it, grows with it, or is its change.
Scale = Literal["level", "size", "change"]
_LEVEL, _SIZE = re.compile(r"^log\((?P<name>.+)/close\)$"), re.compile(r"^(?P<name>.+)/close$")
_AHEAD = re.compile(r"^(?P<name>.+)@(?P<first>\d+)(?:-(?P<last>\d+))?$")
# A level's distance from the price varies by less than this part of what the price does.
NEAR = 0.5
# Stretches over whose medians a size must follow the price, the least move of the price that shows it (in logs), the
# correlation, and the range of slopes.
BLOCKS, MOVE, FOLLOWS, SLOPES = 10, np.log(2.0), 0.9, (0.6, 1.4)
MOST_CATEGORIES = 50


def scale_of(values: np.ndarray, price: np.ndarray) -> Scale | None:
    """Return whether a column is in units of price, and how it goes with it; None for one that is not.

    Args:
        values: the column, [T].
        price: the price in whose units it would be, [T].
    """
    if len(price) < 3 * BLOCKS or np.ptp(values) == 0:
        return None
    change = np.diff(price)
    if np.median(np.abs(values[1:] - change)) < 0.05 * np.median(np.abs(change)):
        return "change"
    p = np.log(price)
    if (values > 0).all() and np.std(distance := np.log(values) - p) < NEAR * np.std(p):
        return "level" if abs(np.median(distance)) < MOVE else "size"
    size = np.array([np.median(np.abs(part)) for part in np.array_split(values, BLOCKS)])
    if not (size > 0).all():
        return None
    x, y = np.array([np.median(part) for part in np.array_split(p, BLOCKS)]), np.log(size)
    if np.ptp(x) < MOVE or np.ptp(y) == 0:
        return None
    slope = float(np.polyfit(x, y, 1)[0])
    follows = float(np.corrcoef(x, y)[0, 1]) > FOLLOWS and SLOPES[0] < slope < SLOPES[1]
    return "size" if follows else None


def covariate_names(asset: Asset, horizons: Sequence[int] = ()) -> tuple[str, ...]:
    """Return features of an asset's columns beside its prices.

    Args:
        asset: the series.
        horizons: steps ahead of which columns known in advance tell.
    """
    names = []
    for name in asset.extra:
        written = {"level": f"log({name}/close)", "size": f"{name}/close", "change": None}
        scale = asset.scales.get(name)
        feature = name if scale is None else written[scale]
        names += [feature] if feature is not None else []
    return (*names, *known_names(asset, horizons))


def known_names(asset: Asset, horizons: Sequence[int]) -> tuple[str, ...]:
    """Return those among them that do not come from the past: known in advance, or what the asset is."""
    names = []
    for name in asset.future:
        names.append(f"{name}@0")
        for before, h in zip((0, *horizons), horizons):
            names.append(f"{name}@{h}" if h == before + 1 else f"{name}@{before + 1}-{h}")
    for name, value in asset.static.items():
        every = asset.categories.get(name, (value,))
        names += [name] if isinstance(value, float) else [f"{name}={one}" for one in every]
    return tuple(names)


def covariate(asset: Asset, feature: str, all_features: Sequence[str] = ()) -> np.ndarray | None:
    """Return a feature of an asset's columns, [T]; NaN where a future value is not known; None when it has no such
    column.

    Args:
        asset: the series.
        feature: its name.
        all_features: every feature that is wanted, for the categories that are known.

    Raises:
        InputError: for an asset of a category that is none of them.
    """
    found = _past(asset, feature)
    if found is None and (m := _AHEAD.match(feature)) and m["name"] in asset.future:
        found = _ahead(asset.future[m["name"]], len(asset), int(m["first"]), int(m["last"] or m["first"]))
    if found is not None:
        return found
    if feature in asset.static and isinstance(asset.static[feature], float):
        return np.full(len(asset), asset.static[feature])
    for name, value in asset.static.items():
        if isinstance(value, str) and feature.startswith(f"{name}="):
            known = [one.removeprefix(f"{name}=") for one in all_features if one.startswith(f"{name}=")]
            if value not in known:
                had = ", ".join(known)
                raise InputError(f"{name} of {asset.unique_id} is {value!r}, which training had not: {had}")
            return np.full(len(asset), float(feature == f"{name}={value}"))
    return None


def _past(asset: Asset, feature: str) -> np.ndarray | None:
    if feature in asset.extra:
        return asset.extra[feature].astype(np.float64)
    price = asset.close if asset.raw is None else asset.raw
    if (m := _LEVEL.match(feature)) and m["name"] in asset.extra:
        values = asset.extra[m["name"]]
        bad = np.flatnonzero(values <= 0)
        if bad.size:
            raise InputError(
                f"{asset.unique_id}: {m['name']} is {values[bad[0]]:g} on row {int(bad[0]) + 1} of its series, where "
                "training had prices above 0"
            )
        return np.log(values / price)
    if (m := _SIZE.match(feature)) and m["name"] in asset.extra:
        return asset.extra[m["name"]] / price
    return None


def _ahead(values: np.ndarray, rows: int, first: int, last: int) -> np.ndarray:
    """Return the mean of the values `first` to `last` steps after each row, [rows]; NaN where one is not known."""
    found = np.full(rows, np.nan)
    part = values[first:]
    if len(part) >= last - first + 1:
        means = sliding_window_view(part, last - first + 1).mean(axis=-1)[:rows]
        found[: len(means)] = means
    return found


def check_static(values: Mapping[str, Sequence[float | str]]) -> dict[str, tuple[str, ...]]:
    """Return categories of each static column that has any, in the order of their names.

    Args:
        values: of every asset, by column.

    Raises:
        InputError: for a column with more categories than make sense.
    """
    found = {}
    for name, of_assets in values.items():
        if any(isinstance(value, str) for value in of_assets):
            found[name] = tuple(sorted({str(value) for value in of_assets}))
            if len(found[name]) > MOST_CATEGORIES:
                raise InputError(
                    f"data.static: {name} has {len(found[name])} categories, each a feature; at most {MOST_CATEGORIES}"
                )
    return found
