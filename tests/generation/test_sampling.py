"""Filters on logits against obvious twins, and sampling against the distribution it should draw from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.errors import InputError
from blockyard.generation import sampling
from blockyard.generation.sampling import (
    Sampler,
    SamplingConfig,
    apply_temperature,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    process,
)

logit_rows = st.lists(st.integers(-80, 80).map(lambda n: n / 8), min_size=1, max_size=12)
quick = settings(max_examples=200, deadline=None)


def softmax(row):
    weights = [math.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


def kept(filtered):
    return [math.isfinite(x) for x in filtered[0].tolist()]


def rows(*lists):
    return torch.tensor(lists, dtype=torch.float64)


@quick
@given(logit_rows, st.integers(1, 15))
def test_top_k_keeps_a_token_exactly_when_fewer_than_k_are_more_likely(row, k):
    assert kept(keep_top_k(rows(row), k)) == [sum(other > x for other in row) < k for x in row]


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.1, 3.0, 8.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("ties", [False, True], ids=["", "ties"])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_sorting_all_of_it(p, spread, ties, monkeypatch):
    logits = torch.randn(6, 5000, generator=torch.Generator().manual_seed(3)) * spread
    logits = logits.round() if ties else logits
    found = keep_top_p(logits, p)
    monkeypatch.setattr(sampling, "CANDIDATES", 5000)
    assert torch.equal(found, keep_top_p(logits, p))


@quick
@given(logit_rows, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(row, p):
    mask = kept(keep_top_p(rows(row), p))
    probabilities = softmax(row)
    inside = [q for q, keep in zip(probabilities, mask) if keep]
    outside = [q for q, keep in zip(probabilities, mask) if not keep]
    assert sum(inside) >= p - 1e-9
    assert sum(inside) - min(inside) < p + 1e-9
    assert max(outside, default=0) <= min(inside) + 1e-12


@quick
@given(logit_rows, st.floats(0.001, 1))
def test_min_p_keeps_a_token_exactly_when_it_is_likely_enough(row, min_p):
    probabilities = softmax(row)
    for probability, keep in zip(probabilities, kept(keep_min_p(rows(row), min_p))):
        share = probability / max(probabilities)
        assert keep == (share >= min_p) or math.isclose(share, min_p, rel_tol=1e-9)


@quick
@given(logit_rows, st.floats(0.05, 5))
def test_temperature_raises_probabilities_to_its_inverse(row, temperature):
    powered = [q ** (1 / temperature) for q in softmax(row)]
    expected = [q / sum(powered) for q in powered]
    result = apply_temperature(rows(row), temperature).softmax(-1)[0].tolist()
    assert result == pytest.approx(expected, abs=1e-9)


@quick
@given(logit_rows, st.floats(1.01, 3), st.data())
def test_repetition_penalty_lowers_exactly_the_seen_tokens(row, penalty, data):
    seen = data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))
    out = penalise_repetition(rows(row), torch.tensor([seen]), penalty)[0].tolist()
    assert out == [(x / penalty if x > 0 else x * penalty) if s else x for x, s in zip(row, seen)]


@quick
@given(logit_rows, st.floats(0, 1, exclude_max=True))
def test_a_draw_is_the_first_token_whose_cumulated_probability_exceeds_the_number(row, uniform):
    token = draw(rows(row), torch.tensor([uniform], dtype=torch.float64)).item()
    cumulated = [math.fsum(softmax(row)[: i + 1]) for i in range(len(row))]
    assert uniform <= cumulated[token] + 1e-12
    assert token == 0 or uniform >= cumulated[token - 1] - 1e-12


@pytest.mark.parametrize("uniform", [0.0, math.nextafter(1.0, 0.0)], ids=["least", "greatest"])
def test_a_filtered_token_is_never_drawn(uniform):
    logits = torch.tensor([[-math.inf, 0.3, -math.inf, 0.1, -math.inf]])
    token = draw(logits, torch.tensor([uniform], dtype=torch.float64)).item()
    assert token in (1, 3)


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}, {"min_p": 0.2}, {"temperature": 2, "top_k": 4}],
    ids=str,
)
def test_drawn_frequencies_follow_the_processed_distribution(options):
    config = SamplingConfig(seed=7, **options)
    logits = torch.tensor([[1.5, 0.2, -0.7, 2.0, 0.9, -3.0]])
    expected = process(logits, config).softmax(-1)[0].double()
    count = 20_000
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    tokens = draw(process(logits, config).expand(count, -1), uniform)
    observed = torch.bincount(tokens, minlength=6) / count
    # Five standard deviations of a binomial frequency: a right sampler almost never goes beyond.
    assert ((observed - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


def test_temperature_zero_takes_the_most_likely_token_and_draws_no_number():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, 1.0, 4.0]])
    assert Sampler(SamplingConfig(temperature=0))(logits, [0, 1]).tolist() == [1, 0]


def test_repetition_penalty_also_counts_at_temperature_zero():
    seen = torch.tensor([[False, True, False]])
    sampler = Sampler(SamplingConfig(temperature=0, repetition_penalty=4.0))
    assert sampler(torch.tensor([[0.0, 3.0, 1.0]]), [0], seen).item() == 2


def test_a_tiny_temperature_is_almost_greedy_and_never_nan():
    sampler = Sampler(SamplingConfig(temperature=1e-30, seed=1))
    assert sampler(torch.tensor([[90.0, 80.0, -90.0]]), [0]).item() == 0


def test_the_same_seed_draws_the_same_tokens_whatever_else_draws():
    logits = torch.zeros(1, 50)
    first = Sampler(SamplingConfig(seed=3))
    a = [first(logits, [0]).item() for _ in range(20)]
    second = Sampler(SamplingConfig(seed=3))
    b = []
    for step in range(20):
        torch.manual_seed(step)
        torch.rand(step)
        b.append(second(logits, [0]).item())
    assert a == b
    assert len(set(a)) > 5


def test_sampling_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    Sampler(SamplingConfig())(torch.zeros(1, 50), [0])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SamplingConfig(**options)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"top_p": 0.5, "top_k": 40}], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_logits_that_are_not_finite_are_an_error_and_not_a_token(bad, options):
    logits = torch.zeros(2, 5000)
    logits[1, 3] = bad
    sampler = Sampler(SamplingConfig(**options))
    for take in (sampler, sampler.read):
        with pytest.raises(InputError, match="not finite"):
            take(logits, [0, 1])


def test_tokens_that_are_read_are_those_that_are_drawn():
    logits = torch.linspace(0, 3, 50).repeat(3, 1)
    for options in ({"temperature": 0}, {"top_p": 0.9, "seed": 4}):
        first, second = (Sampler(SamplingConfig(**options)) for _ in range(2))
        assert first.read(logits, [0, 1, 2]) == second(logits, [0, 1, 2]).tolist()
