"""The Haar wavelet: whole again at any length, and a branch that learns without passing a gradient."""

import math

import pytest
import torch

from blockyard.spectral.haar import WaveletRefinement, haar, inverse_haar


@pytest.mark.parametrize("length", [1, 2, 7, 12, 64, 100, 1009])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_haar_reconstructs_any_length_and_keeps_the_energy(length, levels):
    x = torch.randn(2, 3, length, dtype=torch.float64)
    bands = haar(x, levels)
    torch.testing.assert_close(inverse_haar(bands, length), x)
    torch.testing.assert_close(sum(band.square().sum() for band in bands), x.square().sum())


def test_haar_is_the_pairwise_difference_and_sum():
    detail, rest = haar(torch.tensor([1.0, 3.0, 2.0, 2.0]), 1)
    torch.testing.assert_close(detail, torch.tensor([-math.sqrt(2), 0.0]))
    torch.testing.assert_close(rest, torch.tensor([math.sqrt(8), math.sqrt(8)]))


def test_a_detached_wavelet_branch_passes_no_gradient_but_learns():
    for detach in (False, True):
        branch, x = WaveletRefinement(3, 1.0, detach=detach), torch.randn(2, 3, 8, requires_grad=True)
        with torch.no_grad():
            branch.gates.fill_(0.5)
        branch(x).square().sum().backward()
        assert branch.gates.grad.all() and (x.grad is None) == detach


def test_a_wavelet_rate_of_zero_is_off_everywhere():
    branch, x = WaveletRefinement(3, 0.0), torch.randn(2, 3, 8)
    with torch.no_grad():
        branch.gates.fill_(1)
    assert not branch.train()(x).any() and not branch.eval()(x).any()
