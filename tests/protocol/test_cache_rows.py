"""Rows come and go in one cache: each gives what it gives alone, wherever and whenever it joins."""

from __future__ import annotations

import pytest
import torch

from blockyard.conformance.subject import random
from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache, ModelCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.cache_sinks import SinkCache
from blockyard.protocol.cache_window import WindowCache
from tests.fixtures.stacks import is_complex, stack
from tests.protocol.test_padding_in_company import CHOICES

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}


class Rows:
    """Rows of a cache with what each has read; a step is compared with reading the row alone."""

    def __init__(self, choice):
        self.trunk = stack(choice)
        self.dtype = torch.complex128 if is_complex(choice) else torch.float64
        self.texts, self.cache, self.seed = [], None, 0

    def text(self, length):
        self.seed += 1
        return random(1, length, 16, seed=self.seed, dtype=self.dtype)

    def read(self, text, cache=None):
        cache = self.trunk.new_cache(len(text)) if cache is None else cache
        self.trunk.through_blocks(text, cache=cache)
        return cache

    def begin(self, *lengths):
        self.texts = [self.text(length) for length in lengths]
        self.cache = self.trunk.new_cache(len(lengths))
        self.cache.align(max(lengths))
        for row, text in enumerate(self.texts):
            self.cache.put(torch.tensor([row]), self.read(text))

    def replace(self, row, length):
        self.texts[row] = self.text(length)
        if length > self.cache.length:
            self.cache.align(length)
        self.cache.put(torch.tensor([row]), self.read(self.texts[row]))
        self.trim()

    def trim(self):
        self.cache.align(max(text.shape[1] for text in self.texts))

    def select(self, index):
        self.texts = [self.texts[row] for row in index]
        self.cache.select(torch.tensor(index))
        self.trim()

    def step(self, count=1):
        for _ in range(count):
            new = torch.cat([self.text(1) for _ in self.texts])
            length = self.cache.length + 1
            held = torch.tensor([text.shape[1] + 1 for text in self.texts])
            keep = torch.arange(length) >= length - held[:, None]
            out, _ = self.trunk.through_blocks(new, padding_mask=keep, cache=self.cache)
            self.texts = [torch.cat([text, one[None]], 1) for text, one in zip(self.texts, new)]
            assert [layer.length for layer in self.cache] == [length] * len(self.cache)
        for row, text in enumerate(self.texts):
            alone = self.trunk.through_blocks(text)[0][0, -1]
            torch.testing.assert_close(out[row, -1], alone, **TOLERANCE, msg=lambda m, row=row: f"row {row}: {m}")


@pytest.mark.parametrize("choice", CHOICES)
def test_rows_that_come_and_go_decode_as_they_do_alone(choice):
    rows = Rows(choice)
    with torch.no_grad():
        rows.begin(4, 11, 1)
        rows.step(3)
        rows.replace(1, 2)
        rows.step(2)
        rows.replace(0, 90)
        rows.step(2)
        rows.select([0, 2, 1, 1])
        rows.replace(3, 7)
        rows.step()
        rows.select([3, 1])
        rows.step(70)
        rows.select([1])
        rows.step()


@pytest.mark.parametrize("choice", CHOICES)
def test_a_row_may_join_before_its_first_token(choice):
    rows = Rows(choice)
    with torch.no_grad():
        rows.begin(5, 3)
        rows.step()
        rows.texts[1] = rows.text(1)[:, :0]
        rows.cache.put(torch.tensor([1]), rows.trunk.new_cache(1))
        rows.step(6)


@pytest.mark.parametrize("choice", CHOICES)
def test_copies_of_a_beginning_go_on_by_themselves(choice):
    rows = Rows(choice)
    with torch.no_grad():
        beginning = rows.text(9)
        source = rows.read(beginning)
        copies = source.fork(torch.tensor([0, 0, 0]))
        rows.texts, rows.cache = [beginning] * 3, copies
        rows.step(4)
        assert source.length == 9
        # The original knows nothing of its copies.
        rows.texts, rows.cache = [beginning], source
        rows.step(2)
        if copies.goes_back:
            rows.texts, rows.cache = (
                [beginning[:, :5], beginning],
                rows.read(beginning).fork(torch.tensor([0, 0]), [5, 9]),
            )
            rows.step(3)
        else:
            with pytest.raises(InputError, match="copies its"):
                source.fork(torch.tensor([0]), [5])


