"""Attention in half precision: scores and softmax in float32 on every path, as near to float64 as SDPA comes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from blockyard import get_attention
from blockyard.complex import scores as complex_attention
from blockyard.conformance.subject import random
from blockyard.nn import attention, attention_kernels
from blockyard.nn.attention import attend
from blockyard.protocol.mixer import Call
from blockyard.standard.step import step_for

# Scores with a deviation of 16: in bfloat16 they would err by a thirty-second and more each, the outputs by 11 times as
# much as SDPA's do.
DEVIATION = 16.0


def inputs(dtype, queries, keys, heads=4, key_heads=4, width=16, v_width=16, batch=2):
    """Queries, keys and values whose scores, divided by the square root of the width, have that deviation."""
    q = random(batch, heads, queries, width, seed=1, dtype=torch.float32) * DEVIATION**0.5
    k = random(batch, key_heads, keys, width, seed=2, dtype=torch.float32) * DEVIATION**0.5
    v = random(batch, key_heads, keys, v_width, seed=3, dtype=torch.float32)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def exact(q, k, v, visible=None, scale=None):
    """The definition in float64."""
    q, k, v = (t.double() for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    return scores.softmax(-1) @ v


def causal(queries, keys, window=None):
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    return (distance >= 0) & (distance < (window or keys))


def error(found, expected):
    return (found.double() - expected).square().mean().sqrt().item()


def by_sdpa(q, k, v, visible=None, scale=None):
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale)


# Weights that go back to half precision are rounded after they were normalised, SDPA's before: up to 1.7 times its
# error was seen, 11 times with scores in bfloat16.
AS_GOOD = 2.5

FORMS = {
    "a short sequence": ({"queries": 17, "keys": 17}, {}),
    "128 tokens": ({"queries": 128, "keys": 128}, {}),
    "200 tokens": ({"queries": 200, "keys": 200}, {}),
    "600 tokens": ({"queries": 600, "keys": 600, "batch": 1}, {}),
    "products where SDPA is chosen": ({"queries": 200, "keys": 200}, {"kernel": "matmul"}),
    "SDPA where products are chosen": ({"queries": 60, "keys": 60}, {"kernel": "sdpa"}),
    "weights returned": ({"queries": 60, "keys": 60}, {"return_weights": True}),
    "one new token": ({"queries": 1, "keys": 300}, {}),
    "five new tokens": ({"queries": 5, "keys": 300}, {}),
    "grouped heads": ({"queries": 3, "keys": 300, "key_heads": 2}, {}),
    "a narrow value": ({"queries": 2, "keys": 100, "v_width": 8}, {}),
    "a window in blocks": ({"queries": 200, "keys": 200}, {"window": 20}),
    "a wide window": ({"queries": 700, "keys": 700, "batch": 1}, {"window": 300}),
    "a step in a window": ({"queries": 1, "keys": 30}, {"window": 30}),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_as_near_to_float64_as_sdpa(form, dtype):
    sizes, options = FORMS[form]
    q, k, v = inputs(dtype, **sizes)
    visible = causal(sizes["queries"], sizes["keys"], options.get("window"))
    expected = exact(q, k, v, visible)
    with torch.no_grad():
        found, weights = attend(q, k, v, causal=True, **options)
    assert found.dtype == dtype and (weights is None or weights.dtype == dtype)
    assert error(found, expected) <= AS_GOOD * error(by_sdpa(q, k, v, visible), expected)


@pytest.mark.parametrize("queries", [3, 60, 200], ids=["few", "some", "many"])
def test_gradients_in_bfloat16_are_as_near_to_float64_as_sdpas(queries):
    given = [t.requires_grad_() for t in inputs(torch.bfloat16, queries, queries)]
    slope = random(*given[2].shape, seed=4, dtype=torch.float32).bfloat16()
    visible = causal(queries, queries)

    def gradients(run, tensors):
        return torch.autograd.grad((run(*tensors) * slope.to(tensors[0].dtype)).sum(), tensors)

    expected = gradients(lambda q, k, v: exact(q, k, v, visible), [t.detach().double().requires_grad_() for t in given])
    found = gradients(lambda q, k, v: attend(q, k, v, causal=True)[0], given)
    theirs = gradients(lambda q, k, v: by_sdpa(q, k, v, visible), given)
    for mine, its, right in zip(found, theirs, expected):
        assert error(mine, right) <= AS_GOOD * error(its, right)


def test_half_precision_scores_go_through_torch_func_and_second_derivatives():
    q, k, v = (t[:, :2, :, :8].contiguous() / 4 for t in inputs(torch.bfloat16, 7, 7))
    bias = random(7, 7, seed=6, dtype=torch.float32)

    def loss(q, k, bias, of=v):
        return attend(q, k, of, causal=True, attn_mask=bias)[0].float().square().sum()

    given = tuple(t.clone().requires_grad_() for t in (q, k, bias))
    first = torch.autograd.grad(loss(*given), given, create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().sum() for g in first), given)
    wide = tuple(t.detach().float().requires_grad_() for t in given)
    first_wide = torch.autograd.grad(loss(*wide, v.float()), wide, create_graph=True)
    second_wide = torch.autograd.grad(sum(g.square().sum() for g in first_wide), wide)
    for found, right in zip((*first, *second), (*first_wide, *second_wide)):
        # A handful of roundings to 8 bits in a row.
        assert error(found, right.double()) <= 0.03 * error(right, 0)
    # Inside transforms the plain formula rounds elsewhere: as near to float32, but not the same numbers.
    for found, right in zip(torch.func.grad(loss, argnums=(0, 1, 2))(q, k, bias), first_wide):
        assert error(found, right.double()) <= 0.03 * error(right, 0)
    per_sample = torch.func.vmap(torch.func.grad(lambda q, k, v: loss(q[None], k[None], bias, v[None])))(q, k, v)
    torch.testing.assert_close(per_sample, first[0], rtol=2**-6, atol=2e-2)
    slopes = tuple(torch.randn_like(t) for t in (q, k, bias))
    _, along = torch.func.jvp(loss, (q, k, bias), slopes)
    assert along.item() == pytest.approx(sum((g * s).sum().item() for g, s in zip(first_wide, slopes)), rel=0.03)


@pytest.mark.parametrize("queries", [1, 4, 60, 200])
def test_padding_and_added_masks_in_bfloat16_follow_float64(queries):
    keys = max(queries, 90)
    q, k, v = inputs(torch.bfloat16, queries, keys)
    keep = torch.ones(2, keys, dtype=torch.bool)
    keep[0, :40], keep[1] = False, torch.arange(keys) % 3 > 0
    # Distances as ALiBi adds them: in bfloat16 they would be whole numbers only up to 256, and 2.03 would be 2.03125.
    bias = -1.01 * (torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)).abs().float()
    visible = causal(queries, keys) & keep[:, None, None]
    scores = q.double() @ k.double().mT / 4 + bias.double()
    blind = ~visible.any(-1, keepdim=True)
    expected = scores.masked_fill(~visible & ~blind, -math.inf).softmax(-1).masked_fill(blind, 0) @ v.double()
    with torch.no_grad():
        found, _ = attend(q, k, v, causal=True, padding_mask=keep, attn_mask=bias)
    assert error(found, expected) <= AS_GOOD * error(
        by_sdpa(q, k, v, causal(queries, keys)), exact(q, k, v, causal(queries, keys))
    )


def test_scores_beyond_what_float16_holds_are_no_infinity():
    q, k, v = inputs(torch.float16, 40, 40)
    q, k = q * 60, k * 60
    found, _ = attend(q, k, v, causal=True, scale=1.0)
    assert (q.float() @ k.float().mT).abs().max() > 65504 and torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), exact(q, k, v, causal(40, 40), 1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("queries", [1, 40, 300])
def test_autocast_rounds_no_score(queries):
    q, k, v = inputs(torch.float32, queries, 300)
    visible = causal(queries, 300)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attend(q, k, v, causal=True, kernel="matmul")
    expected = exact(q, k, v, visible)
    # Weights and values are rounded by the second product, 0.2 % each; rounded scores would make it 3 % and more.
    assert error(found, expected) <= 0.01 * error(expected, 0)


def test_thin_heads_leave_autocast_to_sdpa():
    q, k, v = (random(8, 12, 256, 4, seed=seed, dtype=torch.float32) for seed in range(3))
    assert attention.thin_attention.suits(q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not attention.thin_attention.suits(q, k, v)


@pytest.mark.parametrize("rows", [1, 7])
def test_keys_converted_in_pieces_give_what_they_give_at_once(rows, monkeypatch):
    q, k, v = inputs(torch.bfloat16, 3, 50, key_heads=2, batch=rows)
    keep = random(rows, 50, seed=5, dtype=torch.float32) > 0
    given = {"causal": True, "padding_mask": keep}
    with torch.no_grad():
        whole, _ = attend(q, k, v, **given)
        monkeypatch.setattr(attention_kernels, "_CONVERTED", 50 * 16 * 3)
        pieces, _ = attend(q, k, v, **given)
    # bfloat16 results of float32 sums in another order.
    torch.testing.assert_close(pieces, whole, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("score", complex_attention.SCORES)
def test_complex_scores_in_bfloat16_are_as_near_as_float32_ones_of_the_same_numbers(score):
    q, k, v = inputs(torch.bfloat16, 70, 70)
    share = torch.full((4,), 0.5)
    expected, _ = complex_attention.complex_attend(
        *(t.double() for t in (q, k, v)), score=score, share=share.double(), causal=True
    )
    found, _ = complex_attention.complex_attend(q, k, v, score=score, share=share, causal=True)
    assert found.dtype == torch.bfloat16
    # What rounding the exact result to bfloat16 costs is the least that is possible.
    assert error(found, expected) <= AS_GOOD * error(expected.bfloat16(), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("standard", {}),
        ("standard", {"n_kv_heads": 1}),
        ("standard", {"window": 16}),
        ("mla", {"decode": "absorbed"}),
        ("mla", {"decode": "naive"}),
        ("mla", {"rope": "full"}),
        ("tva", {}),
        ("complex", {}),
    ],
    ids=str,
)
def test_every_mixer_in_bfloat16_attends_as_well_as_sdpa_would(name, options, monkeypatch):
    """A prompt, a step and a piece behind a cache: what each call of `attend` gives, against float64 and SDPA."""
    errors = []

    def watched(q, k, v, *, scale=None, window=None, **given):
        out, weights = attend(q, k, v, scale=scale, window=window, **given)
        visible = causal(q.shape[2], k.shape[2], window)
        expected = exact(q, k, v, visible, scale)
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        errors.append(error(out, expected) / max(error(by_sdpa(q, k, v, visible, scale), expected), 1e-4))
        return out, weights

    for module in ("standard.attention", "latent.attention", "complex.scores"):
        monkeypatch.setattr(f"blockyard.{module}.attend", watched)
    torch.manual_seed(0)
    mixer = get_attention(name, d_model=32, n_heads=4, causal=True, **options).bfloat16().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            # Gains of queries, keys and latents: scores far apart.
            parameter.mul_(4 if parameter.ndim == 1 else 1)
        x = random(2, 40, 32, seed=1, dtype=torch.complex64 if name == "complex" else torch.float32)
        x = x if name == "complex" else x.bfloat16()
        cache, start = mixer.new_cache(2), 0
        for size in (36, 1, 3):
            mixer(x[:, start : start + size], cache=cache)
            start += size
    assert len(errors) == 3 and max(errors) <= AS_GOOD


def test_a_lengthwise_cache_in_bfloat16_takes_no_short_way():
    mixer = get_attention("tva", d_model=32, n_heads=4, causal=True).bfloat16().eval()
    cache = mixer.new_cache(1, dtype=torch.float32).to(dtype=torch.bfloat16)
    x = random(1, 9, 32, seed=1, dtype=torch.float32).bfloat16()
    with torch.no_grad():
        mixer(x[:, :8], cache=cache)
        assert cache.lengthwise and step_for(mixer, x[:, 8:], Call(cache=cache)) is None
