"""The price model: layouts, starts, losses; nothing in a forecast from the future; refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.price.data.leakage import perturb_future, perturb_futures
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.embedding import GroupedEmbedding
from blockyard.tasks.price.forecaster import Forecaster
from blockyard.tasks.price.model import LEVELS, PriceForecaster
from blockyard.tasks.price.task import PriceTask
from blockyard.training.config import TrainConfig
from tests.fixtures.price_models import config, started
from tests.fixtures.prices import price_data


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