def test_rows_that_leave_do_not_move_the_others():
    cache = LayerCache(4, {"k": (2, 3)})
    cache.append(k=torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 5, 3))
    before = cache["k"].data_ptr()
    cache.select(torch.tensor([0, 3, 2]))
    assert cache["k"].data_ptr() == before
    assert cache["k"][:, 0, 0, 0].tolist() == [0, 3, 2]
    held = cache.allocated_nbytes
    cache.select(torch.tensor([0, 1, 2, 0]))
    assert (cache["k"].data_ptr(), cache.allocated_nbytes) == (before, held)
    assert cache["k"][:, 1, 4, 2].tolist() == [0, 3, 2, 0]


def test_columns_that_are_dropped_make_room_for_others():
    cache = LayerCache(1, {"k": (1,)})
    for number in range(2000):
        cache.append(k=torch.full((1, 1, 1), float(number)))
        cache.align(min(cache.length, 10))
        assert cache["k"].flatten().tolist() == [float(n) for n in range(max(0, number - 9), number + 1)]
    assert cache.capacity <= 64


@pytest.mark.parametrize("max_len", [None, 12])
def test_padding_in_front_is_finite_and_dropped_again(max_len):
    cache = LayerCache(2, {"k": (3,)}, max_len=max_len)
    cache.append(k=torch.ones(2, 4, 3))
    cache.align(9)
    assert cache["k"].sum(1).tolist() == [[4.0] * 3] * 2
    assert (cache["k"][:, :5] == 0).all()
    cache.align(2)
    assert cache["k"].tolist() == torch.ones(2, 2, 3).tolist()
    cache.append(k=torch.full((2, 10, 3), 2.0))
    assert cache["k"][0, :, 0].tolist() == [1.0] * 2 + [2.0] * 10
    if max_len is not None:
        assert cache.capacity == max_len
        with pytest.raises(InputError, match="max_len=12"):
            cache.align(13)


def kinds():
    slots = {"k": (1,)}
    return {
        "layer": lambda batch: LayerCache(batch, slots),
        "window": lambda batch: WindowCache(batch, slots, window=3),
        "sinks": lambda batch: SinkCache(batch, slots, window=3, sinks=2),
        "ring": lambda batch: RingCache(batch, 1, 3),
    }


def fill(cache, length):
    if isinstance(cache, RingCache):
        cache.write(torch.ones(cache.batch, 1, length))
    else:
        cache.append(k=torch.ones(cache.batch, length, 1))
    return cache


@pytest.mark.parametrize("kind", kinds())
def test_what_does_not_fit_is_refused_and_changes_nothing(kind):
    make = kinds()[kind]
    cache = fill(make(2), 4)
    point = cache.snapshot()
    other = kinds()["ring" if kind == "layer" else "layer"](1)
    for rows, source, message in (
        ([0], fill(make(1), 5), "align\\(\\) it first"),
        ([0], fill(make(2), 4), "one row for each"),
        ([1, 1], fill(make(2), 4), "one row for each"),
        ([2], fill(make(1), 4), "outside a batch of 2"),
        ([0], fill(other, 4), "should be alike"),
    ):
        with pytest.raises(InputError, match=message):
            cache.put(torch.tensor(rows), source)
    with pytest.raises(InputError, match="align\\(-1\\)"):
        cache.align(-1)
    with pytest.raises(InputError, match="outside a batch of 2"):
        cache.fork(torch.tensor([2]))
    cache.rollback(point)
    cache.put(torch.tensor([0]), fill(make(1), 2))
    with pytest.raises(InputError, match="no longer valid"):
        cache.rollback(point)


def test_a_cache_of_a_users_own_joins_only_where_it_says_so():
    class Mine(LayerCache):
        """Keeps more than its base."""

    assert ModelCache([LayerCache(1, {"k": (1,)})]).joins
    assert not ModelCache([LayerCache(1, {"k": (1,)}), Mine(1, {"k": (1,)})]).joins
