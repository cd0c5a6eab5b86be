"""Every registered mixer, FFN and task, by both optimizers: an interrupted run ends as an uninterrupted one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from blockyard.tasks.run import make_task
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.checkpoint import checkpoint_name, list_checkpoints, load_checkpoint, save_checkpoint
from blockyard.training.config import as_dict
from blockyard.training.optim import Optimizers
from blockyard.training.trainer import Trainer
from tests.fixtures.resume_choices import everything, groups_of
from tests.fixtures.toy_training import ToyTask, toy_config

STEPS = 7


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def state_of(out: Path) -> dict[str, torch.Tensor]:
    """Weights and optimizer state at the end of a run."""
    last = list_checkpoints(out / "checkpoints")[-1][1]
    return {f"{n}:{k}": t for n in ("model", "optimizer") for k, t in load_file(last / f"{n}.safetensors").items()}


def numbers(out: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row.get("val_loss")) for row in rows]


def make_trainer(groups: dict[str, Any], out: Path, *, resume: bool = False) -> Trainer:
    run = resolve(groups)
    return Trainer(make_task(run), run.train, out, resolved=as_groups(run), resume=resume)


@pytest.mark.parametrize(("name", "optimizer"), everything(), ids=lambda v: v)
def test_a_run_stopped_between_two_steps_ends_with_the_same_numbers(tmp_path: Path, name: str, optimizer: str) -> None:
    groups = groups_of(name, optimizer, tmp_path, steps=STEPS, precision="fp32", compile="off", save_every=0)
    for out, stops in (("whole", ()), ("parts", (2, 5))):
        for stop in stops:
            trainer = make_trainer(groups, tmp_path / out, resume=stop != stops[0])
            trainer.advance(stop - trainer.step)
            trainer.save()
            trainer.close()
        trainer = make_trainer(groups, tmp_path / out, resume=bool(stops))
        trainer.run()
        trainer.close()
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "parts")
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    # Shapes and kernels are the same, so nothing may differ, not even by rounding.
    different = [key for key, tensor in whole.items() if not torch.equal(tensor, parts[key])]
    assert not different, f"{len(different)} of {len(whole)} tensors differ: {different[:4]}"


class Transposed(nn.Module):
    """A model whose parameter lies in memory by columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).mT)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_state_of_a_parameter_that_is_not_contiguous_lies_as_the_parameter_does(tmp_path: Path, optimizer) -> None:
    config = toy_config(optimizer=optimizer, save_every=0, eval_every=0)
    resolved = {"train": as_dict(config)}

    def trainer(out: str, resume: bool = False) -> Trainer:
        task = ToyTask(config)
        task.model = Transposed()
        return Trainer(task, config, tmp_path / out, resolved=resolved, resume=resume)

    whole, first = trainer("whole"), trainer("parts")
    whole.run()
    whole.close()
    first.advance(5)
    first.save()
    first.close()
    rest = trainer("parts", resume=True)
    (parameter,) = rest.engine.model.parameters()
    state = rest.engine.optimizers.members[0].state[parameter]
    assert parameter.stride() == (1, 8)
    if optimizer == "adamw":
        # Its fused step pairs raw memory; Muon stacks its momentum and reads it by shape.
        assert all(s.stride() == parameter.stride() for s in state.values() if s.ndim)
    rest.run()
    rest.close()
    expected, found = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_loaded_moments_keep_their_entries_whatever_the_strides() -> None:
    model = Transposed()
    optimizers = Optimizers(model, toy_config(optimizer="adamw"))
    moments = torch.arange(32.0).view(8, 4)
    optimizers.load_state({"weight/exp_avg": moments, "weight/step": torch.tensor(3.0)})
    held = optimizers.members[0].state[model.weight]["exp_avg"]
    assert torch.equal(held, moments) and held.stride() == model.weight.stride()


def test_a_square_matrix_and_its_transpose_are_both_kept(tmp_path: Path) -> None:
    matrix = torch.arange(9.0).view(3, 3)
    save_checkpoint(tmp_path, 1, model={"a": matrix, "b": matrix.mT, "tied": matrix}, optimizer={}, state={"step": 1})
    loaded = load_checkpoint(tmp_path / checkpoint_name(1)).model
    assert loaded.keys() == {"a", "b"}
    assert torch.equal(loaded["a"], matrix) and torch.equal(loaded["b"], matrix.mT)
