"""Intervals over a handful of seeds, and how often comparisons claim what is not there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from blockyard.report.stats import Difference, Family, interval, margin_of, median_interval, speed_word
from tests.report.slow_family import slow_factor


def test_the_interval_of_three_values_is_the_textbook_one():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert interval([1.0]) == (1.0, None)
    assert interval([]) == (None, None)


@pytest.mark.parametrize(
    ("gap", "half", "margin", "word"),
    [
        (0.2, 0.1, 0.05, "worse"),
        (-0.2, 0.1, 0.05, "better"),
        (0.02, 0.1, 0.05, "undecided"),
        (0.02, 0.02, 0.05, "equivalent"),
        (0.03, 0.01, 0.05, "equivalent"),
        (0.03, 0.01, 0.0, "worse"),
        (0.0, 0.0, 0.0, "equivalent"),
        (0.1, None, 1.0, "unknown"),
        (None, None, 1.0, "unknown"),
    ],
)
def test_words_follow_from_the_interval_and_the_margin(gap, half, margin, word):
    assert Difference(gap, half).word("lower", margin) == word
    other = {"worse": "better", "better": "worse"}.get(word, word)
    assert Difference(gap, half).word("higher", margin) == other


def test_the_margin_is_what_was_asked_for_or_is_natural_or_a_part_of_the_best():
    assert margin_of(0.5, 0.01, 2.0) == 0.5 and margin_of(0.0, 0.01, 2.0) == 0.0
    assert margin_of(None, 0.01, 2.0) == 0.01
    assert margin_of(None, None, -2.0) == pytest.approx(0.02) and margin_of(None, None, None) == 0


def test_the_interval_of_two_choices_is_welchs_times_a_factor():
    a, b = [3.0, 4.0, 5.0], [1.0, 2.0, 3.3]
    found = Family({"a": a, "b": b}).difference("a", "b")
    parts = np.maximum([np.var(a, ddof=1), np.var(b, ddof=1)], min(np.var(a, ddof=1), np.var(b, ddof=1))) / 3
    freedom = parts.sum() ** 2 / (parts**2 / 2).sum()
    welch = scipy_stats.t.ppf(0.975, freedom) * math.sqrt(parts.sum())
    assert found.gap == pytest.approx(np.mean(a) - np.mean(b))
    assert found.half_width == pytest.approx(1.07 * welch, rel=0.03)


@pytest.mark.parametrize("sizes", [(3,) * 6, (3, 4, 6), (5, 5)])
def test_the_simulated_factor_agrees_with_one_that_draws_every_figure(sizes):
    """The fast form draws means and variances; the slow one draws figures and works them out by their definitions."""
    samples = {str(i): list(np.arange(n, dtype=float)) for i, n in enumerate(sizes)}
    family = Family(samples)
    first, second = (family.variances[name] / len(samples[name]) for name in ("0", "1"))
    freedom = (first + second) ** 2 / (first**2 / (sizes[0] - 1) + second**2 / (sizes[1] - 1))
    tail = 0.05 / math.comb(len(sizes), 2)
    own = family.difference("0", "1").half_width / (scipy_stats.t.isf(tail / 2, freedom) * math.sqrt(first + second))
    assert own == pytest.approx(slow_factor(sizes, 4000), rel=0.06)  # 4,000 draws know a 95 % quantile to 2 to 3 %


@pytest.mark.parametrize("noise", [(1, 1, 1, 1), (4, 1, 1, 1), (2, 2, 1, 1)], ids=["equal", "one 4x", "half 2x"])
def test_one_report_in_twenty_claims_what_is_not_there(noise):
    random, claims, many = np.random.default_rng(5), 0, 1500
    for _ in range(many):
        figures = random.standard_normal((4, 3)) * np.array(noise)[:, None]
        family = Family({str(i): list(row) for i, row in enumerate(figures)})
        best = str(figures.mean(1).argmin())
        claims += any(family.difference(str(i), best).word() == "worse" for i in range(4) if str(i) != best)
    # Three standard errors above 5.5 %.
    assert claims / many <= 0.055 + 3 * math.sqrt(0.05 * 0.95 / many)


def test_choices_without_two_figures_have_no_interval_and_take_none_from_others():
    family = Family({"a": [1.0, 1.1, 1.2], "b": [1.0], "c": [2.0, 2.1, 2.2], "d": []})
    assert family.difference("b", "a").half_width is None
    assert family.difference("d", "a") == Difference(None, None)
    assert family.difference("c", "a") == Family({"a": [1.0, 1.1, 1.2], "c": [2.0, 2.1, 2.2]}).difference("c", "a")


def test_figures_without_any_noise_differ_by_what_they_differ():
    found = Family({"a": [1.0, 1.0], "b": [2.0, 2.0]}).difference("b", "a")
    assert found == Difference(1.0, 0.0) and found.word() == "worse"


def test_one_wild_choice_does_not_hide_the_others_and_a_still_one_claims_nothing_by_luck():
    quiet, near = [1.00, 1.01, 0.99], [1.10, 1.11, 1.09]
    calm = Family({"a": quiet, "b": near, "c": [1.2, 1.21, 1.19]}).difference("b", "a").half_width
    wild = Family({"a": quiet, "b": near, "c": [1.0, 9.0, 5.0]}).difference("b", "a").half_width
    assert wild == pytest.approx(calm)
    still = Family({"a": [1.0, 1.0, 1.0], "b": [1.1, 1.1, 1.1], "c": [1.0, 1.3, 1.2], "d": [1.0, 1.2, 1.4]})
    assert still.difference("b", "a").word() == "undecided"


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 0.6))
def test_the_seeds_that_are_advised_decide_if_nothing_else_changes(gap):
    figures = [-0.1, 0.0, 0.1]
    family = Family({"a": figures, "b": [gap + x for x in figures]})
    more = family.seeds_to_decide("b", "a", 0.0)
    if more is None:
        assert gap < 0.07
        return
    # As many figures with the same mean and variance.
    many = list(scipy_stats.zscore(np.arange(3 + more), ddof=1) * 0.1)
    assert Family({"a": many, "b": [gap * 1.05 + x for x in many]}).difference("b", "a").word() == "worse"


def test_the_interval_of_a_median_is_the_sign_tests():
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_interval(list(range(1, 7))) == (3.5, 1, 6)
    # Of ten, the second and the ninth: 1 - 2 * 11 / 1024 = .979.
    assert median_interval(list(range(1, 11))) == (5.5, 2, 9)


@pytest.mark.parametrize(
    ("ratios", "word"),
    [
        ([1.2, 1.3, 1.25, 1.22, 1.4, 1.21, 1.2], "better"),
        ([0.8, 0.9, 0.85, 0.7, 0.8, 0.82, 0.9], "worse"),
        ([0.99, 1.01, 1.0, 1.015, 0.985, 1.0, 1.01], "equivalent"),
        ([0.9, 1.1, 1.0, 1.05, 0.95, 1.0, 1.01], "undecided"),
        ([1.2] * 5, "unknown"),
    ],
)
def test_speeds_are_said_of_in_the_same_words(ratios, word):
    assert speed_word(ratios) == word
