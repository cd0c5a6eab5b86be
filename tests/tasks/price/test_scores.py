"""Scores against slow definitions and other packages, and a summary of them."""

import importlib
import math

import numpy as np
import pytest

from blockyard.errors import InputError
from blockyard.tasks.price.baselines import Forecast, run_baselines
from blockyard.tasks.price.evaluate import evaluate, outcome_of
from blockyard.tasks.price.scores import (
    block_length,
    correlation,
    covered,
    crps,
    hits,
    moments,
    pinball_loss,
    ranks,
    tenths,
)
from blockyard.tasks.price.summary import evaluation_table
from tests.fixtures.prices import LEVELS, price_data


def test_pinball_loss_is_its_definition():
    y, q = np.array([1.0, -2.0]), np.array([[0.0, 2.0], [-3.0, -1.0]])
    slow = [
        np.mean([t * (v - a) if v > a else (1 - t) * (a - v) for t, a in zip((0.1, 0.9), row)]) for v, row in zip(y, q)
    ]
    assert pinball_loss(y, q, (0.1, 0.9)) == pytest.approx(slow)


def test_pinball_loss_agrees_with_scoringrules():
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    draw = np.random.default_rng(0)
    y, q = draw.standard_normal(50), np.sort(draw.standard_normal((50, 9)), axis=1)
    each = [scoringrules.quantile_score(y, q[:, k], level) for k, level in enumerate(LEVELS)]
    assert pinball_loss(y, q, LEVELS) == pytest.approx(np.mean(each, axis=0))


def test_crps_from_quantiles_is_near_that_of_the_normal_distribution():
    scipy = importlib.import_module("scipy.stats")
    y = np.linspace(-2, 2, 9)
    quantiles = np.broadcast_to(scipy.norm.ppf(LEVELS), (9, 9))
    exact = y * (2 * scipy.norm.cdf(y) - 1) + 2 * scipy.norm.pdf(y) - 1 / math.sqrt(math.pi)
    assert crps(y, quantiles, LEVELS) == pytest.approx(exact, rel=0.16)
    fine = np.arange(1, 200) / 200
    assert crps(y, np.broadcast_to(scipy.norm.ppf(fine), (9, 199)), fine) == pytest.approx(exact, rel=0.01)


def test_coverage_counts_what_lies_between_the_two_levels():
    y, q = np.array([0.0, 2.0, -1.0]), np.broadcast_to(np.linspace(-1, 1, 9), (3, 9))
    assert covered(y, q, LEVELS, 0.9).tolist() == [1, 0, 0]
    assert covered(y, q, LEVELS, 0.95).tolist() == [1, 0, 1]
    assert covered(y, q, LEVELS, 0.6) is None


def test_ranks_and_correlations_agree_with_scipy():
    scipy = importlib.import_module("scipy.stats")
    draw = np.random.default_rng(1)
    x, y = np.round(draw.standard_normal(80), 1), draw.standard_normal(80)
    assert (ranks(x) + 1 == scipy.rankdata(x)).all()
    assert float(correlation(moments(x, y).mean(axis=0))) == pytest.approx(scipy.pearsonr(x, y).statistic)
    assert float(correlation(moments(ranks(x), ranks(y)).mean(axis=0))) == pytest.approx(
        scipy.spearmanr(x, y).statistic
    )
    assert float(correlation(moments(np.ones(80), y).mean(axis=0))) == 0


def test_a_forecast_without_a_sign_hits_half():
    assert hits(np.array([1.0, -1.0, 1.0]), np.array([2.0, 3.0, 0.0])).tolist() == [1, 0, 0.5]


def test_an_oracle_scores_well_and_the_reference_scores_nothing(data, beside):
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    sharp = outcome.y[..., None] + 1e-4 * np.linspace(-1, 1, 9)
    found = evaluate(outcome, {**beside, "oracle": Forecast("oracle", outcome.y, sharp)}, repeats=100)["forecasts"]
    assert found["unconditional"]["skill"][0]["value"] == 0
    assert found["oracle"]["skill"][0]["value"] > 0.95 and found["oracle"]["crps_skill"][0]["value"] > 0.95
    assert found["oracle"]["ic"][1]["value"] == pytest.approx(1) and found["oracle"]["rank_ic"][1][
        "value"
    ] == pytest.approx(1)
    assert found["oracle"]["rmse_ratio"][0]["value"] == 0 and found["oracle"]["mase_ratio"][2]["value"] == 0
    assert found["oracle"]["hit_minus_up"][0]["value"] == pytest.approx((outcome.y[:, 0] <= 0).mean())
    assert found["random walk"]["ic"][0] is None and found["random walk"]["rmse_ratio"][0]["value"] == 1
    with pytest.raises(InputError, match="lack 'random walk'"):
        evaluate(outcome, {"unconditional": beside["unconditional"]})


def test_many_assets_are_ranked_across_each_date():
    data = price_data(300, 6, horizons=(1,))
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    found, _ = run_baselines(
        data, LEVELS, assets=assets, rows=rows, fit_until=data.borders.val_end, names=["unconditional", "random walk"]
    )
    shifted = outcome.y + 10 * data.dates(assets, rows).astype(np.int64)[:, None] / 1e18
    scores = evaluate(outcome, {**found, "m": Forecast("m", shifted, None)}, repeats=50)["forecasts"]["m"]
    # A common shift of all assets on a date changes nothing across them.
    assert scores["ic"][0]["value"] == pytest.approx(1) and scores["rank_ic"][0]["value"] == pytest.approx(1)


