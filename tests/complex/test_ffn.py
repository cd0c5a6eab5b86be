"""The complex FFN and the products on planes beneath it: against the twin, and right also at zero."""

from __future__ import annotations

import torch

from blockyard.complex.ffn import EPS, ComplexSwiGLU
from blockyard.complex.planes import gauss_product
from blockyard.nn.dropout import Dropout
from tests.complex import twin
from tests.fixtures.complex_numbers import C64, close, randn, randomised, weight_of


def test_swiglu_equals_its_twin():
    ffn = randomised(ComplexSwiGLU(4, d_ff=6))
    x = randn(3, 4)
    parts = [weight_of(w) for w in (ffn.w1, ffn.w2, ffn.w3)]
    close(ffn(x), [twin.swiglu(row, *parts, ffn.gate_bias.tolist(), EPS) for row in x.tolist()])


def test_swiglu_gradients_are_right_also_at_zero():
    ffn = randomised(ComplexSwiGLU(2, d_ff=3))
    x = randn(3, 2)
    x[0], x[1, 0] = 0, 0
    torch.autograd.gradcheck(lambda x, *_: ffn(x), (x.requires_grad_(), *ffn.parameters()), atol=1e-5)


def test_three_products_on_parts_held_apart_equal_four():
    ffn = randomised(ComplexSwiGLU(4, d_ff=6, linear="native"))
    apart = ComplexSwiGLU(4, d_ff=6, linear="gauss").double()
    apart.load_state_dict(ffn.state_dict())
    x, direction = randn(2, 3, 4), randn(2, 3, 4, seed=1)
    x[0, 0], x[1, 0, 1] = 0, 0
    x.requires_grad_()
    close(apart(x), ffn(x))
    grads = [torch.autograd.grad(f(x), (x, *f.parameters()), direction) for f in (apart, ffn)]
    for found, expected in zip(*grads):
        close(found, expected)
    torch.autograd.gradcheck(lambda x, *_: apart(x), (x, *apart.parameters()), atol=1e-5)


def test_parts_are_held_apart_for_many_wide_vectors_only(monkeypatch):
    from blockyard.complex import ffn as module

    ffn, calls = ComplexSwiGLU(module.WIDE), []
    monkeypatch.setattr(module, "gauss_product", lambda *args: calls.append(1) or gauss_product(*args))
    few, many = randn(module.LONG // 2, ffn.d_model, dtype=C64), randn(2, module.LONG // 2, ffn.d_model, dtype=C64)
    expected = [ffn(few)]
    assert not calls
    found = ffn(many)
    assert len(calls) == 2 and found.shape == many.shape
    torch.testing.assert_close(ffn(torch.cat([few, few]))[: len(few)], expected[0], rtol=1e-4, atol=1e-5)
    heard = []
    ffn.w2.register_forward_pre_hook(lambda *_: heard.append(1))
    calls.clear()
    ffn(many), ComplexSwiGLU(module.WIDE, bias=True)(many), ComplexSwiGLU(module.WIDE, linear="native")(many)
    with torch.autocast("cpu", torch.bfloat16):
        ComplexSwiGLU(module.WIDE)(many)
    assert not calls


def test_a_frozen_input_or_weight_gets_no_gradient_and_the_others_theirs():
    u, v, w = randn(3, 4).real, randn(3, 4).imag, torch.view_as_real(randn(5, 4, seed=1))
    whole = [t.clone().requires_grad_() for t in (u, v, w)]
    expected = torch.autograd.grad(sum(p.sum() for p in gauss_product(*whole[:2], whole[2:])), whole)
    for kept in (slice(0, 2), slice(2, 3)):
        given = [t.clone() for t in (u, v, w)]
        for tensor in given[kept]:
            tensor.requires_grad_()
        found = torch.autograd.grad(sum(p.sum() for p in gauss_product(*given[:2], given[2:])), given[kept])
        for a, b in zip(found, expected[kept]):
            close(a, b)


def test_the_gate_of_a_magnitude_can_close():
    ffn = ComplexSwiGLU(4, d_ff=6, gate_bias=-20.0)
    assert ffn(randn(2, 4, dtype=torch.complex64)).abs().max() < 1e-6


def test_dropout_drops_both_parts_of_a_number_at_once():
    layer, x = Dropout(0.5).train(), torch.ones(8, 50, dtype=torch.complex64) * (1 + 2j)
    for keys in (None, torch.arange(8)):
        layer.keys = keys
        out = layer(x)
        kept = out != 0
        assert 0.3 < kept.float().mean() < 0.7
        torch.testing.assert_close(out[kept], 2 * x[kept])
