"""Schedules of the learning rate warm up, hold, and end where they should."""

from __future__ import annotations

import itertools
import math

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
