"""Weights as a function of a seed, without touching the process's random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, what torch draws is a function of the seed; afterwards the random state is as it was."""
    state, python_state = torch.get_rng_state(), random.getstate()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)
