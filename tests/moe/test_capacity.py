"""Capacity: what is over it is dropped in the order of the tokens, and nothing leaks by it."""

from __future__ import annotations

import math

import pytest
import torch

from tests.fixtures.mixtures import SUMS, D, E, T, build, expert_functions, inputs
from tests.moe import twin


def test_what_is_over_capacity_is_dropped_in_the_order_of_the_tokens():
    moe, x = build(capacity=0.5, k=2), inputs()
    y, aux = moe.with_aux(x)
    capacity = math.ceil(0.5 * T * 2 / E)
    experts = expert_functions(moe)
    dropped = 0
    for row in range(2):
        routed = [twin.gates(moe.router.linear.weight @ v, 2, "softmax", True) for v in x[row]]
        room = twin.places([chosen for chosen, _ in routed], capacity)
        for t, (chosen, weights) in enumerate(routed):
            parts = [w * experts[e](x[row, t]) for e, w, kept in zip(chosen, weights, room[t]) if kept]
            expected = sum(parts) if parts else torch.zeros(D, dtype=x.dtype)
            assert torch.allclose(y[row, t], expected, atol=1e-12)
            dropped += room[t].count(False)
    assert dropped > 0 and aux["stats"]["dropped"].item() == pytest.approx(dropped / (2 * T * 2))


def test_a_capacity_above_the_largest_load_drops_nothing():
    moe, x = build(capacity=float(E)), inputs()
    free = build()
    torch.testing.assert_close(moe(x), free(x), **SUMS)
    assert moe.with_aux(x)[1]["stats"]["dropped"] == 0


def test_a_capacity_holds_in_training_only():
    moe, x = build(capacity=0.3), inputs()
    assert not torch.allclose(moe(x), build()(x))
    assert torch.equal(moe.eval()(x), build()(x))


def test_a_capacity_leaks_nothing_from_the_future_nor_from_other_rows():
    moe, x = build(capacity=0.5, k=3), inputs(shape=(3, T))
    y = moe(x)
    for t in range(1, T):
        changed = x.clone()
        changed[:, t:] = inputs(seed=100 + t, shape=(3, T - t))
        torch.testing.assert_close(moe(changed)[:, :t], y[:, :t], **SUMS, msg=f"position {t} reaches back")
    other = torch.cat([inputs(seed=7, shape=(1, T)), x[1:]])
    torch.testing.assert_close(moe(other)[1:], y[1:], **SUMS, msg="a row sees another one")
