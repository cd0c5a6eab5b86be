"""Every output of every model has finite gradients, at inputs where roots, quotients and masks meet their ends, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blockyard.tasks.price.heads import student_quantiles
from blockyard.vein.projector import VeinProjector
from tests.fixtures.every_model import MODELS, Case

# What the model's inputs are replaced by.
EDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "as they come": lambda x: x,
    "zeros": torch.zeros_like,
    "one value": torch.ones_like,
    "one row of zeros": lambda x: torch.cat([torch.zeros_like(x[:1]), x[1:]]),
    "large": lambda x: x * 1e4 if x.is_floating_point() or x.is_complex() else x,
}


def at_edge(name: str, padded: bool, edge: Callable[[Tensor], Tensor]) -> tuple[Case, list[Tensor]]:
    """The case with other inputs, and all that gradients are taken of: parameters, and inputs that are numbers."""
    case = MODELS[name](torch.float32, padded)
    inputs = tuple(edge(x).detach() for x in case.inputs)
    for x in inputs:
        x.requires_grad_(x.is_floating_point() or x.is_complex())
    leaves = [*case.model.parameters(), *(x for x in inputs if x.requires_grad)]
    return Case(case.model, inputs, case.given), leaves


def check(case: Case, leaves: list[Tensor], where: str) -> None:
    outputs = {name: out for name, out in case.outputs().items() if out.requires_grad}
    assert outputs
    for name, out in outputs.items():
        # Times 0 as well: a loss that leaves an output out meets 0 · ∞ where one that reads it meets ∞.
        for weight in (1.0, 0.0):
            figure = weight * (torch.view_as_real(out) if out.is_complex() else out).sum()
            found = torch.autograd.grad(figure, leaves, retain_graph=True, allow_unused=True)
            assert all(
                g is None or torch.isfinite(torch.view_as_real(g) if g.is_complex() else g).all() for g in found
            ), f"{where}: {name}"


@pytest.mark.parametrize("name", MODELS)
def test_every_output_has_finite_gradients(name: str) -> None:
    for edge, change in EDGES.items():
        check(*at_edge(name, False, change), edge)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("lm", "classify"))])
def test_every_output_has_finite_gradients_where_rows_are_padding(name: str) -> None:
    for whole in (False, True):
        case, leaves = at_edge(name, True, EDGES["as they come"])
        mask = case.given["padding_mask"].clone()
        if whole:
            mask[1] = False
        check(Case(case.model, case.inputs, {**case.given, "padding_mask": mask}), leaves, f"whole rows: {whole}")


def test_gradients_of_students_quantiles_are_finite_and_right() -> None:
    levels = (1e-6, 0.001, 0.05, 0.3, 0.49, 0.5, 0.51, 0.7, 0.95, 0.999)
    # Away from 5, where the source switches a term on and the approximation has a step of 1e-6.
    freedom = torch.cat([torch.linspace(2.1, 4.9, 300), torch.logspace(0.71, 6, 300)]).double().requires_grad_()
    quantiles = student_quantiles(freedom, levels)
    assert (quantiles[:, 5] == 0).all()
    step = 1e-5 * freedom.detach()
    with torch.no_grad():
        ahead, behind = (student_quantiles(freedom + sign * step, levels) for sign in (1, -1))
    for level in range(len(levels)):
        (slope,) = torch.autograd.grad(quantiles[:, level].sum(), freedom, retain_graph=True)
        # The source switches between two expansions, which leaves steps of 1e-5 at single places.
        wrong = (slope - (ahead - behind)[:, level] / (2 * step)).abs() > 1e-4 * slope.abs() + 1e-8
        assert torch.isfinite(slope).all() and wrong.sum() <= 3


def test_errors_of_veins_have_finite_gradients_at_zero_and_within_the_vein() -> None:
    for tied in (False, True):
        torch.manual_seed(0)
        vein = VeinProjector(8, 3, tied=tied)
        within = vein.reconstruct(torch.randn(4, 3)).detach()
        for x in (torch.zeros(4, 8), within):
            x.requires_grad_()
            for relative in (False, True):
                v, u = vein.matrices()
                both = (
                    vein.compute_reconstruction_error(x, relative),
                    vein.error_from(x, torch.nn.functional.linear(x, v), u, relative),
                )
                for error in both:
                    found = torch.autograd.grad(
                        error.sum(), (x, *vein.parameters()), retain_graph=True, allow_unused=True
                    )
                    assert all(g is None or torch.isfinite(g).all() for g in found)
