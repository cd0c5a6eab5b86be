"""Transplants killed for good, at random moments, and gone on with by the same words."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from blockyard.tasks.run import load_run
from blockyard.transplant import Budget, HealSettings, TransplantConfig, load_record, run_transplant

pytestmark = pytest.mark.slow


def begin(tiny: Path, config: TransplantConfig, out: Path) -> int:
    """Run the transplant in a child process; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            run_transplant(tiny, config, out, show=False)
            os._exit(0)
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_it_ends_with_the_same_weights(tiny, texts, sizes, tmp_path, seed):
    config = TransplantConfig(
        "mla;standard[window=4,sinks=1]@1",
        budget=Budget(cache=0.7, context=64),
        data=texts,
        text=sizes,
        heal=HealSettings(tokens=128, length=16, points=1, save_every=2),
    )
    began = time.monotonic()
    whole = run_transplant(tiny, config, tmp_path / "whole", show=False)
    taken, draw, hits = time.monotonic() - began, random.Random(seed), 0
    for _ in range(60):
        child = begin(tiny, config, tmp_path / "out")
        # Later and later, so that it ends some time on whatever machine.
        deadline = time.monotonic() + taken * draw.uniform(0.01, 0.08) * (1 + hits / 6)
        while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        if ended[0]:
            assert os.waitstatus_to_exitcode(ended[1]) == 0
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        hits += 1
    assert hits >= 3, "it was to be killed some times"
    again = load_record(tmp_path / "out")
    for old, new in zip(whole.choices, again.choices, strict=True):
        assert (new.blocks, new.trials, new.layers) == (old.blocks, old.trials, old.layers)
        assert new.measures.loss == old.measures.loss
        a, b = (load_run(tmp_path / name / str(old.run)).model.state_dict() for name in ("whole", "out"))
        assert a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())
