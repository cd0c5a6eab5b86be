"""Heads and their losses: rising quantiles, Student's t, the direction."""

import importlib

import numpy as np
import pytest
import torch

from blockyard.tasks.price.heads import (
    PointHead,
    QuantileHead,
    StudentHead,
    direction_loss,
    pinball,
    smoothness_loss,
    student_quantiles,
)
from blockyard.tasks.price.model import LEVELS


def test_quantiles_never_cross_and_start_where_they_are_told():
    head = QuantileHead(2, LEVELS)
    y = torch.randn(5000, 2) * torch.tensor([1.0, 3.0])
    head.start_at(y)
    still = head.quantiles(torch.zeros(1, 2, head.width))[0]
    assert torch.allclose(still.T, torch.quantile(y, torch.tensor(LEVELS), dim=0), atol=1e-3)
    wild = head.quantiles(20 * torch.randn(500, 2, head.width))
    assert (wild.diff(dim=-1) > 0).all() and wild.isfinite().all()
    # A price that often stands still has tied quantiles, and still positive steps.
    head.start_at(torch.cat([torch.zeros(90, 2), torch.randn(10, 2)]))
    assert (head.quantiles(torch.zeros(1, 2, head.width)).diff(dim=-1) > 0).all()


def test_pinball_loss_in_torch_is_that_in_numpy():
    from blockyard.tasks.price.scores import pinball_loss

    q, y = torch.randn(7, 3, 9, dtype=torch.float64).sort(-1).values, torch.randn(7, 3, dtype=torch.float64)
    slow = np.mean([pinball_loss(y[:, h].numpy(), q[:, h].numpy(), LEVELS) for h in range(3)])
    assert float(pinball(q, y, LEVELS)) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("freedom", "error"), [(2.1, 1e-3), (3, 1e-5), (4.7, 1e-5), (5.5, 1e-5), (30, 1e-5), (1e4, 1e-5)]
)
def test_student_quantiles_agree_with_scipy(freedom, error):
    scipy = importlib.import_module("scipy.stats")
    levels = (0.001, 0.025, 0.1, 0.3, 0.5, 0.6, 0.9, 0.99)
    found = student_quantiles(torch.tensor([freedom], dtype=torch.float64), levels)[0].numpy()
    assert found == pytest.approx(scipy.t.ppf(levels, freedom), rel=error, abs=1e-12)


def test_student_likelihood_agrees_with_torch():
    head = StudentHead(2, LEVELS)
    raw, y = torch.randn(6, 2, 3), torch.randn(6, 2)
    location, scale, freedom = head.parameters_of(raw)
    expected = -torch.distributions.StudentT(freedom, location, scale).log_prob(y).mean()
    torch.testing.assert_close(head.nll(raw, y), expected)


def test_the_seeds_direction_loss_has_a_gradient_towards_the_right_sign():
    point = torch.zeros(4, 2, requires_grad=True)
    y = torch.tensor([[1.0, -1.0]] * 4)
    direction_loss(point, y).backward()
    assert (point.grad[:, 0] < 0).all() and (point.grad[:, 1] > 0).all()
    assert float(smoothness_loss(torch.arange(5.0)[None])) == 0
    assert float(smoothness_loss(torch.tensor([[0.0, 1.0, 0.0]]))) == 4.0
    head = PointHead(2)
    head.start_at(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert head.point(torch.zeros(1, 2, 1))[0].tolist() == [2.0, 3.0]
