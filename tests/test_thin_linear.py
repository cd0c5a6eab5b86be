"""Norms inside thin products, and single decoding steps of thin heads: the numbers of doing one after the other."""

import pytest
import torch
import torch.nn.functional as F

from blockyard.blocks_vein import VFTBlock
from blockyard.layers import thin
from blockyard.layers.norms import LayerNorm, make_norm
from blockyard.layers.thin import norm_linear
from blockyard.mixers.vein import TVAAttention


def made(kind: str, offset: float = 0.5, rows: int = 70, width: int = 16, dtype=torch.float64):
    torch.manual_seed(0)
    norm = LayerNorm(width, bias=False) if kind == "no bias" else make_norm(kind, width)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x = (torch.randn(2, rows, width, dtype=dtype) + offset).requires_grad_()
    return x, norm.to(dtype), torch.randn(5, width, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("kind", ["layer", "rms", "no bias"])
def test_outputs_and_gradients_are_those_of_the_norm_and_then_the_product(kind):
    x, norm, weight = made(kind)
    same, y = norm_linear(x, norm, weight)
    assert "NormLinear" in type(y.grad_fn).__name__
    expected = F.linear(norm(x), weight)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    parameters = [x, weight, *norm.parameters()]
    of_x, of_y = torch.randn_like(x), torch.randn_like(y)
    found = torch.autograd.grad((same * of_x).sum() + (y * of_y).sum(), parameters)
    wanted = torch.autograd.grad((x * of_x).sum() + (expected * of_y).sum(), parameters)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(norm_linear(x, norm, weight)[1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_a_mean_far_from_zero_costs_no_digits(offset):
    x, norm, weight = made("layer", offset, dtype=torch.float32)
    found = norm_linear(x, norm, weight)[1]
    wide = F.layer_norm(x.double(), (16,), norm.weight.double(), norm.bias.double(), norm.eps)
    # What float32 leaves of x itself at such an offset, and little more.
    close = 2e-5 + 4e-7 * offset * float(weight.detach().abs().sum(1).max())
    torch.testing.assert_close(found.double(), F.linear(wide, weight.double()), rtol=0, atol=close)


def test_what_is_wide_short_hooked_or_of_two_dtypes_goes_one_after_the_other():
    x, norm, weight = made("layer")
    for given in (
        (x, norm, torch.randn(9, 16, dtype=torch.float64)),
        (x[:1, :20], norm, weight),
        (x.float(), norm, weight),
        (x, torch.nn.LayerNorm(16).double(), weight),
    ):
        assert not thin._fuses(*given)
    assert thin._fuses(x, norm, weight)
    seen = []
    norm.register_forward_hook(lambda *_: seen.append(1))
    norm_linear(x, norm, weight)
    assert seen == [1]


@pytest.mark.parametrize("options", [{}, {"norm": "rms"}, {"tied": False}, {"stabilizer": "full"}, {"s": 1}])
def test_a_thin_block_gives_what_its_parts_give_one_after_the_other(options, monkeypatch):
    torch.manual_seed(0)
    block = VFTBlock(64, 2, 4, **({"s": 0, "causal": True} | options)).double()
    x = torch.randn(2, 50, 64, dtype=torch.float64, requires_grad=True)
    taken = []
    original = thin._norm_linear
    monkeypatch.setattr(thin, "_norm_linear", lambda *a: taken.append(1) or original(*a))
    grad = torch.randn_like(x)
    parameters = [x, *(p for p in block.parameters() if p.requires_grad)]
    results = []
    for fuses in (True, False):
        if not fuses:
            monkeypatch.setattr(thin, "_fuses", lambda *_: False)
        out = block(x)[0]
        results.append([out, *torch.autograd.grad(out, parameters, grad, allow_unused=True)])
    assert len(taken) == (1 if {"stabilizer", "s"} & options.keys() else 2)
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"rope": "none"}, {"qk_norm": True}, {"v_rank": 7}, {"rank": 3}])
def test_one_token_behind_a_cache_gives_the_last_row_of_the_whole(options):
    torch.manual_seed(0)
    mixer = TVAAttention(32, 3, **({"rank": 4} | options), causal=True)
    x, steps = torch.randn(2, 9, 32), []
    original = mixer._step
    mixer._step = lambda *a: steps.append(1) or original(*a)
    with torch.no_grad():
        whole = mixer(x)[0]
        cache = mixer.new_cache(2)
        pieces = [mixer(x[:, :4], cache=cache)[0], *(mixer(x[:, t : t + 1], cache=cache)[0] for t in range(4, 9))]
        torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert len(steps) == 5 and cache.length == 9


def test_a_step_with_masks_or_weights_asked_for_takes_the_general_way():
    torch.manual_seed(0)
    mixer = TVAAttention(32, 3, 4, causal=True)
    mixer._step = None
    token, keep = torch.randn(2, 1, 32), torch.tensor([[1], [0]])
    with torch.no_grad():
        assert mixer(token, cache=mixer.new_cache(2), return_weights=True)[1].shape == (2, 3, 1, 1)
        blind = mixer(token, cache=mixer.new_cache(2), padding_mask=keep)[0]
        assert not blind[1].any() and blind[0].any()
