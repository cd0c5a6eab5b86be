"""Rows of unequal length decode in one batch, padded on the left, and each gives what it gives alone."""

from __future__ import annotations

import pytest
import torch

from blockyard.conformance.subject import random
from blockyard.errors import InputError
from blockyard.protocol.cache_ring import RingCache
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import entries, get_attention
from tests.fixtures.stacks import is_complex, stack

NAMED = [
    "standard",
    "standard[n_kv_heads=1]",
    "standard[window=6]",
    "standard[window=2,sinks=2]",
    "standard[window=4,sinks=5]",
    "mla",
    "mla[rope=full]",
    "tva",
    "spectral[window=12,chunk=4]",
    "spectral[window=12,gate=token]",
    "complex[score=phase]+complex_swiglu",
    "standard/spectral[window=12,chunk=4]/standard[window=5]",
    "tva+vft/mla[cache=mixed]+moe/spectral[window=12,chunk=4]",
]


def others() -> list[str]:
    """Built-in mixers that decode with padding and stand in no choice above, each with its options at their defaults.

    A further wing needs no line above; one with options that matter to padding should have one.
    """
    named = {spec.attn for choice in NAMED for spec in parse_choice(choice)}
    return [
        entry.name
        for entry in entries("attn")
        if entry.cls.__module__.startswith("blockyard.")
        and entry.name not in named
        and entry.traits.causal
        and entry.traits.padding
        and entry.traits.cache != "none"
    ]


CHOICES = [*NAMED, *others()]
LENGTHS = (3, 9, 6)
MORE = 5
# How the padded prompt, as wide as its longest row and columns that are padding in all rows, is read.
WAYS = {"prefill": lambda width: [width], "steps": lambda width: [1] * width, "chunks": lambda width: _chunks(width, 4)}


def _chunks(width, size):
    return [min(size, width - start) for start in range(0, width, size)]


@pytest.mark.parametrize("common", [0, 6], ids=["a row without padding", "columns of padding in all rows"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("choice", CHOICES)
def test_a_row_padded_on_the_left_decodes_as_it_does_alone(choice, way, common):
    trunk = stack(choice)
    dtype = torch.complex128 if is_complex(choice) else torch.float64
    rows = [random(1, length + MORE, 16, seed=length, dtype=dtype) for length in LENGTHS]
    width = max(LENGTHS) + common
    # What stands in padding is large, so that nothing of it gets through unnoticed.
    wide, keep = 1e2 * random(3, width + MORE, 16, seed=1, dtype=dtype), torch.zeros(3, width + MORE)
    for i, row in enumerate(rows):
        wide[i, -row.shape[1] :], keep[i, -row.shape[1] :] = row[0], 1
    cache, parts, start = trunk.new_cache(3), [], 0
    with torch.no_grad():
        for size in [*WAYS[way](width), *[1] * MORE]:
            end = start + size
            parts.append(trunk.through_blocks(wide[:, start:end], padding_mask=keep[:, :end], cache=cache)[0])
            assert [layer.length for layer in cache] == [end] * 3
            start = end
        out = torch.cat(parts, 1)
        for i, row in enumerate(rows):
            alone = trunk.through_blocks(row)[0]
            # The same sums in another order.
            torch.testing.assert_close(out[i, -row.shape[1] :], alone[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("gate", ["chunk", "token"])
def test_common_padding_counts_towards_the_limit_of_a_static_cache_and_a_refusal_changes_nothing(gate):
    mixer = get_attention("spectral", d_model=8, n_heads=2, causal=True, window=8, gate=gate, num_groups=2).eval()
    x = torch.randn(2, 9, 8)
    keep = torch.ones(2, 9)
    keep[:, :3] = 0
    with torch.no_grad():
        cache = mixer.new_cache(2, max_len=8)
        mixer(x[:, :7], padding_mask=keep[:, :7], cache=cache)
        assert (cache.length, cache.counts.tolist()) == (7, [4, 4])
        held, state = cache.ring.clone(), {name: tensor.clone() for name, tensor in cache.state.items()}
        with pytest.raises(InputError, match=r"7 \+ 2 tokens exceed max_len=8"):
            mixer(x[:, 7:], padding_mask=keep, cache=cache)
        assert (cache.length, cache.counts.tolist()) == (7, [4, 4]) and torch.equal(cache.ring, held)
        assert cache.state.keys() == state.keys() and all(torch.equal(cache.state[n], state[n]) for n in state)
        step = mixer(x[:, 7:8], padding_mask=keep[:, :8], cache=cache)[0]
        alone = mixer(x[:, 3:8])[0]
    torch.testing.assert_close(step[:, 0], alone[:, -1], atol=1e-5, rtol=1e-4)


def test_a_ring_advances_by_the_piece_and_stores_what_is_real():
    cache = RingCache(2, 1, 4)
    cache.write(torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]]), torch.tensor([2, 1]), seen=5)
    assert (cache.length, cache.counts.tolist()) == (5, [2, 1])
    assert cache.last(2).squeeze(1).tolist() == [[1.0, 2.0], [0.0, 3.0]]
