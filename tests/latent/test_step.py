"""Decoding steps of latent attention: the numbers of the long way, noticed changes, and who goes the long way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.latent.attention import LatentAttention

D = 16
SHAPES = {
    "usual": {"kv_rank": 6},
    "thin latents": {"kv_rank": 3},
    "as wide as a head": {"kv_rank": 4, "rope_layout": "interleaved"},
    "no norm": {"kv_rank": 5, "latent_norm": False, "scale": 0.3},
    "other widths": {"kv_rank": 11, "nope_dim": 5, "v_dim": 7, "rope_dim": 6},
    "absorbed": {"kv_rank": 3, "decode": "absorbed", "nope_dim": 6, "v_dim": 2},
    "latents of queries": {"kv_rank": 4, "q_rank": 5},
    "longer rows": {"kv_rank": 6, "rope_dim": 4, "rope_scaling": "yarn[factor=4,original=4]"},
    "another base": {"kv_rank": 4, "rope_theta": 50.0},
}


def build(**options):
    with own_random(0):
        attention = LatentAttention(D, 4, causal=True, **options)
        randomise(attention)
    return attention.double().eval().requires_grad_(False)


def by_steps(attention, x, first):
    """The same by a prompt of so many tokens and steps, and the cache."""
    cache = attention.new_cache(len(x))
    parts = [attention(part, cache=cache)[0] for part in x.split([first, *[1] * (x.shape[1] - first)], dim=1)]
    return torch.cat(parts, dim=1), cache


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_steps_give_what_one_pass_gives(options, first):
    attention, x = build(**options), random(3, 7, D)
    found, cache = by_steps(attention, x, first)
    assert "latent" in cache.prepared
    torch.testing.assert_close(found, attention(x)[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_step_needs_no_kernel_of_its_own():
    attention, x = build(kv_rank=6), random(2, 6, D)
    with sdpa_kernel(SDPBackend.MATH):
        found, cache = by_steps(attention, x, 3)
    assert "latent" in cache.prepared
    torch.testing.assert_close(found, attention(x)[0], rtol=1e-10, atol=1e-10)


def in_place(attention):
    attention.k_up.mul_(2)


def other_values(attention):
    attention.v_up = nn.Parameter(2 * attention.v_up)


def other_map(attention):
    attention.kv_down_proj.weight = nn.Parameter(2 * attention.kv_down_proj.weight)


def gain(attention):
    attention.kv_norm.weight.mul_(2)


def hook(attention):
    attention.q_proj.register_forward_hook(lambda module, given, out: 2 * out)


def adapter(attention):
    attention.q_proj = nn.Sequential(attention.q_proj, nn.Tanh())


def output(attention):
    attention.output_proj = nn.Sequential(attention.output_proj, nn.Tanh())


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrised(attention):
    parametrize.register_parametrization(attention, "k_up", Doubled())


def another_norm(attention):
    attention.kv_norm = nn.Identity()


@pytest.mark.parametrize(
    "change",
    [in_place, other_values, other_map, gain, hook, adapter, output, parametrised, another_norm],
    ids=lambda change: change.__name__,
)
@torch.no_grad()
def test_a_change_between_two_steps_is_noticed(change):
    x, found = random(2, 5, D), []
    for short in (True, False):
        attention = build(kv_rank=4)
        cache = attention.new_cache(2)
        attention(x[:, :3], cache=cache)
        attention(x[:, 3:4], cache=cache)
        assert "latent" in cache.prepared
        change(attention)
        if not short:
            attention.kernel = "matmul"
            cache.prepared.clear()
        found.append(attention(x[:, 4:], cache=cache)[0])
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "options",
    [{"decode": "naive"}, {"cache": "expanded"}, {"rope": "full"}, {"window": 3}, {"bias": True}, {"kernel": "sdpa"},
     {"rope_scaling": "dynamic[factor=2,original=8]", "rope_dim": 4}],
    ids=str,
)  # fmt: skip
@torch.no_grad()
def test_what_a_step_does_not_know_goes_the_long_way(options):
    attention, x = build(kv_rank=6, **options), random(2, 4, D)
    found, cache = by_steps(attention, x, 2)
    assert not cache.prepared
    torch.testing.assert_close(found, attention(x)[0], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_what_is_asked_beside_goes_the_long_way():
    attention, x = build(kv_rank=6), random(2, 4, D)
    keep = torch.ones(2, 4)
    keep[0, 0] = 0
    cache = attention.new_cache(2)
    attention(x[:, :3], padding_mask=keep[:, :3], cache=cache)
    found = attention(x[:, 3:], padding_mask=keep, cache=cache)[0]
    assert not cache.prepared
    torch.testing.assert_close(found, attention(x, padding_mask=keep)[0][:, 3:], rtol=1e-10, atol=1e-10)
    cache = attention.new_cache(2)
    attention(x[:, :3], cache=cache)
    assert attention(x[:, 3:], cache=cache, return_weights=True)[1] is not None and not cache.prepared
