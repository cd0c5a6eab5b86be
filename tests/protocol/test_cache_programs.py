"""Random programs of cache operations: whatever is done, in any order, a cache holds and gives what plain lists do.

The naive model is a list of tokens per row and a list of points to go back to. Every operation is tried on both, also
ones that must be refused; after a refusal nothing may have changed.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.conformance.subject import random
from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache, ModelCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.protocol.cache_window import WindowCache
from tests.fixtures.stacks import stack

PADDING = -1
WINDOW, SLACK = 5, 3
SLOTS = {"k": (2, 3), "v": (2, 1)}


class Naive:
    """Rows of tokens, and snapshots as [length, valid]."""

    def __init__(self, batch, max_len):
        self.rows, self.max_len, self.points = [[] for _ in range(batch)], max_len, []

    @property
    def length(self):
        return len(self.rows[0])

    def takes(self, new):
        return self.max_len is None or self.length + new <= self.max_len

    def crop(self, length):
        self.rows = [row[:length] for row in self.rows]
        for point in self.points:
            point[1] &= point[0] <= length

    def select(self, index):
        if index != list(range(len(self.rows))):
            self.rows = [list(self.rows[i]) for i in index]
            self.lose_points()

    def reset(self):
        self.rows = [[] for _ in self.rows]
        self.lose_points()

    def lose_points(self):
        for point in self.points:
            point[1] = False


class Plain:
    """A `LayerCache` on its own: it shows everything."""

    def __init__(self, batch, max_len, **options):
        self.cache = LayerCache(batch, SLOTS, max_len=max_len, **options)

    def append(self, new, rows):
        values = torch.tensor(new, dtype=torch.float32)[:, None, :, None]
        shown = self.cache.append(k=values.expand(-1, 2, -1, 3), v=values.expand(-1, 2, -1, 1))
        expected = self.visible([row + more for row, more in zip(rows, new)], len(new[0]))
        assert all(tensor[:, 1, :, 0].tolist() == expected for tensor in shown)

    def visible(self, rows, new):
        return rows

    def reaches(self, length, naive):
        return True

    def check(self, rows):
        if self.cache.length:
            assert all(self.cache[name][:, 1, :, -1].tolist() == rows for name in SLOTS)


class Windowed(Plain):
    """A `WindowCache`: it shows the window, holds a slack beside it, and goes back no further."""

    def __init__(self, batch, max_len, window=WINDOW, slack=SLACK):
        self.cache, self.window = WindowCache(batch, SLOTS, window=window, slack=slack, max_len=max_len), window

    def visible(self, rows, new):
        return [row[max(0, len(row) - new - self.window + 1) :] for row in rows]

    def reaches(self, length, naive):
        return length == 0 or self.cache.length - self.cache.held <= max(0, length - self.window + 1)

    def check(self, rows):
        length, held = len(rows[0]), self.cache.held
        assert min(length, self.window - 1) <= held <= max(1, self.window - 1 + self.cache.slack)
        if held:
            assert all(self.cache[name][:, 0, :, 0].tolist() == [row[-held:] for row in rows] for name in SLOTS)


class Ring:
    """A `RingCache` with a running sum as its state; padding is counted and not stored."""

    def __init__(self, batch, max_len):
        self.cache = RingCache(batch, 1, WINDOW, max_len=max_len)

    def append(self, new, rows):
        real = [[token for token in row if token != PADDING] for row in new]
        width = max(1, *map(len, real))
        values = torch.tensor([row + [0] * (width - len(row)) for row in real], dtype=torch.float32)
        padded = any(len(row) < len(new[0]) for row in real)
        old = self.cache.state.get("sum", torch.zeros(len(rows)))
        counts = torch.tensor([len(row) for row in real]) if padded else None
        self.cache.write(values[:, None], counts, len(new[0]))
        self.cache.state = {"sum": old + values.sum(1)}

    def reaches(self, length, naive):
        return length in (0, naive.length) or any(valid and at == length for at, valid, _ in naive.points)

    def check(self, rows):
        real = [[float(token) for token in row if token != PADDING] for row in rows]
        assert self.cache.counts.tolist() == [len(row) for row in real]
        assert self.cache.last(WINDOW)[:, 0].tolist() == [([0.0] * WINDOW + row)[-WINDOW:] for row in real]
        if "sum" in self.cache.state:
            assert self.cache.state["sum"].tolist() == [sum(row) for row in real]


class Blocks:
    """The caches of blocks: new tokens get what the blocks give them without a cache."""

    def __init__(self, choice, batch, max_len):
        self.trunk = stack(choice)
        dtype = torch.complex128 if choice.startswith("complex") else torch.float64
        self.table = random(64, 1, 16, seed=3, dtype=dtype)[:, 0]
        self.cache = self.trunk.new_cache(batch, max_len)
        for i, layer in enumerate(self.cache):
            if isinstance(layer, WindowCache):
                # So that programs of a few tokens come to what it drops.
                given = {"slack": SLACK, "max_len": max_len, "dtype": layer.dtype}
                self.cache.layers[i] = WindowCache(batch, layer.slots, window=layer.window, **given)
        self.layers = [layer for layer in self.cache if isinstance(layer, WindowCache)]
        self.recurrent = any(isinstance(layer, RingCache) for layer in self.cache)

    def through(self, rows, new, cache=None):
        ids = torch.tensor(rows)
        mask = (ids != PADDING).long() if (ids == PADDING).any() else None
        x = self.table[ids.clamp(min=0)][:, -new:] if cache is not None else self.table[ids.clamp(min=0)]
        with torch.no_grad():
            return self.trunk.through_blocks(x, padding_mask=mask, cache=cache)[0][:, -new:]

    def append(self, new, rows):
        whole, size = [row + more for row, more in zip(rows, new)], len(new[0])
        out = self.through(whole, size, self.cache)
        real = torch.tensor(new) != PADDING
        # The same sums in another order.
        torch.testing.assert_close(out[real], self.through(whole, size)[real], atol=1e-9, rtol=1e-9)

    def reaches(self, length, naive):
        here = all(
            length == 0 or w.length - w.held <= max(0, length - w.window + 1) for w in self.layers
        ) and Plain.reaches(self, length, naive)
        return here and (not self.recurrent or Ring.reaches(self, length, naive))

    def check(self, rows):
        assert {layer.length for layer in self.cache} == {len(rows[0])}
        assert {layer.batch for layer in self.cache} == {len(rows)}


def tried(allowed, operation, *arguments):
    """Do it, or see it refused; whether it was done."""
    if allowed:
        operation(*arguments)
    else:
        with pytest.raises(InputError):
            operation(*arguments)
    return allowed


OPERATIONS = ("append",) * 6 + ("crop", "crop", "reorder", "select", "repeat", "snapshot", "snapshot", "rollback")
OPERATIONS += ("rollback", "release", "reserve", "reset", "to")


def run(data, make, steps, most=4):
    """A random program of so many operations on a cache and on lists."""
    batch = data.draw(st.integers(1, 3), label="batch")
    max_len = data.draw(st.sampled_from([None, None, 6, 17]), label="max_len")
    padding = data.draw(st.booleans(), label="padding")
    subject, naive = make(batch, max_len), Naive(batch, max_len)
    token = 0
    for _ in range(data.draw(st.integers(steps // 2, steps), label="steps")):
        cache, rows = subject.cache, len(naive.rows)
        operation = data.draw(st.sampled_from(OPERATIONS), label="operation")
        if operation == "append":
            size, new = data.draw(st.sampled_from([1, 1, 1, 2, 3, 7, 11]), label="tokens"), []
            for _ in range(rows):
                # Padding in front, as many as are drawn; in all rows, it may be, and everything.
                front = data.draw(st.integers(0, size), label="padding") if padding else 0
                new.append([PADDING] * front + [(token + i) % 61 for i in range(front, size)])
                token += size
            if tried(naive.takes(size), subject.append, new, naive.rows):
                naive.rows = [row + more for row, more in zip(naive.rows, new)]
        elif operation == "crop":
            length = data.draw(st.integers(-1, naive.length + 1), label="length")
            allowed = 0 <= length <= naive.length and subject.reaches(length, naive)
            if tried(allowed, cache.crop, length):
                naive.crop(length)
        elif operation in ("reorder", "select"):
            size = rows if operation == "reorder" else data.draw(st.integers(0, most), label="rows")
            size += operation == "reorder" and data.draw(st.sampled_from([0, 0, 0, 1]), label="too many")
            index = data.draw(st.lists(st.integers(0, rows), min_size=size, max_size=size), label="index")
            if data.draw(st.booleans(), label="within"):
                index = [i % rows for i in index]
            allowed = bool(index) and max(index) < rows and (operation == "select" or len(index) == rows)
            if tried(allowed, getattr(cache, operation), torch.tensor(index, dtype=torch.long)):
                naive.select(index)
        elif operation == "repeat":
            n = data.draw(st.integers(0, max(1, most // rows)), label="times")
            if tried(n > 0, cache.repeat, n):
                naive.select([i for i in range(rows) for _ in range(n)])
        elif operation == "snapshot":
            naive.points.append([naive.length, True, cache.snapshot()])
        elif operation == "rollback" and naive.points:
            # By number, and let go after: what is drawn is kept for the report, and a released snapshot would live on.
            length, valid, point = naive.points[data.draw(st.integers(0, len(naive.points) - 1), label="point")]
            # A ring goes back to any point; of the others only a window may have dropped too much.
            if tried(valid and subject.reaches(length, naive), cache.rollback, point):
                naive.crop(length)
            del point
        elif operation == "release" and naive.points:
            # A snapshot that nobody holds is no place to crop to.
            naive.points.pop(data.draw(st.integers(0, len(naive.points) - 1), label="point"))
        elif operation == "reserve":
            new = data.draw(st.integers(0, 30), label="room")
            tried(naive.takes(new), cache.reserve, new)
        elif operation == "reset":
            cache.reset()
            naive.reset()
        elif operation == "to":
            wanted = data.draw(st.sampled_from([None, torch.int64]), label="dtype")
            tried(wanted is None, cache.to, None, wanted)
        assert (cache.length, cache.batch) == (naive.length, len(naive.rows))
        subject.check(naive.rows)


KINDS = {
    "everything": Plain,
    "lengthwise": lambda batch, max_len: Plain(batch, max_len, lengthwise=True),
    "window": Windowed,
    "window of one": lambda batch, max_len: Windowed(batch, max_len, 1, 0),
    "window of nine": lambda batch, max_len: Windowed(batch, max_len, 9, 6),
    "ring": Ring,
}
BLOCKS = (
    "standard[n_kv_heads=2]",
    "standard[window=5]",
    "mla",
    "tva",
    "spectral[window=6,chunk=4]",
    "complex[score=magnitude]+complex_swiglu",
    "tva/standard[window=5]/spectral[window=6,chunk=4]",
    "spectral[window=6,gate=token]/mla[rope=full,cache=latent]+moe/tva+vft",
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_cache_holds_and_shows_what_lists_of_tokens_do(kind, data):
    run(data, KINDS[kind], steps=24)


@pytest.mark.parametrize("choice", BLOCKS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_blocks_give_with_their_caches_what_they_give_without(choice, data):
    run(data, lambda batch, max_len: Blocks(choice, batch, max_len), steps=12)


@pytest.mark.slow
@pytest.mark.parametrize("choice", [*KINDS, *BLOCKS])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_long_programs_too(choice, data):
    make = KINDS.get(choice) or (lambda batch, max_len: Blocks(choice, batch, max_len))
    run(data, make, steps=40)


def hybrid(max_len=None):
    """A model's cache of every kind, with seven tokens in it."""
    cache = ModelCache(
        [
            LayerCache(2, SLOTS, max_len=max_len),
            WindowCache(2, SLOTS, window=WINDOW, slack=SLACK, max_len=max_len),
            RingCache(2, 3, 4, max_len=max_len),
        ]
    )
    grow(cache, 7)
    return cache


