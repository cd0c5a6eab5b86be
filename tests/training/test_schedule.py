"""Schedules of the learning rate warm up, hold, and end where they should."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from blockyard.training.config import TrainConfig
from blockyard.training.optim import lr_factor


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str) -> None:
    config = TrainConfig(steps=100, warmup=10, schedule=schedule, final_lr=0.1)  # type: ignore[arg-type]
    factors = [lr_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0 and max(factors) == 1.0
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    after = factors[10:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_wsd_is_stable_until_its_decay() -> None:
    config = TrainConfig(steps=100, warmup=10, schedule="wsd", decay_fraction=0.2)
    assert {lr_factor(step, config) for step in range(10, 80)} == {1.0}
    assert lr_factor(90, config) < 1.0


def test_a_schedule_of_one_step_is_finite() -> None:
    assert math.isfinite(lr_factor(0, TrainConfig(steps=1, warmup=0)))


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (6, 0), (42, 6), (85, 12), (139, 19), (140, 20), (10_000, 20)])
def test_a_warm_up_that_nobody_names_is_a_seventh_of_the_run_and_at_most_twenty_steps(steps: int, warm: int) -> None:
    config = TrainConfig(steps=steps)
    assert config.warmup is None and config.warm_steps == warm
    assert lr_factor(warm, config) == 1.0
    if warm:
        assert lr_factor(0, config) == pytest.approx(1 / warm)
    # More steps of the same options lengthen it.
    assert replace(config, steps=4 * steps).warm_steps == min(20, 4 * steps // 7)


def test_a_warm_up_as_long_as_the_run_is_as_if_none_were_named() -> None:
    assert TrainConfig(steps=60, warmup=60).warm_steps == TrainConfig(steps=60).warm_steps == 8
    assert TrainConfig(steps=60, warmup=59).warm_steps == 59
    assert TrainConfig(steps=60, warmup=80, schedule="constant").warm_steps == 80
    assert TrainConfig(steps=1, warmup=1).warm_steps == 1
