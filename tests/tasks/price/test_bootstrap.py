"""Intervals by the block bootstrap: about right where losses are independent, wider where they are not."""

import math

import numpy as np
import pytest

from blockyard.tasks.price.scores import block_length, enough_blocks, estimate, resample, word_of


def test_block_bootstrap_intervals_are_wider_for_dependent_losses_and_about_right_for_independent_ones():
    draw = np.random.default_rng(0)
    noise = draw.standard_normal(1000)
    single = estimate(noise[:, None], lambda m: m[..., 0], block=1)
    assert single.high - single.low == pytest.approx(2 * 1.96 / math.sqrt(1000), rel=0.15)
    assert single.value == pytest.approx(noise.mean())
    smooth = np.convolve(noise, np.ones(20), mode="same")
    naive, block = (estimate(smooth[:, None], lambda m: m[..., 0], block=b) for b in (1, 40))
    assert block.high - block.low > 3 * (naive.high - naive.low)


def test_block_bootstrap_resamples_are_means_of_circular_blocks():
    values = np.random.default_rng(2).standard_normal((30, 2))
    seen = []
    estimate(values, lambda m: seen.append(m) or m[..., 0], block=7, repeats=5, seed=3)
    starts = np.random.default_rng(3).integers(0, 30, (5, 5))
    slow = [values[[(s + i) % 30 for s in row for i in range(7)]].mean(axis=0) for row in starts]
    assert seen[1] == pytest.approx(np.array(slow))


def test_whole_groups_are_drawn_together():
    values = np.repeat(np.arange(10.0), 3)[:, None]
    grouped = estimate(values, lambda m: m[..., 0], block=1, groups=np.repeat(np.arange(10), 3))
    apart = estimate(values, lambda m: m[..., 0], block=1)
    assert grouped.value == apart.value == 4.5
    assert grouped.high - grouped.low > 1.4 * (apart.high - apart.low)
    assert block_length(1000, 1) == 10 and block_length(1000, 30) == 60 and block_length(9, 30) == 3


def test_columns_are_drawn_together_so_that_a_difference_is_narrower_than_its_parts():
    draw = np.random.default_rng(5)
    common = draw.standard_normal(600)
    pair = np.stack([common + 0.05 * draw.standard_normal(600), common + 0.1], axis=1)
    drawn = resample(pair, block=4)
    difference, single = drawn.estimate(lambda m: m[..., 1] - m[..., 0]), drawn.each()[0]
    assert difference.value == pytest.approx(0.1, abs=0.01)
    assert difference.high - difference.low < 0.1 * (single.high - single.low)
    assert single.value == pytest.approx(pair[:, 0].mean())
    alone = estimate(pair[:, :1], lambda m: m[..., 0], block=4)
    assert single.to_dict() == pytest.approx(alone.to_dict())


def test_a_word_is_said_by_the_interval_and_none_of_too_few_dates():
    def found(low, high):
        return {"value": (low + high) / 2, "low": low, "high": high}

    assert word_of(found(0.001, 0.02)) == "better" and word_of(found(-0.02, -0.001)) == "worse"
    assert word_of(found(-0.001, 0.026)) == "tie" and word_of(found(0.0, 0.0)) == "tie"
    assert word_of(found(0.001, 0.02), enough=False) == "too short"
    # Three blocks of twice the horizon, as many as `block_length` grants.
    assert enough_blocks(180, 30) and block_length(180, 30) == 60
    assert not enough_blocks(179, 30) and block_length(179, 30) < 60
