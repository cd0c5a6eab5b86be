"""The cache protocol on its own: growth, limits, rows, snapshots."""

import copy

import pytest
import torch

from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache, ModelCache


def tokens(n: int, batch: int = 2) -> dict[str, torch.Tensor]:
    return {"k": torch.randn(batch, 3, n, 4), "v": torch.randn(batch, 3, n, 5)}


def make(batch: int = 2, max_len: int | None = None) -> LayerCache:
    return LayerCache(batch, {"k": (3, 4), "v": (3, 5)}, max_len=max_len)


@pytest.mark.parametrize("max_len", [None, 300])
def test_appended_tokens_come_back_whole_and_in_order(max_len):
    cache, parts = make(max_len=max_len), [tokens(n) for n in (1, 70, 7, 200)]
    for part in parts:
        k, v = cache.append(**part)
    assert torch.equal(k, torch.cat([p["k"] for p in parts], dim=-2))
    assert torch.equal(v, torch.cat([p["v"] for p in parts], dim=-2))
    assert cache.length == 278


def test_growth_doubles_so_that_few_copies_are_made():
    cache, capacities = make(), set()
    for _ in range(1000):
        cache.append(**tokens(1))
        capacities.add(cache.capacity)
    assert sorted(capacities) == [64, 128, 256, 512, 1024]


def test_full_static_cache_is_an_error_that_names_both_numbers():
    cache = make(max_len=4)
    cache.append(**tokens(3))
    with pytest.raises(InputError, match=r"3 \+ 2 tokens exceed max_len=4"):
        cache.append(**tokens(2))
    assert cache.length == 3


def test_rows_follow_reorder_select_and_repeat():
    cache, part = make(batch=3), tokens(5, batch=3)
    cache.append(**part)
    cache.reorder(torch.tensor([2, 0, 0]))
    assert torch.equal(cache["k"], part["k"][[2, 0, 0]])
    cache.select(torch.tensor([0, 1]))
    cache.repeat(2)
    assert torch.equal(cache["v"], part["v"][[2, 2, 0, 0]])


def test_rollback_returns_to_the_snapshot():
    cache, first = make(), tokens(5)
    cache.append(**first)
    point = cache.snapshot()
    cache.append(**tokens(9))
    cache.rollback(point)
    assert torch.equal(cache["k"], first["k"])


@pytest.mark.parametrize("spoil", ["crop", "reorder", "reset"])
def test_rollback_is_refused_when_older_tokens_changed(spoil):
    cache = make()
    cache.append(**tokens(5))
    point = cache.snapshot()
    {"crop": lambda: cache.crop(2), "reorder": lambda: cache.reorder(torch.tensor([1, 0])), "reset": cache.reset}[
        spoil
    ]()
    cache.reset()
    cache.append(**tokens(9))
    with pytest.raises(InputError, match="no longer valid"):
        cache.rollback(point)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_buffers_hold_what_small_ones_hold(monkeypatch, dtype):
    monkeypatch.setattr("blockyard.machine.pages.FROM_BYTES", 1)
    large = LayerCache(2, {"k": (3, 4), "v": (3, 5)}, dtype=dtype)
    monkeypatch.setattr("blockyard.machine.pages.FROM_BYTES", 1 << 40)
    small = LayerCache(2, {"k": (3, 4), "v": (3, 5)}, dtype=dtype)
    for n in (1, 70, 200):
        part = {name: t.to(dtype) for name, t in tokens(n).items()}
        monkeypatch.setattr("blockyard.machine.pages.FROM_BYTES", 1)
        found = large.append(**part)
        monkeypatch.setattr("blockyard.machine.pages.FROM_BYTES", 1 << 40)
        assert all(torch.equal(a, b) for a, b in zip(found, small.append(**part)))
    large.reorder(torch.tensor([1, 1]))
    small.reorder(torch.tensor([1, 1]))
    assert torch.equal(copy.deepcopy(large)["k"], small["k"])
    assert large.nbytes == small.nbytes


def test_a_system_without_huge_pages_is_served_with_ordinary_ones(monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError("no")

    monkeypatch.setattr("blockyard.machine.pages.FROM_BYTES", 1)
    monkeypatch.setattr("blockyard.machine.pages.mmap.mmap", refuse)
    cache, part = make(), tokens(7)
    assert torch.equal(cache.append(**part)[0], part["k"])


def test_bytes_follow_from_the_slots():
    cache = make()
    cache.append(**tokens(7))
    assert cache.bytes_per_token == (3 * 4 + 3 * 5) * 4
    assert cache.nbytes == 2 * 7 * cache.bytes_per_token == sum(cache[n].numel() * 4 for n in ("k", "v"))
    assert cache.allocated_nbytes >= cache.nbytes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t | {"k": t["k"][:1]}, "expected"),
        (lambda t: t | {"k": t["k"].double()}, "float64"),
        (lambda t: {"k": t["k"]}, "holds"),
        (lambda t: t | {"k": t["k"].clone().requires_grad_()}, "inference"),
    ],
    ids=["batch", "dtype", "names", "grad"],
)
def test_wrong_tensors_are_refused(spoil, message):
    with pytest.raises(InputError, match=message):
        make().append(**spoil(tokens(2)))


def test_cache_made_in_inference_mode_can_be_written_outside_it():
    with torch.inference_mode():
        cache = make()
        cache.append(**tokens(2))
    with torch.no_grad():
        cache.append(**tokens(100))
    assert cache.length == 102


def test_model_cache_passes_operations_to_every_layer():
    cache = ModelCache([make(), make()])
    for layer in cache:
        layer.append(**tokens(4))
    point = cache.snapshot()
    for layer in cache:
        layer.append(**tokens(4))
    cache.rollback(point)
    assert [layer.length for layer in cache] == [4, 4] and cache.length == 4
    assert cache.nbytes == sum(layer.nbytes for layer in cache)


def test_a_lengthwise_cache_holds_the_same_and_reads_features_in_rows():
    plain = make()
    rows = LayerCache(2, {"k": (3, 4), "v": (3, 5)}, lengthwise=True)
    for n in (1, 70, 3):
        part = tokens(n)
        for mine, its in zip(rows.append(**part), plain.append(**part)):
            assert torch.equal(mine, its)
    for cache in (plain, rows):
        cache.crop(60)
        cache.repeat(2)
        cache.reorder(torch.tensor([3, 0, 1, 2]))
    assert torch.equal(rows["v"], plain["v"]) and rows.nbytes == plain.nbytes
    assert rows["k"].stride(-2) == 1 and rows.to(dtype=torch.float64)["k"].stride(-2) == 1
