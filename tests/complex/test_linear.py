"""Complex linear layers: against their twin, linear over the complex numbers, cast without losing a part."""

from __future__ import annotations

import pytest
import torch

from blockyard import InputError
from blockyard.complex.attention import ComplexAttention
from blockyard.complex.ffn import ComplexSwiGLU
from blockyard.complex.linear import ComplexLinear
from blockyard.complex.norms import ComplexRMSNorm, ModReLU
from tests.complex import twin
from tests.fixtures.complex_numbers import D, H, close, randn, randomised, weight_of


@pytest.mark.parametrize("mode", ["auto", "native", "block", "gauss"])
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 7)], ids=str)
def test_every_linear_form_equals_the_twin(mode, shape):
    layer = randomised(ComplexLinear(*shape, mode=mode))
    x = randn(4, shape[0])
    expected = [twin.linear(row, weight_of(layer)) for row in x.tolist()]
    close(layer(x), expected)
    with torch.no_grad():
        close(layer(x), expected)


@pytest.mark.parametrize("mode", ["native", "block", "gauss"])
def test_linear_is_linear_over_the_complex_numbers_and_bias_is_added(mode):
    layer = randomised(ComplexLinear(5, 4, mode=mode, bias=True))
    bias = torch.view_as_complex(layer.bias)
    x, y, a, b = randn(3, 5, seed=1), randn(3, 5, seed=2), 0.3 - 1.2j, -2 + 0.7j
    close(layer(a * x + b * y) - bias, a * (layer(x) - bias) + b * (layer(y) - bias))


@pytest.mark.parametrize("mode", ["native", "block", "gauss"])
def test_linear_gradients_are_those_of_finite_differences(mode):
    layer = randomised(ComplexLinear(3, 2, mode=mode, bias=True))
    x = randn(2, 3)
    x[0] = 0
    torch.autograd.gradcheck(lambda x, *_: layer(x), (x.requires_grad_(), *layer.parameters()))


def test_the_assembled_matrix_follows_its_weight():
    layer = randomised(ComplexLinear(4, 3, mode="block"))
    x = randn(2, 4)
    with torch.no_grad():
        first = layer(x)
        layer.weight.mul_(2)
        close(layer(x), 2 * first)
        layer.weight = torch.nn.Parameter(-layer.weight.detach() / 2)
        close(layer(x), -first)


def test_initial_weights_have_the_variance_of_a_real_matrix():
    torch.manual_seed(0)
    weight = torch.view_as_complex(ComplexLinear(300, 200).weight.detach())
    # Cut at three standard deviations, 1.3 % of the variance is lost.
    assert float(weight.abs().square().mean()) == pytest.approx(2 / 500, rel=0.03)


def test_bfloat16_weights_take_complex64_in_and_give_complex64_out():
    torch.manual_seed(0)
    layer = ComplexLinear(64, 32)
    x = randn(9, 64, dtype=torch.complex64)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    half = layer.to(torch.bfloat16).eval()(x)
    for found in (mixed, half):
        assert found.dtype == torch.complex64
        assert (found - exact).abs().max() < 0.02 * exact.abs().max()
    assert not torch.equal(mixed, exact)


def test_casts_that_would_lose_an_imaginary_part_are_refused():
    layer = ComplexAttention(D, H)
    layer.register_buffer("phasor", torch.ones(3, dtype=torch.complex64))
    for cast in (torch.bfloat16, torch.float32, torch.float64):
        with pytest.raises(InputError, match=r"phasor from torch.complex64 .* lose its imaginary part"):
            layer.to(cast)
    assert layer.float().phasor.is_complex(), "float() leaves complex tensors alone"
    plain = ComplexAttention(D, H)
    with pytest.raises(InputError, match="real pairs"):
        plain.to(torch.complex64)
    assert all(p.dtype == torch.float32 for p in plain.parameters())
    assert plain.double().q_proj.weight.dtype == torch.float64
    assert plain.to(torch.bfloat16).q_proj.weight.dtype == torch.bfloat16


def test_a_real_input_is_refused_with_a_hint():
    for module in (ComplexLinear(D, D), ComplexSwiGLU(D), ComplexAttention(D, H), ModReLU(D), ComplexRMSNorm(D)):
        with pytest.raises(InputError, match=r"expected complex64 or complex128; torch.view_as_complex"):
            module(torch.ones(1, 2, D))
