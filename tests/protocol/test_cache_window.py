"""The sliding window's cache: what it shows, what it drops, and how far back it can go.

(Random programs of operations, beside those of the other caches: test_cache_programs.py.)
"""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.protocol.cache_window import WindowCache
from blockyard.standard.attention import StandardAttention

SLOTS = {"k": (2, 3), "v": (2, 1)}


def tokens(n, batch=1, start=0):
    """Tokens whose numbers say at which position they stand."""
    place = torch.arange(start, start + n, dtype=torch.float32).view(1, 1, n, 1)
    row = torch.arange(batch).view(batch, 1, 1, 1) / 10
    return {"k": (place + row).expand(batch, 2, n, 3), "v": (place + row).expand(batch, 2, n, 1)}


def shown(cache, n):
    k, v = cache.append(**tokens(n, cache.batch, cache.length))
    assert k.shape[-2] == v.shape[-2]
    return [round(x) for x in k[0, 0, :, 0].tolist()]


@pytest.mark.parametrize("chunks", [[1] * 30, [7, 1, 1, 12, 2], [25, 1], [3] * 9], ids=str)
def test_new_tokens_are_shown_the_window_in_front_of_them(chunks):
    cache = WindowCache(1, SLOTS, window=5, slack=2)
    for n in chunks:
        past = cache.length
        assert shown(cache, n) == list(range(max(0, past - 4), past + n))
    assert cache.length == sum(chunks)


def test_it_holds_the_window_and_the_slack_and_says_how_many_bytes():
    cache = WindowCache(2, SLOTS, window=5, slack=3)
    for length in range(1, 40):
        shown(cache, 1)
        assert cache.held == min(length, 5 - 1 + 3)
        assert cache.nbytes == 2 * cache.held * (2 * 3 + 2 * 1) * 4 == sum(cache[n].numel() * 4 for n in SLOTS)
        assert cache.allocated_nbytes <= 2 * (2 * 7) * 8 * 4


def test_a_long_text_costs_a_bounded_number_of_bytes():
    mixer = StandardAttention(16, 2, window=10, causal=True).eval()
    cache = mixer.new_cache(1)
    with torch.no_grad():
        for _ in range(20):
            mixer(torch.randn(1, 50, 16), cache=cache)
    assert cache.length == 1000
    assert cache.nbytes == (10 - 1 + 64) * cache.bytes_per_token
    assert cache.allocated_nbytes <= 2 * cache.nbytes


def test_going_back_is_possible_within_the_slack_and_refused_beyond_it():
    cache = WindowCache(1, SLOTS, window=5, slack=3)
    shown(cache, 20)
    cache.crop(17)
    assert shown(cache, 2) == [13, 14, 15, 16, 17, 18]
    with pytest.raises(InputError, match=r"crop\(15\): of 19 tokens this cache holds the last 6 \(window=5\).* to 17"):
        cache.crop(15)
    assert (cache.length, cache.held) == (19, 6), "a refused crop must change nothing"
    cache.crop(0)
    assert shown(cache, 3) == [0, 1, 2]


def test_a_snapshot_that_lies_too_far_back_is_refused():
    cache = WindowCache(1, SLOTS, window=5, slack=3)
    shown(cache, 10)
    near, far = cache.snapshot(), cache.snapshot()
    shown(cache, 3)
    cache.rollback(near)
    assert shown(cache, 1) == [6, 7, 8, 9, 10]
    shown(cache, 9)
    with pytest.raises(InputError, match="holds the last"):
        cache.rollback(far)


def test_a_static_window_counts_the_whole_text_against_its_limit():
    cache = WindowCache(1, SLOTS, window=3, slack=2, max_len=12)
    shown(cache, 11)
    with pytest.raises(InputError, match=r"11 \+ 2 tokens exceed max_len=12"):
        shown(cache, 2)
    assert shown(cache, 1) == [9, 10, 11]


@pytest.mark.parametrize(("window", "slack"), [(0, 1), (3, -1)])
def test_a_window_that_holds_nothing_is_refused(window, slack):
    with pytest.raises(InputError, match="should be at least 1"):
        WindowCache(1, SLOTS, window=window, slack=slack)
