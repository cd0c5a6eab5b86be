"""The search for look-ahead: it finds nothing in the features and everything in leaky ones."""

from dataclasses import replace

import numpy as np

from blockyard.tasks.price.data.features import feature_table
from blockyard.tasks.price.data.leakage import lookahead, perturb_future
from blockyard.tasks.price.data.table import Asset
from tests.fixtures.prices import asset


def columns(one: Asset) -> dict[str, np.ndarray]:
    table = feature_table(one)
    return {name: table.values[:, k] for k, name in enumerate(table.names)} | {"sigma": table.sigma}


def test_no_feature_and_no_sigma_looks_ahead():
    assert lookahead(columns, asset(300, extra=np.random.default_rng(0).standard_normal(300))) == []


def leaky(one: Asset) -> dict[str, np.ndarray]:
    """Honest columns, and four ways in which features leak in published code."""
    p = np.log(one.close)
    centred = np.convolve(p, np.ones(5) / 5, mode="same")
    return {
        **columns(one),
        "centred mean": centred,
        "whole-series z-score": (p - p.mean()) / p.std(),
        "min-max": (p - p.min()) / np.ptp(p),
        "next open": np.append(one.open[1:], one.open[-1]),
        "share of the highest": one.close / one.close.max(),
        "share of the lowest": one.close / one.close.min(),
    }


def test_deliberately_leaky_features_are_found():
    one = asset(300)
    # The series' own extremes lie early, where no ordinary future reaches them.
    one = replace(one, close=one.close * np.where(np.arange(300) == 5, 3.0, np.where(np.arange(300) == 6, 0.3, 1.0)))
    leaks = [
        "centred mean",
        "whole-series z-score",
        "min-max",
        "next open",
        "share of the highest",
        "share of the lowest",
    ]
    assert sorted(lookahead(leaky, one)) == sorted(leaks)


def test_changing_the_future_leaves_the_past_and_changes_the_rest():
    one = asset(100, seed=3)
    changed = perturb_future(one, 60)
    assert (changed.close[:61] == one.close[:61]).all() and (changed.close[61:] != one.close[61:]).all()
    assert (changed.volume[61:] != one.volume[61:]).all()
    assert (changed.low <= changed.high).all()
