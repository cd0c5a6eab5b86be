"""RMSNorm of a token or some without gradients goes by torch's own: the numbers of the definition on both sides."""

from __future__ import annotations

import pytest
import torch

from blockyard.conformance.subject import random
from blockyard.nn import norms
from blockyard.nn.norms import rms_norm


def defined(x, weight, eps):
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, norms._FEW // 64, norms._FEW // 64 + 1])
@torch.no_grad()
def test_few_and_many_rows_are_one_function(rows, dtype):
    x = (random(1, rows, 128, dtype=torch.float64) * 3).to(dtype)[..., ::2]
    weight = random(64, seed=1, dtype=torch.float64).to(dtype)
    # A rounding of the result, and of a sum of 64 squares.
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    for eps in (1e-5, 0.1):
        found = rms_norm(x, weight, eps)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), defined(x, weight, eps), **tolerance)


@torch.no_grad()
def test_a_row_of_zeros_gives_zeros_and_gains_of_heads_their_own():
    assert not rms_norm(torch.zeros(1, 1, 8), torch.ones(8)).any()
    x, gains = random(1, 1, 4, 8, dtype=torch.float32), random(4, 8, seed=1, dtype=torch.float32)
    torch.testing.assert_close(rms_norm(x, gains).double(), defined(x, gains, 1e-5), rtol=1e-6, atol=1e-6)
