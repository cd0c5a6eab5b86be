"""Causal attention of thin heads by bounded exponentials: the numbers of the plain definition, and when it is used."""

import pytest
import torch
import torch.nn.functional as F

from blockyard.nn import attention, thin_attention
from blockyard.nn.attention import attend


def made(length: int, width: int = 3, v_width: int = 3, size: float = 1.0) -> list[torch.Tensor]:
    torch.manual_seed(0)
    widths = (width, width, v_width)
    return [(size * torch.randn(2, length, 2, w, dtype=torch.float64)).transpose(1, 2).requires_grad_() for w in widths]


def plainly(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    scores = (q @ k.mT * scale).masked_fill(torch.ones(q.shape[2], q.shape[2]).triu(1).bool(), float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("v_width", [3, 1, 5])
@pytest.mark.parametrize("length", [1, 63, 64, 130])
def test_outputs_and_gradients_are_those_of_the_definition(length, v_width):
    inputs = made(length, v_width=v_width)
    out, expected = thin_attention.thin_attention(*inputs, 0.7), plainly(*inputs, 0.7)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    grad = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(o, inputs, grad) for o in (out, expected))
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_heads_are_taken_together_or_apart_and_long_sequences_in_larger_pieces_with_the_same_numbers(monkeypatch):
    inputs = made(130)
    expected = plainly(*inputs, 0.7)
    wanted = torch.autograd.grad(expected, inputs, torch.ones_like(expected))
    for scores, long in ((1, 1024), (3 * 130 * 32, 1024), (2**18, 128)):
        monkeypatch.setattr(thin_attention, "SCORES", scores)
        monkeypatch.setattr(thin_attention, "LONG", long)
        out = thin_attention.thin_attention(*inputs, 0.7)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
        for a, b in zip(torch.autograd.grad(out, inputs, torch.ones_like(out)), wanted):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_scores_far_below_their_bound_are_left_to_the_kernel_that_looks_for_the_largest():
    q, k, v = made(70, size=30.0)
    with torch.no_grad():
        k.copy_(-q)  # each query's own key, and with it the first row's only one, is as far below the bound as can be
    out = thin_attention.thin_attention(q, k, v, 1.0)
    torch.testing.assert_close(out, plainly(q, k, v, 1.0), rtol=1e-8, atol=1e-10)
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_a_key_in_the_future_changes_nothing_before_it():
    q, k, v = made(100)
    before = thin_attention.thin_attention(q, k, v, 1.0)
    with torch.no_grad():
        k[:, :, 80:] += 3
        v[:, :, 80:] = 7
    after = thin_attention.thin_attention(q, k, v, 1.0)
    torch.testing.assert_close(after[:, :, :80], before[:, :, :80])
    assert not torch.allclose(after[:, :, 80:], before[:, :, 80:])


def test_attend_takes_it_for_long_thin_causal_heads_only(monkeypatch):
    taken = []
    original = thin_attention.thin_attention
    monkeypatch.setattr(thin_attention, "FROM_LENGTH", 32)
    monkeypatch.setattr(thin_attention, "FROM_SCORES", 4 * 40 * 40)
    monkeypatch.setattr(attention.thin_attention, "thin_attention", lambda *a: taken.append(1) or original(*a))
    q, k, v = (t.detach().float() for t in made(40))
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(attend(q, k, v, causal=True)[0], expected)
    assert taken == [1]
    for options in ({"causal": False}, {"kernel": "sdpa"}, {"kernel": "matmul"}, {"padding_mask": torch.ones(2, 40)}):
        attend(q, k, v, **{"causal": True, **options})
    wide = [t.detach().float() for t in made(40, width=16, v_width=16)]
    attend(*wide, causal=True)
    attend(q[:, :, :20], k[:, :, :20], v[:, :, :20], causal=True)
    attend(q[:1], k[:1], v[:1], causal=True)
    assert taken == [1]