def grow(cache, tokens):
    for layer in cache:
        if isinstance(layer, RingCache):
            layer.write(torch.randn(layer.batch, 3, tokens))
        else:
            layer.append(k=torch.randn(layer.batch, 2, tokens, 3), v=torch.randn(layer.batch, 2, tokens, 1))


def contents(cache):
    held = [layer.ring if isinstance(layer, RingCache) else layer["k"] for layer in cache]
    return [(layer.length, layer.batch, tensor.clone()) for layer, tensor in zip(cache, held)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda cache, points: cache.rollback([*points[:2], hybrid()[2].snapshot()]),
        lambda cache, points: cache.rollback([points[0], None, points[2]]),
        lambda cache, points: cache.rollback(points[:2]),
        lambda cache, points: cache.crop(6),
        lambda cache, points: cache.select(torch.tensor([0, 2])),
        lambda cache, points: cache.select(torch.tensor([[0, 1]])),
        lambda cache, points: cache.select(torch.tensor([True, False])),
        lambda cache, points: cache.reorder(torch.tensor([0])),
        lambda cache, points: cache.repeat(0),
        lambda cache, points: cache.to(dtype=torch.int32),
        lambda cache, points: cache.to(device="nowhere"),
        lambda cache, points: cache.reserve(20),
    ],
    ids=[
        "a point of another cache", "no point", "too few points", "a length that the ring cannot go back to",
        "a row that is not there", "an index of two axes", "a boolean index", "an index of another length",
        "no repetition", "integers", "a device that is not there", "more than max_len",
    ],
)  # fmt: skip
def test_what_one_layer_refuses_changes_no_layer(spoil):
    cache = hybrid(max_len=20)
    points = cache.snapshot()
    grow(cache, 1)
    before = contents(cache)
    with pytest.raises(InputError):
        spoil(cache, points)
    for (length, batch, tensor), (length_before, batch_before, tensor_before) in zip(contents(cache), before):
        assert (length, batch) == (length_before, batch_before) and torch.equal(tensor, tensor_before)
    cache.rollback(points)
    assert [layer.length for layer in cache] == [7, 7, 7]


