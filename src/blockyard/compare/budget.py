"""From a budget to steps: how long each run may be, known before it starts so that its schedule fits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.training.trainer import Trainer

# The clock ends a run with a budget in seconds. It may make more steps than the pace at planning lets expect, as that
# may have been measured while the machine was busy.
SLACK = 3.0


def steps_for(
    unit: Literal["tokens", "seconds", "flops"],
    value: float,
    *,
    tokens_per_step: int,
    flops_per_step: int,
    seconds_per_step: float | None = None,
) -> int:
    """Optimizer steps that spend the budget: the nearest whole number, for seconds more of them (the clock ends it).

    Args:
        unit: what is counted.
        value: how much of it one run may spend.
        tokens_per_step: tokens of one global batch.
        flops_per_step: training FLOPs of one global batch.
        seconds_per_step: measured training clock of one step; needed for a budget in seconds.

    Raises:
        InputError: when the budget is below half of one step.
    """
    if unit == "seconds":
        assert seconds_per_step is not None
        cost: float = seconds_per_step
    else:
        cost = tokens_per_step if unit == "tokens" else flops_per_step
    if value < cost / 2:
        raise InputError(
            f"budget.value={value:g} {unit} is less than one step takes ({cost:g}); "
            "give more, or make train.batch_size or model.context smaller"
        )
    return max(1, math.ceil(value / cost * SLACK) if unit == "seconds" else round(value / cost))


def expected_steps(unit: str, steps: int) -> int:
    """How many of the steps that `steps_for` allows a run will make, as far as known before it starts."""
    return max(1, round(steps / SLACK)) if unit == "seconds" else steps


def steps_left(seconds: float, seconds_per_step: float, most: int) -> int:
    """Steps to make before looking at the clock again: 0 when no seconds are left."""
    if seconds <= 0:
        return 0
    return max(1, min(most, int(seconds / max(seconds_per_step, 1e-9))))


def next_slice(trainer: Trainer, unit: str, value: float, pace: float | None, most: int) -> int:
    """Steps that a run makes before anyone looks at it again; with a budget in seconds its schedule is set to end with
    the clock.

    Args:
        trainer: the run.
        unit: of the budget.
        value: how much of it the run may spend.
        pace: seconds of a step as measured before the run began.
        most: at most so many.

    Returns: steps; 0 when the seconds are spent.
    """
    if unit != "seconds":
        return most
    found = trainer.seconds / trainer.step if trainer.step else pace or 0.0
    left = value - trainer.seconds
    # The clock ends the run, so the clock is what the schedule must end with.
    trainer.end_schedule_at(trainer.step + round(left / max(found, 1e-9)))
    return steps_left(left, found, most)
