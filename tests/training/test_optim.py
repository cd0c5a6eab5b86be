"""Configuration, schedules, Muon and parameter groups."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.nn.roles import Role
from blockyard.registry.options import options_of
from blockyard.training.allocator import keep_freed_memory
from blockyard.training.config import TrainConfig
from blockyard.training.muon import FLOOR, UPDATE_RMS, Muon, orthogonalize, quintics
from blockyard.training.optim import Optimizers, lr_factor
from tests.fixtures.toy_training import ToyModel, toy_config


def test_every_training_option_has_a_help_text() -> None:
    assert [name for name, option in options_of(TrainConfig).items() if not option.help] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "train.steps=0"),
        ({"batch_size": 6, "accumulate": 4}, "train.accumulate=4"),
        ({"lr": 0.0}, "train.lr=0.0"),
        ({"lr": float("nan")}, "train.lr=nan"),
        ({"beta1": 1.0}, "train.beta1=1.0"),
        ({"final_lr": 2.0}, "train.final_lr=2.0"),
        ({"seed": -1}, "train.seed=-1"),
        ({"weight_decay": -0.1}, "train.weight_decay=-0.1"),
        ({"orthogonal_steps": 0}, "train.orthogonal_steps=0"),
    ],
)
def test_a_bad_training_option_is_named(options: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        TrainConfig(**options)


def test_a_batch_that_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of"):
        TrainConfig(batch_size=6, accumulate=2).rows(2)


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
def test_schedules_warm_up_and_end_where_they_should(schedule: str) -> None:
    config = TrainConfig(steps=100, warmup=10, schedule=schedule, final_lr=0.1)  # type: ignore[arg-type]
    factors = [lr_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0 and max(factors) == 1.0
    assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    after = factors[10:]
    assert all(b <= a + 1e-12 for a, b in itertools.pairwise(after))


def test_wsd_is_stable_until_its_decay() -> None:
    config = TrainConfig(steps=100, warmup=10, schedule="wsd", decay_fraction=0.2)
    assert {lr_factor(step, config) for step in range(10, 80)} == {1.0}
    assert lr_factor(90, config) < 1.0


def test_a_schedule_of_one_step_is_finite() -> None:
    assert math.isfinite(lr_factor(0, TrainConfig(steps=1, warmup=0)))


def twin_orthogonalize(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """The iteration on singular values, one by one."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for a, b, c in quintics(steps):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag(s) @ v


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (7, 3), (1, 4)], ids=str)
def test_newton_schulz_is_the_quintic_on_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([twin_orthogonalize(m, 5) for m in matrix])
    torch.testing.assert_close(orthogonalize(matrix, 5, torch.float64), expected, rtol=1e-9, atol=1e-9)
    assert (orthogonalize(matrix.float(), 5).double() - expected).abs().max() < 0.1


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8])
def test_the_polynomials_come_nearer_to_one_with_every_step(steps: int) -> None:
    x = torch.logspace(math.log10(FLOOR), 0, 2000, dtype=torch.float64)
    furthest = []
    for count in (steps, steps + 1):
        y = x
        for a, b, c in quintics(count):
            y = a * y + b * y**3 + c * y**5
        furthest.append(float((y - 1).abs().max()))
    assert furthest[1] <= furthest[0] + 0.02
    assert steps < 4 or furthest[0] < 0.15


def test_orthogonalized_singular_values_are_near_one() -> None:
    matrix = torch.randn(1, 16, 24, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.4


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e-26, 1e-23, 1e-19, 1e-12, 1e18], ids=str)
def test_a_gradient_of_any_size_gives_a_finite_update(size: float) -> None:
    matrix = size * torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.bfloat16, torch.float32):
        assert float(orthogonalize(matrix, dtype=dtype).float().abs().max()) <= 1.5


def test_a_muon_update_has_the_stated_size_for_any_shape() -> None:
    for shape in ((16, 16), (64, 16), (16, 64)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        Muon([weight], lr=0.1).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.1 * UPDATE_RMS, rel=0.25)


def stepped(parameters: list[nn.Parameter], **options) -> list[torch.Tensor]:
    optimizer = Muon([{"params": parameters, **options}], lr=0.1, weight_decay=0.01, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        optimizer.step()
    return [p.detach() for p in parameters]


def test_batched_matrices_step_as_they_would_alone() -> None:
    def fresh(count: int) -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(0)
        return [nn.Parameter(torch.randn(4, 6, generator=generator, dtype=torch.float64)) for _ in range(count)]

    together = stepped(fresh(2))
    alone = fresh(2)
    optimizers = [Muon([p], lr=0.1, weight_decay=0.01, dtype=torch.float64) for p in alone]
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for parameter, optimizer in zip(alone, optimizers):
            parameter.grad = torch.randn(4, 6, generator=generator, dtype=torch.float64)
            optimizer.step()
    for a, b in zip(together, alone):
        torch.testing.assert_close(a, b.detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("axes", [(-2, -1), (0, 2), (0, 1), (1, 0)], ids=str)
def test_a_stack_steps_as_its_matrices_do(axes: tuple[int, int]) -> None:
    start = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradient = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    stack = nn.Parameter(start.clone())
    stack.grad = gradient.clone()
    Muon([{"params": [stack], "axes": [axes]}], lr=0.1, dtype=torch.float64).step()
    moved, moved_gradient = start.movedim(axes, (-2, -1)), gradient.movedim(axes, (-2, -1))
    expected = torch.empty_like(moved)
    for i in range(moved.shape[0]):
        one = nn.Parameter(moved[i].clone())
        one.grad = moved_gradient[i].clone()
        Muon([one], lr=0.1, dtype=torch.float64).step()
        expected[i] = one.detach()
    torch.testing.assert_close(stack.detach().movedim(axes, (-2, -1)), expected, rtol=1e-9, atol=1e-9)


def test_muon_refuses_a_vector() -> None:
    with pytest.raises(ValueError, match="shape"):
        Muon([nn.Parameter(torch.zeros(3))])


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


def test_every_field_of_the_configuration_is_plain_data() -> None:
    assert all(v is None or isinstance(v, int | float | str) for v in dataclasses.asdict(TrainConfig()).values())


def test_keeping_freed_memory_never_fails() -> None:
    assert keep_freed_memory() in (True, False)
