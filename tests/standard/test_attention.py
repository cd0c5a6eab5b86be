"""Standard attention against its definition in loops and float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.errors import InputError
from blockyard.nn.attention import attend
from blockyard.standard.attention import StandardAttention
from blockyard.vein.attention import TVAAttention
from tests.standard.twin import standard_attention

OPTIONS = [
    {},
    {"n_kv_heads": 2},
    {"n_kv_heads": 1, "kernel": "sdpa"},
    {"rope": "interleaved", "rope_theta": 50.0},
    {"rope": "none", "qk_norm": False},
    {"bias": True, "head_dim": 6},
    {"head_dim": 2, "v_dim": 5},
    {"v_dim": 3, "n_kv_heads": 2},
    {"window": 1},
    {"window": 3},
    {"window": 3, "kernel": "sdpa"},
    {"window": 4, "n_kv_heads": 2},
    {"window": 2, "sinks": 1},
    {"window": 2, "sinks": 3, "n_kv_heads": 2},
    {"window": 1, "sinks": 20, "kernel": "sdpa"},
    {"bias": "qkv", "n_kv_heads": 2},
    {"rope_dim": 2, "norm_eps": 1e-2},
    {"qk_norm": "whole", "n_kv_heads": 2, "norm_eps": 0.1},
    {"rope_scaling": "linear[factor=3]"},
    {"rope_scaling": "given[pairs=0.5 0.1]"},
    {"rope_frequencies": (0.7, 0.01, 0.7), "head_dim": 6, "n_kv_heads": 1},
    {"rope_frequencies": (0.7, 0.01, 0.2, 0.3), "n_kv_heads": 2},
    {"rope_frequencies": (0.7, 0.01, 0.2, 0.3), "n_kv_heads": 2, "rope": "interleaved", "qk_norm": False},
    {"rope_scaling": "dynamic[factor=2,original=5]", "rope": "interleaved"},
    {"rope_scaling": "yarn[factor=4,original=8,beta_fast=2,magnitude=1.2]", "head_dim": 8},
    {"rope_scaling": "llama3[factor=8,original=16]", "rope_theta": 20.0, "head_dim": 8},
    {"rope_scaling": "longrope[original=6,short=1 1.5,long=2 3,magnitude=1.1]"},
]


def build(seed=0, dtype=torch.float64, **options):
    with own_random(seed):
        attention = StandardAttention(16, 4, **options)
        randomise(attention)
    return attention.to(dtype).eval().requires_grad_(False)


def assert_equal_to_twin(attention, x, keep=None, mask=None, causal=False, tolerance=1e-9):
    arguments = {} if keep is None else {"padding_mask": keep}
    out, weights = attention(x, causal=causal, attn_mask=mask, return_weights=True, **arguments)
    fast, _ = attention(x, causal=causal, attn_mask=mask, **arguments)
    for row in range(len(x)):
        kept = None if keep is None else keep[row]
        expected, expected_weights = standard_attention(attention, x[row], causal=causal, keep=kept, mask=mask)
        real = slice(None) if kept is None else kept.bool()
        torch.testing.assert_close(out[row][real], expected[real], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(fast[row][real], expected[real], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(weights[row][:, real], expected_weights[:, real], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_equals_its_definition(options, causal):
    assert_equal_to_twin(build(**options), random(2, 9, 16), causal=causal)


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_padded_and_masked_attention_equals_its_definition(options, causal):
    keep = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 0, 0]])
    mask = (random(9, 9, seed=3) > -0.5) | torch.eye(9, dtype=torch.bool)
    for given_mask in (None, mask, torch.where(mask, random(9, 9, seed=4), -torch.inf)):
        assert_equal_to_twin(build(**options), random(2, 9, 16), keep, given_mask, causal)


@settings(max_examples=25, deadline=None)
@given(length=st.integers(1, 11), window=st.none() | st.integers(1, 12), causal=st.booleans(), data=st.data())
def test_any_length_window_sinks_and_padding_equals_the_definition(length, window, causal, data):
    pads = data.draw(st.lists(st.integers(0, length - 1), min_size=2, max_size=2))
    keep = torch.stack([(torch.arange(length) >= pad).long() for pad in pads])
    kernel = data.draw(st.sampled_from(["auto", "matmul", "sdpa"]))
    sinks = 0 if window is None else data.draw(st.integers(0, 12))
    attention = build(window=window, sinks=sinks, kernel=kernel)
    assert_equal_to_twin(attention, random(2, length, 16), keep, causal=causal)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 160),
    window=st.integers(1, 70),
    past=st.integers(0, 90),
    causal=st.booleans(),
    kernel=st.sampled_from(["matmul", "sdpa"]),
    padded=st.booleans(),
    sinks=st.sampled_from([0, 0, 1, 4, 100]),
)
def test_a_window_in_blocks_equals_a_window_as_a_mask(length, window, past, causal, kernel, padded, sinks):
    past = past if causal else 0
    q, k, v = random(2, 4, length, 6), random(2, 2, past + length, 6, seed=2), random(2, 2, past + length, 5, seed=3)
    keep = None
    if padded:
        keep = torch.ones(2, past + length)
        keep[0, : (past + length) // 2] = 0
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    rows = torch.arange(past, past + length)[:, None] - torch.arange(past + length)
    rank = torch.arange(past + length) if keep is None else (keep.cumsum(-1) - 1)[:, None, None]
    mask = ((rows >= 0) if causal else True) & ((rows.abs() < window) | (rank < sinks))
    outs = [
        attend(q, k, v, causal=causal, window=window, sinks=sinks, padding_mask=keep, kernel=kernel)[0],
        attend(q, k, v, attn_mask=mask, padding_mask=keep, kernel=kernel)[0],
    ]
    torch.testing.assert_close(*outs)
    fast, slow = (torch.autograd.grad((out * random(*out.shape, seed=4)).sum(), (q, k, v)) for out in outs)
    torch.testing.assert_close(fast, slow)


def test_cross_attention_equals_its_definition():
    for options in ({}, {"n_kv_heads": 2, "bias": True}, {"window": 2}):
        attention, x, context = build(**options), random(1, 5, 16), random(1, 7, 16, seed=2)
        expected, weights = standard_attention(attention, x[0], context=context[0])
        out, found = attention(x, context=context, return_weights=True)
        torch.testing.assert_close(out[0], expected)
        torch.testing.assert_close(found[0], weights)


@pytest.mark.parametrize("sinks", [0, 2, 30])
def test_a_windowed_cache_honours_masks_over_the_whole_text_and_returns_weights_over_it(sinks):
    attention, x = build(window=3, sinks=sinks), random(2, 90, 16)
    keep = torch.ones(2, 90)
    keep[0, :20] = 0
    mask = (random(90, 90, seed=3) > -0.5) | torch.eye(90, dtype=torch.bool)
    expected, weights = attention(x, causal=True, padding_mask=keep, attn_mask=mask, return_weights=True)
    cache = attention.new_cache(2)
    attention(x[:, :80], causal=True, padding_mask=keep[:, :80], attn_mask=mask[:80, :80], cache=cache)
    out, found = attention(
        x[:, 80:], causal=True, padding_mask=keep, attn_mask=mask[80:], cache=cache, return_weights=True
    )
    torch.testing.assert_close(out, expected[:, 80:])
    torch.testing.assert_close(found, weights[:, :, 80:])


def test_a_fully_masked_query_gives_zero_as_the_definition_does():
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    assert_equal_to_twin(build(), random(1, 5, 16), mask=mask)
    assert not standard_attention(build(), random(5, 16), mask=mask)[0][2].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_stays_close_to_the_definition(dtype):
    attention, x = build(dtype=dtype), random(1, 9, 16, dtype=dtype)
    expected, _ = standard_attention(build(dtype=dtype).double(), x[0].double(), causal=True)
    tolerance = 1e-5 if dtype == torch.float32 else 0.06
    torch.testing.assert_close(attention(x, causal=True)[0][0].double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"head_dim": 0}, "head_dim=0"),
        ({"head_dim": -4}, "head_dim=-4"),
        ({"v_dim": 0}, "v_dim=0"),
        ({"n_heads": 0, "head_dim": 4}, "n_heads=0"),
    ],
    ids=str,
)
def test_sizes_below_one_are_refused(options, words):
    with pytest.raises(InputError, match=f"{words} should be at least 1"):
        StandardAttention(**{"d_model": 16, "n_heads": 4, **options})


@pytest.mark.parametrize("mixer", [StandardAttention, TVAAttention])
@pytest.mark.parametrize("length", [3, 100])
def test_an_adapter_around_a_projection_is_called_at_every_length(mixer, length):
    attention, x = mixer(16, 4).eval(), random(1, length, 16, dtype=torch.float32)

    class Adapted(torch.nn.Module):
        """As LoRA wraps a layer: the base weight stays readable, the output is another."""

        def __init__(self, base):
            super().__init__()
            self.base = base
            self.weight, self.bias = base.weight, base.bias

        def forward(self, x):
            return self.base(x) * 2

    before = attention(x)[0]
    attention.v_proj = Adapted(attention.v_proj)
    torch.testing.assert_close(attention(x)[0], 2 * before)


@pytest.mark.parametrize("length", [3, 100])
def test_a_hook_on_a_projection_is_called_at_every_length(length):
    attention, seen = StandardAttention(16, 4), []
    attention.k_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    attention(random(1, length, 16, dtype=torch.float32))
    assert seen == [(1, length, 16)]


@pytest.mark.parametrize("queries", [1, 3, 16, 17])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "per head", "additive"])
def test_grouped_heads_of_few_queries_are_scored_together_and_change_nothing(queries, mask):
    q, k, v = random(2, 6, queries, 8), random(2, 2, 20, 8, seed=2), random(2, 2, 20, 5, seed=3)
    given = {
        "none": {},
        "causal": {"causal": True},
        "padding": {"padding_mask": torch.arange(20) >= torch.tensor([[3], [0]])},
        "per head": {"attn_mask": random(2, 6, queries, 20, seed=4) > 0, "causal": True},
        "additive": {"attn_mask": random(2, 1, queries, 20, seed=5)},
    }[mask]
    expected, _ = attend(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), kernel="matmul", **given)
    for kernel in ("auto", "matmul", "sdpa"):
        torch.testing.assert_close(attend(q, k, v, kernel=kernel, **given)[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("queries", [1, 5, 17])
@pytest.mark.parametrize("width", [3, 8, 11])
def test_values_may_be_shared_by_all_heads_and_lie_within_the_keys(queries, width):
    q, k, latents = random(2, 6, queries, 8), random(2, 6, 20, 8, seed=2), random(2, 20, 11, seed=3)
    for keys in (k, latents[..., :8].unsqueeze(1)):
        values = latents[..., :width].unsqueeze(1)
        wide, v = keys.expand(-1, 6, -1, -1).clone(), values.expand(-1, 6, -1, -1).clone()
        expected, _ = attend(q, wide, v, causal=True, kernel="matmul")
        for kernel in ("auto", "matmul", "sdpa"):
            found, _ = attend(q, keys, values, causal=True, kernel=kernel)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_frequencies_that_fit_no_pairs_are_refused():
    with pytest.raises(InputError, match="given for 3 pairs, but 2 are rotated"):
        build(rope_frequencies=(0.1, 0.2, 0.3))
    with pytest.raises(InputError, match="nothing is rotated"):
        build(rope_frequencies=(0.1, 0.2), rope="none")
