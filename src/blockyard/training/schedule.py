"""Learning-rate schedules: the factor on the peak rate, a pure function of the step."""

from __future__ import annotations

import math

from blockyard.training.config import TrainConfig


def lr_factor(step: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate for the update number `step` (the first is 0).

    Linear warm-up over `warmup` steps, then: `constant` stays at 1; `cosine` falls to `final_lr` along half a
    cosine (arXiv 1608.03983); `wsd` stays at 1 and falls linearly over the last `decay_fraction` of the run
    (arXiv 2404.06395).
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        progress = _progress(step, config.warmup, config.steps)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    # The decay never starts inside the warm-up, so that the rate has one peak.
    start = max(config.warmup, config.steps - round(config.decay_fraction * config.steps))
    return 1.0 - (1 - config.final_lr) * _progress(step, start, config.steps)


def _progress(step: int, start: int, end: int) -> float:
    """Part of the way from `start` to the last step before `end`, within [0, 1]."""
    return min(max((step - start) / max(end - 1 - start, 1), 0.0), 1.0)
