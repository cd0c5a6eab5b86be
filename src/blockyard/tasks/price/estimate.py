"""How long a training will take, told before its first step: from a few windows, forward and back, on this machine."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch import nn

from blockyard.tasks.price.task import PriceTask, evaluation_windows

# Windows of the timed step; the one before it warms up.
WINDOWS = 8


@dataclass(frozen=True)
class Estimate:
    """Seconds that a training will take.

    Args:
        steps: how many.
        step: of one step.
        evaluations: how many.
        evaluation: of one evaluation.
        after: of calibration and test, without the baselines.
    """

    steps: int
    step: float
    evaluations: int
    evaluation: float
    after: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.steps * self.step + self.evaluations * self.evaluation + self.after

    def describe(self) -> str:
        """Say it in a line."""
        count = f"{self.evaluations} evaluation{'s' * (self.evaluations != 1)}"
        threads = torch.get_num_threads()
        return (
            f"about {duration(self.seconds)} on {threads} thread{'s' * (threads != 1)}: {self.steps} steps of "
            f"{duration(self.step)}, {count} of {duration(self.evaluation)}, calibration and test "
            f"{duration(self.after)} (measured on {WINDOWS} windows, uncompiled)"
        )


def estimate(task: PriceTask) -> Estimate:
    """Time a step of a few windows on a copy of the model, which leaves the training as it would have been.

    Args:
        task: what will be trained.
    """
    config, data = task.config, task.data
    model = copy.deepcopy(task.model)
    random = torch.get_rng_state()
    both, forward = _per_window(model, task)
    torch.set_rng_state(random)
    every = config.eval_every or config.steps
    evaluations = -(-config.steps // every)
    windows = evaluation_windows(data, config)
    after = len(data.origins("val")[0]) + len(data.origins("test")[0])
    step = both * config.batch_size
    return Estimate(config.steps, step, evaluations, forward * windows, forward * after)


def _per_window(model: nn.Module, task: PriceTask) -> tuple[float, float]:
    """Return seconds of a window, forward and back, and forward alone."""
    device = next(model.parameters()).device
    batch = {name: values[:WINDOWS].to(device) for name, values in task.data.batch(0, 0, WINDOWS, slice(None)).items()}
    times = []
    for trains in (True, True, False, False):
        model.train(trains)
        start = time.perf_counter()
        with torch.set_grad_enabled(trains):
            loss, _ = task.loss(model, batch)
            if trains:
                loss.backward()
        float(loss.detach())
        times.append((time.perf_counter() - start) / WINDOWS)
    return times[1], times[3]


def duration(seconds: float) -> str:
    """Return seconds in words of two figures: "0.8 s", "12 min", "1.6 h"."""
    for size, word in ((3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:.0f} {word}" if value >= 10 else f"{value:.1f} {word}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
