"""The ring, a cache of the last tokens: what it keeps, how far it goes back, what it refuses."""

import pytest
import torch

from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache, ModelCache
from blockyard.protocol.cache_ring import RingCache
from blockyard.spectral.mixer import SpectralMixer


def test_the_ring_keeps_the_last_tokens_of_each_row():
    torch.manual_seed(0)
    cache, seen = RingCache(3, 2, 70), [torch.zeros(2, 0) for _ in range(3)]
    for size in [3, 1, 1, 60, 1, 40, 1, 1, 90, 2, 1]:
        values, new = torch.randn(3, 2, size), torch.randint(0, size + 1, (3,))
        cache.write(values, None if size == 40 else new)
        for row in range(3):
            kept = size if size == 40 else int(new[row])
            seen[row] = torch.cat([seen[row], values[row, :, :kept]], dim=1)
        for columns in (1, 5, 70):
            last = cache.last(columns)
            for row in range(3):
                wide = torch.cat([torch.zeros(2, columns), seen[row]], dim=1)
                assert torch.equal(last[row], wide[:, -columns:])
        for row in range(3):
            for slot, age in enumerate(cache.ages()[row].tolist()):
                expected = seen[row][:, -1 - age] if age < seen[row].shape[1] else torch.zeros(2)
                assert torch.equal(cache.ring[row, :, slot], expected)
    assert cache.length == 201 and cache.nbytes == 3 * 70 * 2 * 4 and cache.bytes_per_token == 8


def test_the_ring_goes_back_to_held_snapshots_only():
    cache = RingCache(1, 1, 4)
    cache.write(torch.tensor([[[1.0, 2.0]]]))
    early = cache.snapshot()
    cache.write(torch.tensor([[[3.0, 4.0, 5.0]]]))
    late = cache.snapshot()
    cache.write(torch.tensor([[[6.0]]]))
    with pytest.raises(InputError, match=r"cannot go back to 3.*snapshot"):
        cache.crop(3)
    cache.crop(5)
    assert cache.length == 5 and cache.last(4).flatten().tolist() == [2, 3, 4, 5]
    cache.crop(2)
    assert cache.last(4).flatten().tolist() == [0, 0, 1, 2]
    with pytest.raises(InputError, match="no longer valid"):
        cache.rollback(late)
    cache.write(torch.tensor([[[9.0]]]))
    cache.rollback(early)
    cache.write(torch.tensor([[[8.0]]]))
    assert cache.last(4).flatten().tolist() == [0, 1, 2, 8]
    del early
    with pytest.raises(InputError, match=r"crop\(2\)"):
        cache.crop(2)
    cache.crop(0)
    assert cache.length == 0 and not cache.last(4).any()


def test_a_model_cache_crops_all_layers_or_none():
    plain, ring = LayerCache(1, {"k": (1,)}), RingCache(1, 1, 4)
    cache = ModelCache([plain, ring])
    plain.append(k=torch.randn(1, 3, 1))
    ring.write(torch.randn(1, 1, 3))
    with pytest.raises(InputError, match="running state"):
        cache.crop(2)
    assert plain.length == ring.length == 3
    point = cache.snapshot()
    plain.append(k=torch.randn(1, 3, 1))
    ring.write(torch.randn(1, 1, 3))
    cache.crop(3)
    assert plain.length == ring.length == 3
    cache.rollback(point)


def test_the_ring_refuses_what_does_not_fit():
    cache = RingCache(2, 3, 4, max_len=5)
    with pytest.raises(InputError, match="expected"):
        cache.write(torch.zeros(2, 2, 1))
    with pytest.raises(InputError, match="no_grad"):
        cache.write(torch.zeros(2, 3, 1, requires_grad=True))
    cache.write(torch.zeros(2, 3, 5))
    with pytest.raises(InputError, match="max_len=5"):
        cache.write(torch.zeros(2, 3, 1))
    with pytest.raises(InputError, match="window=0"):
        RingCache(1, 1, 0)


def test_a_ring_has_half_the_bytes_of_keys_and_values():
    mixer = SpectralMixer(64, 2, causal=True, window=256)
    cache = mixer.new_cache(2)
    with torch.no_grad():
        mixer(torch.randn(2, 200, 64), cache=cache)
    state = sum(t.nbytes for t in cache.state.values())
    assert cache.nbytes == 2 * 200 * 64 * 4 + state
    # The running sum, and the anchors of the current chunk's kernels.
    assert state == 2 * 4 * (64 + 8 * 2 * mixer.gate.buckets)


def test_a_state_alone_needs_no_ring():
    cache = RingCache(2, max_len=9)
    for step, tokens in enumerate((4, 1, 1)):
        if step == 1:
            point = cache.snapshot()
        cache.advance(tokens, new=torch.tensor([tokens, 0]))
        cache.state = {"sum": torch.full((2, 3), float(step))}
    assert cache.length == 6 and cache.counts.tolist() == [6, 0] and cache.bytes_per_token == 0
    assert cache.nbytes == cache.allocated_nbytes == 2 * 3 * 4
    cache.select(torch.tensor([1, 1, 0]))
    assert cache.state["sum"].shape == (3, 3) and cache.counts.tolist() == [0, 0, 6] and not point.valid
    with pytest.raises(InputError, match="max_len=9"):
        cache.advance(4)
    point = cache.snapshot()
    cache.advance(2)
    cache.state = {}
    cache.rollback(point)
    assert cache.length == 6 and cache.to(dtype=torch.float64).state["sum"].dtype == torch.float32
    cache.reset()
    assert (cache.length, cache.state, cache.nbytes) == (0, {}, 0)
