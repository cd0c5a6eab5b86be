"""Causal attention of training in half precision: the numbers of the definition, in blocks and at once, and when it is
used."""

import pytest
import torch

from blockyard.nn import attention, causal_attention
from blockyard.nn.attention import attend


def made(length: int, width: int = 4, v_width: int = 4, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(0)
    widths = (width, width, v_width)
    # Stored token by token, as projections give heads.
    return [torch.randn(2, length, 3, w).to(dtype).transpose(1, 2).requires_grad_() for w in widths]


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    q, k, v = (t.double() for t in (q, k, v))
    rows = []
    for i in range(q.shape[2]):
        scores = (q[:, :, i : i + 1] * k[:, :, : i + 1]).sum(-1) * scale
        rows.append((scores.softmax(-1)[..., None] * v[:, :, : i + 1]).sum(2))
    return torch.stack(rows, 2)


@pytest.mark.parametrize("v_width", [4, 3])
@pytest.mark.parametrize("length", [1, 7, 8, 21])
@pytest.mark.parametrize("scores", [1, 2**19])
def test_outputs_and_gradients_are_those_of_the_definition(monkeypatch, length, v_width, scores):
    monkeypatch.setattr(causal_attention, "QUERIES", 8)
    monkeypatch.setattr(causal_attention, "SCORES", scores)
    inputs = made(length, v_width=v_width)
    out, expected = causal_attention.causal_attention(*inputs, 0.7), plainly(*inputs, 0.7)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad(o, inputs, grad) for o in (out, expected))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("few", [0, 2**21], ids=["one operation", "all at once"])
def test_compiled_code_gives_the_same_numbers(monkeypatch, few):
    monkeypatch.setattr(causal_attention, "FEW_SCORES", few)
    torch._dynamo.reset()
    inputs = made(21)
    # Traced as for a compiler, and run as written: what is generated from it is torch's business.
    traced = torch.compile(causal_attention.causal_attention, backend="aot_eager", fullgraph=True, dynamic=False)
    out, expected = traced(*inputs, 0.7), plainly(*inputs, 0.7)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn_like(out)
    for a, b in zip(*(torch.autograd.grad(o, inputs, grad) for o in (out, expected))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_to_exact_numbers_as_its_rounding(dtype):
    inputs = made(40, 16, 16, dtype)
    out, expected = causal_attention.causal_attention(*inputs, 0.25), plainly(*inputs, 0.25)
    # A few roundings of values around 1, one of weights: eight bits of bfloat16.
    torch.testing.assert_close(out.double(), expected, rtol=2e-2, atol=2e-2)
    grad = torch.randn_like(out)
    found, wanted = torch.autograd.grad(out, inputs, grad), torch.autograd.grad(expected, inputs, grad.double())
    for a, b in zip(found, wanted):
        assert (a.double() - b.double()).norm() < 2e-2 * b.double().norm()


def test_a_key_in_the_future_changes_nothing_before_it():
    q, k, v = made(300, dtype=torch.bfloat16)
    before = causal_attention.causal_attention(q, k, v, 1.0)
    with torch.no_grad():
        k[:, :, 200], v[:, :, 200] = 50.0, 100.0
    after = causal_attention.causal_attention(q, k, v, 1.0)
    assert torch.equal(before[:, :, :200], after[:, :, :200]) and not torch.equal(before, after)


def test_it_is_used_for_training_in_half_precision_alone(monkeypatch):
    taken = []
    original = causal_attention.causal_attention
    monkeypatch.setattr(attention.causal_attention, "causal_attention", lambda *a: taken.append(1) or original(*a))
    q, k, v = made(40, 16, 16, torch.bfloat16)
    attend(q, k, v, causal=True)
    assert taken == [1]
    with torch.no_grad():
        attend(q, k, v, causal=True)
    attend(q, k, v)
    attend(q, k, v, causal=True, return_weights=True)
    attend(q, k, v, causal=True, window=8)
    attend(q, k, v, causal=True, padding_mask=torch.ones(2, 40))
    attend(q, k[:, :1], v[:, :1], causal=True)
    attend(*(t.float() for t in (q, k, v)), causal=True)
    assert taken == [1]
