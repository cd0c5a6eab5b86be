"""Calibration meets its levels and is kept only where it helps."""

import importlib

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.calibrate import Calibration, chosen, fit_calibration
from tests.fixtures.prices import LEVELS


def test_calibration_meets_its_levels_on_the_rows_it_was_fitted_on():
    draw = np.random.default_rng(0)
    y = 2 * draw.standard_normal((500, 2)) + 0.3
    scipy = importlib.import_module("scipy.stats")
    quantiles = np.broadcast_to(scipy.norm.ppf(LEVELS), (500, 2, 9))
    found = fit_calibration(y, np.zeros((500, 2)), quantiles, LEVELS)
    moved = found.apply(np.zeros((500, 2)), quantiles)
    for k, level in enumerate(LEVELS):
        assert (y <= moved[..., k]).mean(axis=0) == pytest.approx(level, abs=3 / 500)
    assert (np.diff(moved, axis=-1) >= 0).all()


def test_a_point_forecast_gets_quantiles_from_calibration():
    y = np.random.default_rng(0).standard_normal((400, 1))
    found = fit_calibration(y, np.full((400, 1), 0.5), None, LEVELS)
    assert found.apply(np.full((400, 1), 0.5), None)[0, 0] == pytest.approx(np.quantile(y, LEVELS), abs=0.1)


def test_calibration_is_kept_only_where_it_helps(tmp_path):
    scipy = importlib.import_module("scipy.stats")
    y = np.random.default_rng(0).standard_normal((600, 1))
    ds, point = np.arange(600), np.zeros((600, 1))
    narrow = np.broadcast_to(0.5 * scipy.norm.ppf(LEVELS), (600, 1, 9))
    found = chosen(y, point, narrow, LEVELS, ds, (1,))
    assert found is not None and "held-out halves" in found.why
    found.save(tmp_path)
    again = Calibration.load(tmp_path)
    assert (again.shifts == found.shifts).all() and again.levels == LEVELS
    # The same narrow quantiles at a horizon that leaves 600 / 20 = 30 independent outcomes: too few for a tail of 1/40.
    both = chosen(*(np.repeat(v, 2, axis=1) for v in (y, point, narrow)), LEVELS, ds, (1, 20))
    assert np.allclose(both.shifts[0], found.shifts[0]) and (both.shifts[1] == 0).all()
    # Quantiles that changed their bias half-way: each half's shifts harm the other.
    bias = np.where(ds < 300, 0.5, -0.5)[:, None, None]
    assert chosen(y, point, np.broadcast_to(scipy.norm.ppf(LEVELS), (600, 1, 9)) + bias, LEVELS, ds, (1,)) is None
    assert chosen(y[:35], point[:35], narrow[:35], LEVELS, ds[:35], (1,)) is None
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(InputError, match=r"calibration.json is damaged"):
        Calibration.load(tmp_path)