def test_a_rollback_beyond_what_the_window_holds_leaves_every_layer_where_it_was():
    cache = hybrid()
    points = cache.snapshot()
    grow(cache, 9)
    with pytest.raises(InputError, match="holds the last"):
        cache.rollback(points)
    with pytest.raises(InputError, match="holds the last"):
        cache.crop(7)
    assert [layer.length for layer in cache] == [16, 16, 16]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.reorder(torch.tensor([0, 1])),
        lambda cache: cache.select(torch.tensor([0, 1])),
        lambda cache: cache.repeat(1),
        lambda cache: cache.to(dtype=torch.float64),
        lambda cache: cache.crop(8),
    ],
    ids=["identical order", "the same rows", "once", "another dtype", "crop to the end"],
)
def test_what_changes_no_row_leaves_the_snapshots_of_every_kind_valid(change):
    cache = hybrid()
    points = cache.snapshot()
    grow(cache, 1)
    change(cache)
    cache.rollback(points)
    assert [layer.length for layer in cache] == [7, 7, 7]


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.reorder(torch.tensor([1, 0])),
        lambda cache: cache.select(torch.tensor([1])),
        lambda cache: cache.repeat(2),
        lambda cache: cache.reset(),
        lambda cache: cache.crop(0),
    ],
    ids=["reorder", "select", "repeat", "reset", "crop"],
)
def test_what_changes_rows_or_older_tokens_ends_the_snapshots_of_every_kind(change):
    cache = hybrid()
    points = cache.snapshot()
    change(cache)
    for layer, point in zip(cache, points):
        with pytest.raises(InputError, match="no longer valid"):
            layer.rollback(point)


