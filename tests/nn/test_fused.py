"""Norms inside thin products, and thin products inside sums: the numbers of doing one after the other."""

import pytest
import torch
import torch.nn.functional as F

from blockyard.nn import fused as thin
from blockyard.nn.fused import add_linear, norm_linear
from blockyard.nn.norms import LayerNorm, make_norm
from blockyard.vein.block import VFTBlock


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


@pytest.mark.parametrize("transposed", [False, True])
def test_a_thin_product_added_by_pieces_has_the_outputs_and_gradients_of_a_sum(transposed, monkeypatch):
    monkeypatch.setattr(thin, "_PIECE", 40)
    torch.manual_seed(0)
    x, z = (torch.randn(2, 5, width, dtype=torch.float64, requires_grad=True) for width in (16, 3))
    stored = torch.randn(*((3, 16) if transposed else (16, 3)), dtype=torch.float64, requires_grad=True)
    weight, grad = stored.mT if transposed else stored, torch.randn_like(x)
    found, wanted = add_linear(x, z, weight), x + F.linear(z, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(out, (x, z, stored), grad) for out in (found, wanted))):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)
    with torch.no_grad():
        torch.testing.assert_close(add_linear(x, z, weight), wanted, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_wider_thin_product_takes_the_mean_apart(kind, monkeypatch):
    x, norm, weight = made(kind)
    wide = norm_linear(x, norm, weight)[1]
    monkeypatch.setattr(thin, "_MEAN_APART", 1)
    torch.testing.assert_close(norm_linear(x, norm, weight)[1], wide, rtol=1e-13, atol=1e-13)
