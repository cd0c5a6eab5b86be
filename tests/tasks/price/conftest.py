"""Fixtures of the price task."""

import pytest

from blockyard.tasks.price.baselines import run_baselines
from tests.fixtures.prices import LEVELS, price_data


@pytest.fixture(scope="module")
def data():
    return price_data(500, 2)


@pytest.fixture(scope="module")
def beside(data):
    assets, rows = data.origins("test")
    found, notes = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end)
    assert notes == []
    return found
