"""The time that a training is said to take, and what the document's presets leave to time."""

import pytest
import torch

from blockyard.tasks.kind import task_kind
from blockyard.tasks.price.estimate import Estimate, duration, estimate
from blockyard.tasks.price.model import PriceConfig
from blockyard.tasks.price.presets import SIZES, preset
from blockyard.tasks.price.task import PriceTask
from blockyard.tasks.settings import resolve
from blockyard.training.config import TrainConfig
from tests.fixtures.prices import price_data


def task(**options):
    data = price_data(400)
    config = PriceConfig(features=data.features, context=16, horizons=(1, 2, 5), d_model=8, n_layers=1, n_heads=2,
                         layout="day", dropout=0.1)  # fmt: skip
    return PriceTask(config, data, TrainConfig(**{"steps": 10, "batch_size": 8, "eval_every": 4, **options}))


def test_an_estimate_counts_steps_evaluations_and_what_follows():
    made = task()
    found = estimate(made)
    assert (found.steps, found.evaluations) == (10, 3) and found.step > 0 and found.evaluation > 0
    val, test = (len(made.data.origins(part)[0]) for part in ("val", "test"))
    # An evaluation here takes the whole part, and what follows both parts: each window costs the same.
    assert found.after / found.evaluation == pytest.approx((val + test) / val)
    assert estimate(task(batch_size=16)).steps == 10 and estimate(task(eval_every=0)).evaluations == 1


def test_an_estimate_leaves_the_training_as_it_was():
    """Running statistics, weights, gradients and random numbers: a step after it is the step without it."""
    steps = []
    for told in (False, True):
        made = task()
        torch.manual_seed(0)
        if told:
            estimate(made)
        made.model.train()
        loss, _ = made.loss(made.model, made.batch(0, slice(None)))
        loss.backward()
        steps.append([loss.detach(), *(p.grad for p in made.model.parameters() if p.grad is not None),
                      *made.model.buffers()])  # fmt: skip
    assert len(steps[0]) == len(steps[1]) and all(torch.equal(a, b) for a, b in zip(*steps))


def test_an_estimate_is_a_line():
    said = Estimate(400, 4.96, 5, 52.0, 155.0).describe()
    assert said.startswith("about 40 min on ")
    assert "400 steps of 5 s, 5 evaluations of 52 s, calibration and test 2.6 min" in said
    assert [duration(s) for s in (0.05, 1.6, 12.4, 95, 3600, 7200, 50000)] == [
        "0.05 s", "1.6 s", "12 s", "1.6 min", "60 min", "2.0 h", "14 h",
    ]  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_presets_are_short_enough_for_a_processor(name):
    """FLOPs at the rate measured on one core of a Zen 4 (80 GFLOP/s): tiny within 15 minutes, small within 60."""
    settings = preset(name)["train"]
    kind = task_kind("price")
    model = preset(name)["model"]
    width, layers, heads, _ = SIZES[name]
    run = resolve({"task": "price", "model": model, "train": preset(name)["train"]}, "price")
    data = price_data(500)
    fitted = kind.fit(run.model, data.assets)
    with torch.device("meta"):
        cost = kind.build_model(fitted).cost(fitted.length)
    training = 3 * cost.flops * settings["steps"] * settings["batch_size"]
    # The S&P 500's validation part has 503 windows, its test part 997.
    forward = cost.flops * (503 * settings["steps"] / settings["eval_every"] + 1500)
    minutes = (training + forward) / 80e9 / 60
    assert minutes < {"tiny": 15, "small": 60}.get(name, float("inf"))
    assert (fitted.d_model, fitted.n_layers, fitted.n_heads) == (width, layers, heads)
