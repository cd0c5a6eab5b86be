"""QK-norm and rotation in one pass: the numbers of one after the other, and where attention takes it."""

import pytest
import torch

from blockyard import get_attention
from blockyard.nn import turned_heads
from blockyard.nn.rotary import RotaryPositionalEmbedding


def apart(x: torch.Tensor, gain: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, eps: float) -> torch.Tensor:
    """By definition: every pair (i, i + d/2) as a complex number that is turned."""
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * gain
    a, b = normed.chunk(2, -1)
    turned = torch.complex(a, b) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1)


@pytest.mark.parametrize("piece", [1, 2**17], ids=["row by row", "all rows"])
def test_outputs_and_gradients_are_those_of_the_definition(monkeypatch, piece):
    monkeypatch.setattr(turned_heads, "_PIECE", piece)
    torch.manual_seed(0)
    x, gain = torch.randn(3, 5, 4, 6, dtype=torch.float64), torch.rand(4, 6, dtype=torch.float64)
    x, gain = x.requires_grad_(), gain.requires_grad_()
    angles = torch.rand(5, 1, 3, dtype=torch.float64)
    tables = angles.cos(), angles.sin()
    out, expected = turned_heads.norm_and_turn(x, gain, *tables, 1e-5), apart(x, gain, *tables, 1e-5)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad(o, (x, gain), grad) for o in (out, expected))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("options", "used"),
    [({}, True), ({"n_kv_heads": 2}, True), ({"rope": "interleaved"}, False), ({"rope": "none"}, False),
     ({"qk_norm": False}, False), ({"qk_norm": "whole"}, False), ({"rope_dim": 4}, False)],
    ids=str,
)  # fmt: skip
def test_attention_gives_the_same_numbers_with_and_without_it(monkeypatch, options, used):
    torch.manual_seed(0)
    mixer = get_attention("standard", d_model=32, n_heads=4, causal=True, **options).double()
    x, taken = torch.randn(2, 20, 32, dtype=torch.float64, requires_grad=True), []
    original = turned_heads.norm_and_turn
    monkeypatch.setattr(turned_heads, "norm_and_turn", lambda *a: taken.append(1) or original(*a))
    wanted = [x, *mixer.parameters()]
    found = torch.autograd.grad(mixer(x)[0].square().sum(), wanted)
    assert bool(taken) == used
    monkeypatch.setattr(turned_heads, "suits", lambda *a: False)
    for a, b in zip(found, torch.autograd.grad(mixer(x)[0].square().sum(), wanted)):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_positions_of_every_row_of_its_own_are_turned_apart():
    rope = RotaryPositionalEmbedding(1e4, 8, layout="half")
    x = torch.randn(2, 5, 3, 8)
    shared = rope.tables(5, x)
    own = rope.tables(5, x, torch.arange(5).expand(2, 5))
    assert turned_heads.suits(x, *(t.unsqueeze(-2) for t in shared), rope)
    assert not turned_heads.suits(x, *(t.unsqueeze(-2) for t in own), rope)
    with torch.no_grad():
        assert not turned_heads.suits(x, *(t.unsqueeze(-2) for t in shared), rope)
