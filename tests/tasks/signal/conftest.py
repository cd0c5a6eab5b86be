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


@pytest.fixture(scope="session")
def blind(tmp_path_factory):
    """A small model of the blind scenario, hardly trained, with its calibration: what `classify` does is right or wrong
    whatever it answers."""
    import blockyard.tasks.signal.finish as finish

    out = tmp_path_factory.mktemp("blind") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(finish, "FRAMES", 400)
    patch.setattr(finish, "STRANGE", 200)
    data = {"modulations": "bpsk,qpsk,16qam,tone,noise", "length": 256, "val_frames": 4, "snr_step": 15.0}
    try:
        groups = {
            "model": {"d_model": 16, "n_heads": 2},
            "data": data,
            "train": {**TRAIN, "steps": 60, "eval_every": 60},
        }
        train(groups, out, task="signal")
        finish.finish_run(out)
    finally:
        patch.undo()
        torch.set_num_threads(threads)
    return out
