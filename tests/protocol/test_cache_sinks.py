"""The first tokens kept beside a window's cache: which they are with padding, and what every operation does to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.errors import InputError
from blockyard.nn.attention_sinks import NOT_YET
from blockyard.protocol.cache_sinks import SinkCache
from blockyard.standard.attention import StandardAttention
from tests.protocol.test_cache_window import SLOTS, tokens


def build(**options):
    with own_random(3):
        attention = StandardAttention(16, 2, causal=True, **options)
        randomise(attention)
    return attention.double().eval().requires_grad_(False)


def firsts(cache):
    return [[p for p in row if p < NOT_YET] for row in cache.places.tolist()]


def append(cache, n, keep=None):
    keep = None if keep is None else keep[:, : cache.length + n]
    return cache.append(**tokens(n, cache.batch, cache.length), padding_mask=keep)


@pytest.mark.parametrize("chunks", [[1] * 30, [7, 1, 1, 12, 2], [25, 1], [2, 1, 20]], ids=str)
def test_the_first_tokens_are_kept_whatever_the_pieces_they_come_in(chunks):
    cache = SinkCache(2, SLOTS, window=5, sinks=3, slack=2)
    for n in chunks:
        append(cache, n)
        assert firsts(cache) == [list(range(min(3, cache.length)))] * 2
    kept, places = cache.first()
    assert places.tolist() == [[0, 1, 2]]
    assert kept["k"][1, 0, :, 0].tolist() == pytest.approx([0.1, 1.1, 2.1])


@pytest.mark.parametrize("chunks", [[1] * 20, [4, 10, 6], [20]], ids=str)
def test_of_a_padded_row_they_are_the_first_that_are_kept(chunks):
    keep = torch.ones(3, 20)
    keep[0, :7] = 0
    # A hole, too: what is not kept is nobody's first token.
    keep[1, 1] = 0
    cache = SinkCache(3, SLOTS, window=5, sinks=3, slack=2)
    for n in chunks:
        append(cache, n, keep)
    assert firsts(cache) == [[7, 8, 9], [0, 2, 3], [0, 1, 2]]
    kept, places = cache.first()
    assert places.tolist() == cache.places.tolist()
    assert kept["v"][0, 1, :, 0].tolist() == [7, 8, 9]


def test_going_back_forgets_first_tokens_behind_the_place_and_new_ones_take_their_part():
    cache = SinkCache(1, SLOTS, window=5, sinks=6, slack=3)
    append(cache, 4)
    point = cache.snapshot()
    append(cache, 2)
    cache.crop(5)
    assert firsts(cache) == [[0, 1, 2, 3, 4]]
    cache.rollback(point)
    assert firsts(cache) == [[0, 1, 2, 3]]
    append(cache, 9)
    assert firsts(cache) == [[0, 1, 2, 3, 4, 5]]
    cache.reset()
    assert firsts(cache) == [[]]


def test_rows_take_their_first_tokens_along():
    keep = torch.ones(2, 12)
    keep[1, :2] = 0
    cache = SinkCache(2, SLOTS, window=4, sinks=2, slack=2)
    append(cache, 12, keep)
    cache.reorder(torch.tensor([1, 1]))
    assert firsts(cache) == [[2, 3], [2, 3]]
    cache.select(torch.tensor([0, 1, 0]))
    cache.repeat(2)
    assert cache.batch == 6 and firsts(cache) == [[2, 3]] * 6
    cache.to(dtype=torch.float64)
    kept, _ = cache.first()
    assert kept["k"].dtype == torch.float64 and kept["k"].shape == (6, 2, 2, 3)
    assert kept["k"][:, 0, :, 0].tolist() == [pytest.approx([2.1, 3.1])] * 6


def test_a_mask_by_which_other_tokens_are_first_is_refused_and_changes_nothing():
    cache = SinkCache(1, SLOTS, window=3, sinks=2, slack=0)
    append(cache, 8)
    keep = torch.ones(1, 9)
    keep[0, 0] = 0
    with pytest.raises(InputError, match="by the padding_mask other tokens are the first of a row"):
        append(cache, 1, keep)
    assert cache.length == 8 and firsts(cache) == [[0, 1]]


def test_bytes_count_the_first_tokens_once():
    cache = SinkCache(1, SLOTS, window=3, sinks=4, slack=2)
    for length in range(1, 20):
        append(cache, 1)
        assert cache.nbytes == min(length, 4 + 4) * cache.bytes_per_token
    assert cache.allocated_nbytes <= (2 * 4 + 4) * cache.bytes_per_token


def test_no_first_tokens_are_refused():
    with pytest.raises(InputError, match="sinks=0 should be at least 1"):
        SinkCache(1, SLOTS, window=3, sinks=0)


@pytest.mark.parametrize(
    ("options", "words"), [({"sinks": 2}, "beside a window"), ({"window": 2, "sinks": -1}, "0 or more")]
)
def test_first_tokens_without_a_window_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        StandardAttention(16, 2, **options)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), window=st.integers(1, 9), sinks=st.integers(1, 7), padded=st.booleans())
def test_any_order_of_steps_and_steps_back_gives_what_the_whole_text_gives(data, window, sinks, padded):
    attention, x = build(window=window, sinks=sinks, n_kv_heads=1), random(2, 40, 16)
    keep = torch.ones(2, 40)
    keep[1, : data.draw(st.integers(0, 9)) if padded else 0] = 0
    expected, _ = attention(x, padding_mask=keep if padded else None)
    cache, shown = attention.new_cache(2), torch.zeros_like(x)
    while cache.length < 40:
        end = min(40, cache.length + data.draw(st.integers(1, 13)))
        past = cache.length
        mask = keep[:, :end] if padded else None
        shown[:, past:end] = attention(x[:, past:end], padding_mask=mask, cache=cache)[0]
        cache.crop(max(cache.length - data.draw(st.integers(0, 3)), past + 1))
    real = keep.bool()
    torch.testing.assert_close(shown[real], expected[real], rtol=1e-9, atol=1e-9)
