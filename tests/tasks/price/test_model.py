"""The forecaster: layouts, heads, losses; nothing in a forecast from the future; training and loading."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.price.data.leakage import perturb_future, perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.embedding import GroupedEmbedding, PatchEmbedding, grouping, shares
from blockyard.tasks.price.forecaster import Forecaster, future_dates, future_table
from blockyard.tasks.price.heads import (
    PointHead,
    QuantileHead,
    StudentHead,
    direction_loss,
    pinball,
    smoothness_loss,
    student_quantiles,
)
from blockyard.tasks.price.model import GROUPS, LEVELS, PriceConfig, PriceForecaster
from blockyard.tasks.price.task import PriceTask
from blockyard.training.config import TrainConfig
from tests.fixtures.prices import price_data, prices

FEATURES = tuple(name for group in GROUPS.values() for name in group)
SHAPES = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16, "patch": 4, "stride": 4, "dropout": 0.0,
          "instance": "none", "head": "quantile"}  # fmt: skip


def config(**options) -> PriceConfig:
    return PriceConfig(**{"features": FEATURES, **SHAPES, "horizons": (1, 2, 5), **options})


def started(data, **options) -> PriceForecaster:
    """A model on data, with noise in its output matrices so that forecasts depend on everything."""
    task = PriceTask(config(features=data.features, **options), data, TrainConfig(steps=1, seed=1))
    model = task.model
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def data():
    return price_data(400)


OPTIONS = [
    {"layout": "day"}, {"layout": "day", "group_norm": "none", "groups": "one"}, {"layout": "patch"},
    {"instance": "return"}, {"instance": "level"}, {"pool": "mean"}, {"pool": "flatten"}, {"shortcut": "none"},
    {"shortcut": "window"}, {"head": "student_t"}, {"head": "student_t", "instance": "return"}, {"head": "point"},
    {"head": "point", "direction_weight": 0.5, "smoothness_weight": 0.5}, {"causal": True}, {"norm_position": "post"},
    {"blocks": "mla"}, {"blocks": "tva+vft"}, {"dropout": 0.2}, {"patch": 5, "stride": 3},
    {"head": "point", "shortcut_ridge": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_every_option_trains_a_step_and_its_loss_falls_on_one_batch(options, data):
    task = PriceTask(config(features=data.features, **options), data, TrainConfig(steps=1))
    batch = task.batch(0, slice(0, 32))
    optimizer = torch.optim.Adam(task.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss, _ = task.loss(task.model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in task.model.parameters())
    with torch.no_grad():
        assert task.evaluate(task.model.eval())["val_loss"] > 0


@pytest.mark.parametrize("layout", ["day", "patch"])
@pytest.mark.parametrize("blocks", ["standard", "mla", "tva", "spectral"])
def test_any_mixer_forecasts(blocks, layout):
    model = PriceForecaster(config(blocks=blocks, layout=layout))
    output = model(torch.randn(3, 16, 20))
    assert output.point.shape == (3, 3) and output.quantiles.shape == (3, 3, 9) and output.state.shape == (3, 16)


STARTS = [("quantile", slice(0, 9), 1e-5), ("student_t", slice(3, 6), 0.1)]


@pytest.mark.parametrize(("head", "places", "tolerance"), STARTS)
def test_an_untrained_model_forecasts_the_distribution_of_the_training_targets(head, places, tolerance, data):
    """The quantile head starts at all quantiles, the t distribution at the middle half."""
    task = PriceTask(config(features=data.features, head=head), data, TrainConfig(steps=1))
    assets, rows = data.origins("train")
    y = data.labels(assets, rows).double().numpy()
    shown = task.model(data.windows(assets[:2], rows[:2])).quantiles.detach().numpy()
    assert np.allclose(shown[0].T[places], np.quantile(y, LEVELS, axis=0)[places], atol=tolerance)
    assert np.allclose(shown[0], shown[1])


def test_instance_scaling_starts_at_volatility_times_a_shape(data):
    task = PriceTask(config(features=data.features, instance="return"), data, TrainConfig(steps=1))
    assets, rows = data.origins("train")
    quantiles = task.model(data.windows(assets[:9], rows[:9])).quantiles.detach()
    table = data.tables[0]
    r = np.diff(table.log_close, prepend=np.nan)
    sigma = np.array([np.sqrt(np.mean(r[t - 15 : t + 1] ** 2)) for t in rows[:9]])
    widths = (quantiles[:, 0, -1] - quantiles[:, 0, 0]).numpy() * table.sigma[rows[:9]]
    assert np.allclose(widths / widths[0], sigma / sigma[0], rtol=1e-4)


def test_level_instances_follow_a_shift_and_a_scale_of_the_series():
    model = PriceForecaster(config(features=("value",), instance="level", head="point", shortcut="window"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    x = torch.randn(4, 16, 1)
    a, b = model(x).point, model(3 * x + 2).point
    # RevIN's small number under the root bends it a little.
    torch.testing.assert_close(b, 3 * a + 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shortcut", ["last", "window"])
def test_a_linear_path_that_starts_as_a_ridge_regression_is_one(shortcut):
    """Least squares by stacked rows: those of the data, and one per coefficient for the penalty."""
    torch.manual_seed(3)
    options = {"instance": "level", "head": "point", "shortcut": shortcut, "shortcut_ridge": 0.3, "context": 12}
    model = PriceForecaster(config(features=("value", "more"), **options))
    x, y = torch.randn(50, 12, 2) * 3 + 1, torch.randn(50, len(model.config.horizons))
    model.start_at(torch.zeros(2), torch.ones(2), x, y)
    mean, std = x.mean(dim=1, keepdim=True), torch.sqrt(x.var(dim=1, keepdim=True, correction=0) + 1e-5)
    seen, shift, scale = (x - mean) / std, mean[:, 0, :1], std[:, 0, :1]
    inputs = (seen[:, -1] if shortcut == "last" else seen.flatten(1)).double().numpy()
    target = ((y - shift) / scale).double().numpy()
    target = target - target.mean(axis=0)
    rows, weight = inputs.shape[1], scale.double().numpy()
    power = np.square(inputs * weight).sum() / rows
    stacked = np.concatenate([inputs * weight, np.sqrt(0.3 * power) * np.eye(rows)])
    wanted = np.linalg.lstsq(stacked, np.concatenate([target * weight, np.zeros((rows, y.shape[1]))]), rcond=None)[0]
    assert np.allclose(model.shortcut.weight.detach().numpy().T, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"shortcut_ridge": 0.1}, {"shortcut_ridge": 0.0, "head": "point"},
                {"shortcut_ridge": 0.1, "head": "point", "shortcut": "none"}],
)  # fmt: skip
def test_a_ridge_start_without_a_linear_path_or_a_point_is_refused(options):
    with pytest.raises(InputError, match="shortcut_ridge"):
        config(features=("value",), **options)


@pytest.mark.parametrize(
    "options", [{"layout": "day"}, {"layout": "patch"}, {"instance": "return", "head": "student_t"}]
)
def test_no_forecast_depends_on_the_future(options, data):
    """Features, window, scaling and forecast at each origin are bit for bit the same whatever comes after."""
    model = started(data, **options)
    forecaster = Forecaster(model)
    assets, rows = data.origins("test")
    middle = int(rows[len(rows) // 2])
    changed = forecaster.tables(replace(data.prices, assets=(perturb_future(data.prices.assets[0], middle),)))
    early = rows <= middle
    before = forecaster.forecast(data, assets[early], rows[early])
    after = forecaster.forecast(changed, assets[early], rows[early])
    assert torch.equal(data.windows(assets[early], rows[early]), changed.windows(assets[early], rows[early]))
    assert (before.quantiles == after.quantiles).all() and (before.point == after.point).all()
    # The check has teeth: a forecast from a later row does change.
    late = rows > middle + 1
    before, after = (forecaster.forecast(d, assets[late], rows[late]).point for d in (data, changed))
    assert (before != after).any(axis=1).mean() > 0.9


def test_training_does_not_see_what_comes_after_its_border(data):
    changed = PriceData(
        perturb_futures(data.prices, data.borders.train_end), data.config, context=16, horizons=(1, 2, 5)
    )
    losses = []
    for one in (data, changed):
        task = PriceTask(config(features=data.features), one, TrainConfig(steps=1))
        losses.append([float(task.loss(task.model, task.batch(s, slice(0, 8)))[0].detach()) for s in range(2)])
        assert torch.equal(task.model.mean, torch.from_numpy(data.mean).float())
    assert losses[0] == losses[1]


def test_eval_mode_of_batch_norm_does_not_mix_steps_or_rows():
    embedding = GroupedEmbedding([[0, 1], [2]], 8).eval()
    x = torch.randn(3, 5, 3)
    changed = x.clone()
    changed[:, 3:] += 1
    assert torch.equal(embedding(x)[:, :3], embedding(changed)[:, :3])
    assert torch.allclose(embedding(x)[:1], embedding(x[:1]))


def test_groups_take_any_width():
    assert shares(7, [5, 4, 4]) == [2, 3, 2] or sum(shares(7, [5, 4, 4])) == 7
    for width in (6, 7, 33, 512):
        found = shares(width, [5, 4, 4, 3, 2, 2])
        assert sum(found) == width and min(found) >= 1
    assert grouping("auto", FEATURES, GROUPS)[0] == [0, 1, 2, 3, 4]
    assert grouping("a=macd,rsi;b=gap", ("gap", "rsi", "macd", "more"), GROUPS) == [[2, 1], [0], [3]]
    with pytest.raises(InputError, match=r"names 'rsj', which is no feature \(did you mean 'rsi'\?\)"):
        grouping("rsj", ("rsi",), GROUPS)
    with pytest.raises(InputError, match="names 'rsi' twice"):
        grouping("a=rsi;b=rsi", ("rsi",), GROUPS)
    with pytest.raises(InputError, match="less than the 2 groups"):
        GroupedEmbedding([[0], [1]], 1)


def test_patches_end_at_the_last_step():
    embedding = PatchEmbedding(2, 8, patch=4, stride=3)
    x = torch.randn(1, 12, 2)
    expected = torch.stack([embedding.projection(x[:, s : s + 4].transpose(1, 2).flatten(1)) for s in (2, 5, 8)], dim=1)
    torch.testing.assert_close(embedding(x), expected)


def test_quantiles_never_cross_and_start_where_they_are_told():
    head = QuantileHead(2, LEVELS)
    y = torch.randn(5000, 2) * torch.tensor([1.0, 3.0])
    head.start_at(y)
    still = head.quantiles(torch.zeros(1, 2, head.width))[0]
    assert torch.allclose(still.T, torch.quantile(y, torch.tensor(LEVELS), dim=0), atol=1e-3)
    wild = head.quantiles(20 * torch.randn(500, 2, head.width))
    assert (wild.diff(dim=-1) > 0).all() and wild.isfinite().all()
    # A price that often stands still has tied quantiles, and still positive steps.
    head.start_at(torch.cat([torch.zeros(90, 2), torch.randn(10, 2)]))
    assert (head.quantiles(torch.zeros(1, 2, head.width)).diff(dim=-1) > 0).all()


def test_pinball_loss_in_torch_is_that_in_numpy():
    from blockyard.tasks.price.scores import pinball_loss

    q, y = torch.randn(7, 3, 9, dtype=torch.float64).sort(-1).values, torch.randn(7, 3, dtype=torch.float64)
    slow = np.mean([pinball_loss(y[:, h].numpy(), q[:, h].numpy(), LEVELS) for h in range(3)])
    assert float(pinball(q, y, LEVELS)) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("freedom", "error"), [(2.1, 1e-3), (3, 1e-5), (4.7, 1e-5), (5.5, 1e-5), (30, 1e-5), (1e4, 1e-5)]
)
def test_student_quantiles_agree_with_scipy(freedom, error):
    scipy = importlib.import_module("scipy.stats")
    levels = (0.001, 0.025, 0.1, 0.3, 0.5, 0.6, 0.9, 0.99)
    found = student_quantiles(torch.tensor([freedom], dtype=torch.float64), levels)[0].numpy()
    assert found == pytest.approx(scipy.t.ppf(levels, freedom), rel=error, abs=1e-12)


def test_student_likelihood_agrees_with_torch():
    head = StudentHead(2, LEVELS)
    raw, y = torch.randn(6, 2, 3), torch.randn(6, 2)
    location, scale, freedom = head.parameters_of(raw)
    expected = -torch.distributions.StudentT(freedom, location, scale).log_prob(y).mean()
    torch.testing.assert_close(head.nll(raw, y), expected)


def test_the_seeds_direction_loss_has_a_gradient_towards_the_right_sign():
    point = torch.zeros(4, 2, requires_grad=True)
    y = torch.tensor([[1.0, -1.0]] * 4)
    direction_loss(point, y).backward()
    assert (point.grad[:, 0] < 0).all() and (point.grad[:, 1] > 0).all()
    assert float(smoothness_loss(torch.arange(5.0)[None])) == 0
    assert float(smoothness_loss(torch.tensor([[0.0, 1.0, 0.0]]))) == 4.0
    head = PointHead(2)
    head.start_at(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert head.point(torch.zeros(1, 2, 1))[0].tolist() == [2.0, 3.0]


def test_cost_formula_equals_the_parameters_and_the_counted_flops():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    for options in ({"layout": "day", "groups": "one"}, {"layout": "patch"}, {"pool": "flatten", "shortcut": "window"}):
        model = PriceForecaster(config(blocks="standard+swiglu", **options)).eval()
        cost = model.cost(model.config.length)
        assert cost.parameters == sum(p.numel() for p in model.parameters())
        counter = FlopCounterMode(display=False)
        # The counter does not know SDPA's CPU kernel; in its plain form every product is seen.
        with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            model(torch.randn(1, 16, 20))
        assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


WRONG = [
    ({"horizons": (5, 1)}, "must be rising"),
    ({"horizons": ()}, "must be rising"),
    ({"features": ()}, "features is empty"),
    ({"quantiles": (0.5, 0.1)}, "must rise"),
    ({"quantiles": (0.0, 0.5)}, "must rise"),
    ({"patch": 17}, "longer than context"),
    ({"direction_weight": 1.0}, "needs head=point"),
    ({"instance": "level", "head": "student_t"}, "instance=level"),
    ({"context": 0}, "context=0"),
    ({"dropout": 1.0}, r"dropout=1\.0"),
    ({"smoothness_weight": -1.0}, "smoothness_weight=-1"),
]


@pytest.mark.parametrize(("options", "words"), WRONG)
def test_a_configuration_that_does_not_fit_is_one_clear_line(options, words):
    with pytest.raises(InputError, match=words):
        config(**options)


def test_inputs_that_do_not_fit_are_one_clear_line():
    model = PriceForecaster(config())
    for x, words in (
        (torch.randn(2, 15, 20), r"expected \[batch, 16, 20\]"),
        (torch.randn(2, 16, 20).long(), "floating"),
    ):
        with pytest.raises(InputError, match=words):
            model(x)
    with pytest.raises(InputError, match="targets has shape"):
        model(torch.randn(2, 16, 20), targets=torch.randn(2, 2))
    with pytest.raises(InputError, match="instance=return needs feature 'return_1'"):
        PriceForecaster(config(features=("a", "b"), instance="return"))


def test_forecasts_of_several_assets_are_a_tidy_table(data):
    many = prices(200, 3)
    frame = future_table(Forecaster(started(data)), many)
    names = ["unique_id", "cutoff", "ds", "horizon", "last", "price"]
    assert list(frame.columns) == [*names, *(f"q{level:g}" for level in LEVELS)]
    assert len(frame) == 9 and frame["unique_id"].unique().tolist() == ["A", "B", "C"]
    quantiles = frame[[f"q{level:g}" for level in LEVELS]].to_numpy()
    assert (np.diff(quantiles, axis=1) > 0).all() and (quantiles > 0).all()
    assert frame["price"].to_numpy() == pytest.approx(quantiles[:, 4])
    assert np.allclose(frame["last"][:3], many.assets[0].close[-1])
    assert (frame["ds"] > frame["cutoff"]).all()


def test_a_forecast_from_a_date_does_not_look_at_later_rows(data):
    forecaster, whole = Forecaster(started(data)), prices(200)
    at = str(whole.assets[0].ds[150])[:10]
    cut = replace(whole, assets=(whole.assets[0].rows(slice(0, 151)),))
    assert future_table(forecaster, whole, at).equals(future_table(forecaster, cut))
    with pytest.raises(InputError, match=r"--at=1990-01-01: A begins later"):
        future_table(forecaster, whole, "1990-01-01")
    with pytest.raises(InputError, match="has 70 rows, too few: a forecast takes 76"):
        future_table(forecaster, prices(70))


def test_future_dates_are_business_days_steps_or_numbers():
    days = np.arange("2020-01-01", "2020-02-01", dtype="datetime64[D]")
    business = days[np.is_busday(days)].astype("datetime64[ns]")
    assert [str(d)[:10] for d in future_dates(business, (1, 2))] == ["2020-02-03", "2020-02-04"]
    assert str(future_dates(days.astype("datetime64[ns]"), (1,))[0])[:10] == "2020-02-01"
    assert future_dates(np.arange(5), (1, 3)).tolist() == [5, 7]


def test_calibration_of_a_model_uses_the_validation_part_alone(data):
    model = started(data)
    calibrated = Forecaster(model).calibrated(data, "on").calibration
    changed = PriceData(perturb_futures(data.prices, data.borders.val_end), data.config, context=16, horizons=(1, 2, 5))
    assert (Forecaster(model).calibrated(changed, "on").calibration.shifts == calibrated.shifts).all()
    assert calibrated.rows == len(data.origins("val")[0])
    assert Forecaster(model).calibrated(data, "off").calibration is None
    points = Forecaster(started(data, head="point")).calibrated(data)
    assets, rows = data.origins("test")
    assert points.forecast(data, assets, rows).quantiles.shape == (len(rows), 3, 9)
