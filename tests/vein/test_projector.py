"""The vein projector: a projection when tied, and the sizes and errors that the formulas give."""

import pytest
import torch

from blockyard.vein.projector import VeinProjector, orthonormal_rows, recommend_rank
from tests.fixtures.vein_blocks import D, R, sample


@pytest.mark.parametrize("implementation", ["linear", "parameter"])
@pytest.mark.parametrize("init_method", ["orthogonal", "normal", "xavier"])
def test_a_tied_vein_is_a_projection_whatever_its_parameter_is(implementation, init_method):
    vein = VeinProjector(D, R, implementation, init_method, tied=True).double()
    with torch.no_grad():
        next(vein.parameters()).mul_(3).add_(0.3)
    x = sample().double()
    torch.testing.assert_close(vein(vein(x)), vein(x), rtol=1e-12, atol=1e-12)
    error = vein.compute_reconstruction_error(x)
    assert (error > 0).all() and (error < 1).all()
    v, u = vein.matrices()
    torch.testing.assert_close(vein.error_from(x, x @ v.mT, u), error, rtol=1e-7, atol=1e-7)


def test_a_tied_vein_is_differentiable():
    vein = VeinProjector(6, 2, tied=True).double()
    assert torch.autograd.gradcheck(vein, (torch.randn(3, 6, dtype=torch.float64, requires_grad=True),))
    assert torch.autograd.gradcheck(orthonormal_rows, (torch.randn(3, 5, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("implementation", ["linear", "parameter"])
def test_both_implementations_have_the_same_size(implementation):
    assert sum(p.numel() for p in VeinProjector(D, R, implementation).parameters()) == 2 * D * R


def test_compression_ratio_and_recommended_ranks_are_what_the_formulas_give():
    assert VeinProjector(768, 4).get_compression_ratio() == 96
    assert [recommend_rank(d) for d in (768, 2048, 4096)] == [6, 11, 16]


def test_absolute_error_of_a_fresh_vein_is_about_the_root_of_the_width():
    vein, x = VeinProjector(768, 4), torch.randn(500, 768)
    assert abs(vein.compute_reconstruction_error(x, relative=False).mean() - 772**0.5) < 0.2
    tied = VeinProjector(768, 4, tied=True)
    assert abs(tied.compute_reconstruction_error(x).mean() - (1 - 4 / 768) ** 0.5) < 0.001


def test_the_error_of_a_zero_vector_is_zero():
    assert VeinProjector(D, R).compute_reconstruction_error(torch.zeros(2, D)).tolist() == [0, 0]
