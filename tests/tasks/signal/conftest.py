"""Fixtures of the signal task."""

from __future__ import annotations

import pytest
import torch

from blockyard.tasks.run import train
from tests.fixtures.signals import DATA, TRAIN


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A complex model that tells BPSK from QPSK."""
    out = tmp_path_factory.mktemp("signal") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2}
    try:
        train({"attn": {"impl": "complex"}, "model": model, "data": DATA, "train": TRAIN}, out, task="signal")
    finally:
        torch.set_num_threads(threads)
    return out
