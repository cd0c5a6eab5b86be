"""Muon: orthogonalised updates of the stated size, of real and of complex matrices."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import nn

from blockyard.complex.linear import real_block
from blockyard.training.muon import FLOOR, UPDATE_RMS, Muon, orthogonalize, quintics, real_blocks
from tests.fixtures.complex_numbers import close, randn


def test_muon_makes_a_complex_matrix_nearly_unitary():
    gradient = randn(5, 3, seed=3)
    pairs = torch.view_as_real(gradient)[None]
    made = orthogonalize(real_blocks(pairs), 6, torch.float64)
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    close(made, real_block(torch.view_as_real(u @ vh)).view(5, 2, 3, 2).permute(1, 0, 3, 2).reshape(1, 10, 6), 0.05)


def test_muon_steps_turn_with_their_gradient():
    steps = []
    for turn in (1.0, cmath.exp(0.8j)):
        weight = torch.nn.Parameter(torch.zeros(2, 4, 3, 2, dtype=torch.float64))
        weight.grad = torch.view_as_real(turn * randn(2, 4, 3)).clone()
        group = {"params": [weight], "axes": [(-3, -2)], "pairs": [True]}
        Muon([group], lr=1.0, dtype=torch.float64).step()
        steps.append(torch.view_as_complex(weight.detach()) / turn)
    close(steps[1], steps[0], 1e-9)
    assert torch.view_as_real(steps[0]).square().mean().sqrt() == pytest.approx(0.2, rel=0.25)


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


@pytest.mark.parametrize("parts", [(4, 2), (1, 5), (2, 2, 2), (6,)], ids=str)
def test_maps_that_lie_stacked_in_one_matrix_step_as_they_would_alone(parts: tuple[int, ...]) -> None:
    def draw(seed: int) -> torch.Tensor:
        return torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def stepped_once(start: torch.Tensor, gradient: torch.Tensor, **options) -> torch.Tensor:
        parameter = nn.Parameter(start.clone())
        parameter.grad = gradient.clone()
        Muon([{"params": [parameter], **options}], lr=0.1, weight_decay=0.01, dtype=torch.float64).step()
        return parameter.detach()

    stacked = stepped_once(draw(0), draw(1), parts=[parts])
    alone = [stepped_once(a, b) for a, b in zip(draw(0).split(list(parts)), draw(1).split(list(parts)))]
    torch.testing.assert_close(stacked, torch.cat(alone), rtol=1e-9, atol=1e-9)
    one_map = stepped_once(draw(0), draw(1))
    assert torch.equal(stacked, one_map) == (parts == (6,))


def test_complex_maps_that_lie_stacked_step_as_they_would_alone() -> None:
    start, gradient = torch.view_as_real(randn(5, 3)).clone(), torch.view_as_real(randn(5, 3, seed=3)).clone()
    found = []
    for parts in ([5], [4, 1]):
        rows = [nn.Parameter(piece.clone()) for piece in start.split(parts if len(parts) == 2 else 5)]
        for row, piece in zip(rows, gradient.split(parts if len(parts) == 2 else 5)):
            row.grad = piece.clone()
        count = len(rows)
        group = {"params": rows, "axes": [(-3, -2)] * count, "pairs": [True] * count}
        group["parts"] = [(4, 1)] if count == 1 else [()] * count
        Muon([group], lr=1.0, dtype=torch.float64).step()
        found.append(torch.cat([row.detach() for row in rows]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)
