"""From a budget to steps: how long each run may be, known before it starts so that its schedule fits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blockyard.compare.engine import LOCAL, EngineConfig
from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.training.task import Task
    from blockyard.training.trainer import Trainer

Unit = Literal["tokens", "steps", "seconds", "flops"]

# The clock ends a run with a budget in seconds. It may make more steps than the pace at planning lets expect, as that
# may have been measured while the machine was busy.
SLACK = 3.0


@dataclass(frozen=True)
class Budget:
    """What every run may spend, and how runs take turns with it.

    Args:
        unit: what is counted.
        value: how much of it.
        slice_steps: steps a run makes before it is the next one's turn.
        engine: where runs are trained, and how many at once.
    """

    unit: Unit
    value: float
    slice_steps: int = 25
    engine: EngineConfig = LOCAL

    def as_request(self) -> dict[str, Any]:
        """Return it as plain data for a worker, which trains its share by itself."""
        return {"unit": self.unit, "value": self.value, "slice_steps": self.slice_steps}

    def steps(self, task: Task, pace: float | None = None) -> int:
        """Return steps of a run of this task; `pace` is the training clock of one, for a budget in seconds."""
        return steps_for(
            self.unit,
            self.value,
            tokens_per_step=task.tokens_per_step,
            flops_per_step=task.flops_per_step,
            seconds_per_step=pace,
        )

    def share(self, trainer: Trainer) -> float:
        """Return the part of it that a run has spent, 1 at its end."""
        # By steps otherwise, whose number follows from the budget exactly: no rounding of sums decides when a run ends.
        by_clock = self.unit == "seconds"
        share = trainer.seconds / self.value if by_clock else trainer.step / trainer.config.steps
        # A run that made all its steps is over, whatever the clock says.
        return 1.0 if trainer.done else min(1.0, share)

    def next_slice(self, trainer: Trainer, pace: float | None, most: int) -> int:
        """Return steps that a run makes before anyone looks at it again; with a budget in seconds its schedule is set
        to end with the clock.

        Args:
            trainer: the run.
            pace: seconds of a step as measured before the run began.
            most: at most so many.

        Returns: steps; 0 when the seconds are spent.
        """
        if self.unit != "seconds":
            return most
        # Its own pace as soon as there is one: the measured one is of another hour.
        found = trainer.seconds / trainer.step if trainer.step else pace or 0.0
        left = self.value - trainer.seconds
        # The clock ends the run, so the clock is what the schedule must end with.
        trainer.end_schedule_at(trainer.step + round(left / max(found, 1e-9)))
        return steps_left(left, found, most)


def steps_for(
    unit: Unit,
    value: float,
    *,
    tokens_per_step: int,
    flops_per_step: int,
    seconds_per_step: float | None = None,
) -> int:
    """Count the steps that spend a budget: the nearest whole number, for seconds more of them (the clock ends it).

    Args:
        unit: what is counted.
        value: how much of it one run may spend.
        tokens_per_step: tokens of one global batch.
        flops_per_step: training FLOPs of one global batch.
        seconds_per_step: measured training clock of one step; needed for a budget in seconds.

    Raises:
        InputError: when the budget is below half of one step.
    """
    if unit == "steps":
        if value < 0.5:
            raise InputError(f"budget.value={value:g} steps is less than one")
        return max(1, round(value))
    if unit == "seconds":
        assert seconds_per_step is not None
        cost: float = seconds_per_step
    else:
        cost = tokens_per_step if unit == "tokens" else flops_per_step
    # Half a step rounds to none, and a run of no step has nothing to compare.
    if value < cost / 2:
        raise InputError(
            f"budget.value={value:g} {unit} is less than one step takes ({cost:g}); "
            "give more, or make train.batch_size or model.context smaller"
        )
    return max(1, math.ceil(value / cost * SLACK) if unit == "seconds" else round(value / cost))


def expected_steps(unit: str, steps: int) -> int:
    """Return how many of the steps that `steps_for` allows a run will make, as far as known before it starts."""
    return max(1, round(steps / SLACK)) if unit == "seconds" else steps


def steps_left(seconds: float, seconds_per_step: float, most: int) -> int:
    """Return steps to make before looking at the clock again: 0 when no seconds are left."""
    if seconds <= 0:
        return 0
    # At least one: a step that is longer than what is left still ends the run, a little late.
    return max(1, min(most, int(seconds / max(seconds_per_step, 1e-9))))
