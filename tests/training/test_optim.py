"""Parameter groups by role, clipping, and an optimizer's state kept by names."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.nn.roles import Role
from blockyard.training.config import TrainConfig
from blockyard.training.optim import Optimizers
from tests.fixtures.toy_training import ToyModel, toy_config


class WithVein(nn.Module):
    """One parameter of every role."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.matrix = nn.Linear(4, 4)
        self.vein = nn.Parameter(torch.ones(4, 2))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.parameter_roles = lambda: {"weight": Role("head")}  # type: ignore[assignment]

    def parameter_roles(self) -> dict[str, Role]:
        return {"vein": Role("matrix", group="vein")}


def groups_by_name(optimizers: Optimizers) -> dict[str, tuple[str, dict]]:
    return {
        optimizers.names[p]: (type(o).__name__, g)
        for o in optimizers.members
        for g in o.param_groups
        for p in g["params"]
    }


def test_parameter_groups_follow_the_modules_roles() -> None:
    groups = groups_by_name(Optimizers(WithVein(), TrainConfig(weight_decay=0.1)))
    assert {name: (kind, g["weight_decay"]) for name, (kind, g) in groups.items()} == {
        "embed.weight": ("AdamW", 0.0),
        "matrix.weight": ("Muon", 0.1),
        "matrix.bias": ("AdamW", 0.0),
        "vein": ("Muon", 0.1),
        "head.weight": ("AdamW", 0.1),
    }


def test_adamw_alone_takes_every_parameter() -> None:
    groups = groups_by_name(Optimizers(WithVein(), TrainConfig(optimizer="adamw")))
    assert {kind for kind, _ in groups.values()} == {"AdamW"} and len(groups) == 5


def test_vein_projectors_have_their_own_rate_and_stay_frozen_at_first() -> None:
    model = WithVein()
    config = TrainConfig(vein_lr_scale=0.5, vein_freeze_steps=2, warmup=0, schedule="constant")
    optimizers = Optimizers(model, config)
    before = model.vein.detach().clone()
    for step in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(step)
        assert torch.equal(before, model.vein) == (step < 2)
    group = groups_by_name(optimizers)["vein"][1]
    assert group["lr"] == pytest.approx(0.5 * config.matrix_lr)


def test_clipping_bounds_the_global_norm() -> None:
    model = ToyModel()
    optimizers = Optimizers(model, toy_config(grad_clip=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    norm = float(optimizers.grad_norm())
    assert norm == pytest.approx(math.sqrt(sum(p.numel() for p in model.parameters())))
    optimizers.clip(norm)
    assert float(optimizers.grad_norm()) == pytest.approx(0.5, rel=1e-4)


def test_optimizer_state_returns_through_names() -> None:
    config = toy_config()

    def train(optimizers: Optimizers, model: nn.Module, steps: range) -> None:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizers.step(step)

    whole_model = ToyModel()
    whole = Optimizers(whole_model, config)
    train(whole, whole_model, range(3))
    resumed_model = ToyModel()
    resumed_model.load_state_dict(whole_model.state_dict())
    resumed = Optimizers(resumed_model, config)
    resumed.load_state({k: v.clone() for k, v in whole.state()})
    train(whole, whole_model, range(3, 6))
    train(resumed, resumed_model, range(3, 6))
    for a, b in zip(whole_model.parameters(), resumed_model.parameters()):
        assert torch.equal(a, b)


def test_optimizer_state_of_another_model_is_refused() -> None:
    optimizers = Optimizers(ToyModel(), toy_config())
    with pytest.raises(InputError, match=r"no\.such"):
        optimizers.load_state({"no.such/momentum": torch.zeros(2)})
    with pytest.raises(InputError, match="shape"):
        optimizers.load_state({"out.weight/exp_avg": torch.zeros(2)})
