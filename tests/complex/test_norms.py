"""Complex norms and modReLU: against their twins, blind to the scale, with gradients at zero."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard.complex.norms import COMPLEX_NORMS, ComplexLayerNorm, ComplexRMSNorm, ComplexWhitenNorm, ModReLU
from tests.complex import twin
from tests.fixtures.complex_numbers import D, close, randn, randomised


@pytest.mark.parametrize("groups", [1, 2])
def test_rms_and_layer_norm_equal_their_twins(groups):
    z = randn(3, D)
    width = D // groups
    for cls, call in (
        (ComplexRMSNorm, lambda z, w, b: twin.rms_norm(z, w, 1e-5)),
        (ComplexLayerNorm, lambda z, w, b: twin.layer_norm(z, w, b, 1e-5)),
    ):
        norm = randomised(cls(D, groups=groups))
        bias = getattr(norm, "bias", torch.zeros(D)).tolist()
        for row, found in zip(z.tolist(), norm(z)):
            cut = [slice(g * width, (g + 1) * width) for g in range(groups)]
            expected = [v for c in cut for v in call(row[c], norm.weight.tolist()[c], bias[c])]
            close(found, expected)


def test_whitening_leaves_unit_variance_and_no_correlation():
    z = randn(4, 400)
    z = z.real * 3 + 1j * (z.imag + z.real) + (2 - 1j)
    out = torch.view_as_real(ComplexWhitenNorm(400, eps=1e-12).double()(z))
    covariance = out.mT @ out / 400
    close(covariance, torch.eye(2, dtype=torch.float64).expand(4, 2, 2) / 2, 1e-8)
    close(out.mean(1), torch.zeros(4, 2), 1e-10)


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(COMPLEX_NORMS)), scale=st.floats(1e-2, 1e3), seed=st.integers(0, 99))
def test_norms_do_not_see_the_scale(kind, scale, seed):
    norm = randomised(COMPLEX_NORMS[kind](D, eps=1e-14), seed)
    z = randn(3, D, seed=seed)
    close(norm(scale * z), norm(z), 1e-7)


def test_modrelu_equals_its_twin_and_has_a_dead_zone():
    activation = randomised(ModReLU(D, bias=-0.5))
    z = randn(5, D)
    close(activation(z), [twin.mod_relu(row, activation.bias.tolist()) for row in z.tolist()], 1e-5)
    assert (activation(1e-3 * z) == 0).any()


@pytest.mark.parametrize("make", [*COMPLEX_NORMS.values(), ModReLU], ids=lambda c: c.__name__)
def test_gradients_are_right_also_at_zero(make):
    module = randomised(make(3))
    if isinstance(module, ModReLU):
        with torch.no_grad():
            module.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    z = randn(3, 3)
    z[0], z[1, 0] = 0, 0
    torch.autograd.gradcheck(lambda z, *_: module(z), (z.requires_grad_(), *module.parameters()), atol=1e-4)


complextorch = "complextorch is a peer, installed beside the library for benchmarks only"


def test_rms_norm_and_rotary_equal_complextorch():
    peer = pytest.importorskip("complextorch.nn", reason=complextorch)
    z = randn(2, 6, D)
    plain = peer.RMSNorm(D, elementwise_affine=False)
    close(ComplexRMSNorm(D).double()(z), plain(z))
    close(ComplexWhitenNorm(D).double()(z), peer.LayerNorm(D, elementwise_affine=False)(z) / math.sqrt(2), 1e-4)