def test_the_table_shows_every_forecast_with_its_interval(data, beside):
    assets, rows = data.origins("test")
    text = evaluation_table(evaluate(outcome_of(data, assets, rows, LEVELS, data.borders.val_end), beside, repeats=20))
    assert all(name in text for name in beside) and "h = 1" in text and "h = 5" in text
    assert text.count("[") > len(beside)


def test_a_calibrated_forecast_has_a_tenth_of_the_outcomes_in_each_tenth():
    scipy = importlib.import_module("scipy.stats")
    for law, near in ((scipy.norm, 1e-9), (scipy.t(4), 0.005)):
        # Every outcome of the distribution once.
        y = law.ppf((np.arange(40_000) + 0.5) / 40_000)
        found = tenths(y, np.broadcast_to(law.ppf(LEVELS), (len(y), 9)), LEVELS).mean(axis=0)
        assert found == pytest.approx(np.full(10, 0.1), abs=near + 1 / 40_000)


def test_tenths_tell_too_narrow_and_shifted_forecasts_and_need_two_levels():
    scipy = importlib.import_module("scipy.stats")
    y = scipy.norm.ppf((np.arange(1000) + 0.5) / 1000)
    narrow = tenths(y, np.broadcast_to(scipy.norm.ppf(LEVELS) / 2, (1000, 9)), LEVELS)
    assert (narrow.sum(axis=1) == 1).all()
    shares = narrow.mean(axis=0)
    # P(z < 0.5 z_.1) is Φ(−0.641).
    assert shares[0] == pytest.approx(scipy.norm.cdf(scipy.norm.ppf(0.1) / 2), abs=2e-3) == shares[-1]
    assert shares[4] < 0.06
    high = tenths(y, np.broadcast_to(scipy.norm.ppf(LEVELS) + 5, (1000, 9)), LEVELS).mean(axis=0)
    assert high[0] == pytest.approx(1)
    few = (0.25, 0.75)
    beyond = tenths(y, np.broadcast_to(scipy.norm.ppf(few), (1000, 2)), few).mean(axis=0)
    assert beyond == pytest.approx(np.full(10, 0.1), abs=2e-3)
    assert tenths(y, np.zeros((1000, 1)), (0.5,)) is None


def test_paired_differences_are_those_of_the_same_drawn_dates(data, beside):
    """Skill less that of EWMA in loops over drawn blocks, two assets a date."""
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    evaluation = evaluate(outcome, beside, repeats=200)
    found = evaluation["paired"]["HAR"]["EWMA(0.94)"]["skill"][1]
    losses = {n: pinball_loss(outcome.y[:, 1], beside[n].quantiles[:, 1], LEVELS)
              for n in ("HAR", "EWMA(0.94)", "unconditional")}  # fmt: skip
    dates = np.unique(outcome.ds)
    rows_of = [np.flatnonzero(outcome.ds == date) for date in dates]
    n, block = len(dates), block_length(len(dates), 2)
    drawn = []
    for starts in np.random.default_rng(0).integers(0, n, (200, -(-n // block))):
        chosen = np.concatenate([rows_of[(s + i) % n] for s in starts for i in range(block)])
        means = {name: loss[chosen].mean() for name, loss in losses.items()}
        drawn.append((means["EWMA(0.94)"] - means["HAR"]) / means["unconditional"])
    assert (found["low"], found["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    skills = [evaluation["forecasts"][name]["skill"][1]["value"] for name in ("HAR", "EWMA(0.94)")]
    assert found["value"] == pytest.approx(skills[0] - skills[1])
    assert found["word"] == {1: "better", -1: "worse", 0: "tie"}[(found["low"] > 0) - (found["high"] < 0)]
    assert "EWMA(0.94)" not in evaluation["paired"]["EWMA(0.94)"] and "GARCH-t" in evaluation["paired"]["EWMA(0.94)"]


def test_the_table_says_how_a_model_stands_beside_ewma_and_garch(data, beside):
    assets, rows = data.origins("test")
    outcome = outcome_of(data, assets, rows, LEVELS, data.borders.val_end)
    sharp = outcome.y[..., None] + 1e-4 * np.linspace(-1, 1, 9)
    text = evaluation_table(evaluate(outcome, {"oracle": Forecast("oracle", outcome.y, sharp), **beside}, repeats=50))
    assert "oracle beside others" in text and text.count("] better") == 2 * 2 * 3
    (pit,) = [line for line in text.splitlines() if line.startswith("  oracle, h = 1")]
    shares = [float(cell) for cell in pit.split("h = 1")[1].split()]
    assert len(shares) == 10 and sum(shares) == pytest.approx(1, abs=0.01)
    # Evaluations from before have no such parts.
    old = evaluate(outcome, beside, repeats=20)
    del old["paired"], old["pit"]
    for scores in old["forecasts"].values():
        scores.pop("crps", None)
    assert "beside others" not in evaluation_table(old)