def test_rolling_back_ends_the_later_snapshots_of_every_kind():
    cache = hybrid()
    first = cache.snapshot()
    grow(cache, 1)
    later = cache.snapshot()
    cache.rollback(first)
    grow(cache, 1)
    for layer, point in zip(cache, later):
        with pytest.raises(InputError, match="no longer valid"):
            layer.rollback(point)
    cache.rollback(first)


def test_a_foreign_cache_that_cannot_say_beforehand_goes_first():
    class Foreign:
        length, batch = 7, 2

        def crop(self, length):
            raise InputError("not I")

    cache = hybrid()
    cache.layers.append(Foreign())
    with pytest.raises(InputError, match="not I"):
        cache.crop(7)
    cache.layers[2].snapshot()
    with pytest.raises(InputError, match="not I"):
        cache.crop(0)
    assert [layer.length for layer in cache] == [7, 7, 7, 7]


def test_a_snapshot_keeps_its_values_when_the_ring_is_converted():
    cache = RingCache(1, 1, 4)
    cache.write(torch.tensor([[[1.0, 2.0, 3.0]]]))
    cache.state = {"sum": torch.tensor([6.0])}
    point = cache.snapshot()
    cache.write(torch.tensor([[[4.0, 5.0]]]))
    with torch.inference_mode():
        cache.to(dtype=torch.float64)
    cache.rollback(point)
    cache.write(torch.tensor([[[9.0]]]))
    assert cache.ring.dtype == torch.float64 and cache.last(4).flatten().tolist() == [1.0, 2.0, 3.0, 9.0]
    assert cache.state["sum"].tolist() == [6.0]


def test_a_ring_that_inference_mode_copied_can_be_written_outside_it():
    cache = RingCache(1, 1, 4)
    cache.write(torch.ones(1, 1, 2))
    point = cache.snapshot()
    with torch.inference_mode():
        cache.write(torch.ones(1, 1, 1))
    cache.write(torch.ones(1, 1, 1))
    cache.rollback(point)
    assert cache.length == 2
