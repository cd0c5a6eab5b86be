"""Complex scores and their rotary turns: every score against its twin, by kernels and in blocks."""

from __future__ import annotations

import math

import pytest
import torch

from blockyard.complex import attention as complex_mixer
from blockyard.complex import score_passes
from blockyard.complex.attention import ComplexAttention
from blockyard.complex.heads import turned_heads
from blockyard.complex.linear import from_pairs, times_i, to_pairs
from blockyard.complex.scores import SCORES, complex_attend
from blockyard.nn.rotary import RotaryPositionalEmbedding
from tests.complex import twin
from tests.fixtures.complex_numbers import C, D, H, close, randn, randomised


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("score", SCORES)
def test_every_score_equals_its_twin(score, causal):
    q, k, v = (randn(1, 1, length, 3, seed=length) for length in (4, 6, 7))
    v = v[:, :, :6]
    share = torch.tensor([0.3], dtype=torch.float64)
    pairs = [to_pairs(t) for t in (q, k, v)]
    out, _ = complex_attend(*pairs, score=score, causal=causal, share=share)
    expected = twin.attention(*(t[0, 0].tolist() for t in (q, k, v)), score, causal, 0.3)
    # |s| is smoothed by 1e-6 under the root.
    close(from_pairs(out)[0, 0], expected, 1e-10 if score in ("real", "split") else 1e-4)


@pytest.mark.parametrize("score", ["magnitude", "phase"])
def test_blocks_of_queries_equal_the_whole(score, monkeypatch):
    from blockyard.complex import scores as complex_attention

    q, k, v = (to_pairs(randn(2, 2, 50, 3, seed=s)) for s in range(3))
    keep = torch.ones(2, 50)
    keep[1, :4] = 0
    arguments = {"score": score, "causal": True, "padding_mask": keep}
    whole, _ = complex_attend(q, k, v, **arguments, return_weights=True)
    monkeypatch.setattr(complex_attention, "_BLOCK_SCORES", 1)
    close(complex_attend(q, k, v, **arguments)[0], whole)


@pytest.mark.parametrize("kernel", ["sdpa", "matmul"])
def test_the_fast_kernels_equal_the_explicit_complex_form(kernel):
    mixer = randomised(ComplexAttention(D, H, kernel=kernel, rope="none", qk_norm=False))
    x = randn(2, 9, D)
    q, k, v = (
        (x @ torch.view_as_complex(p.weight).mT).unflatten(-1, (H, -1)).transpose(1, 2)
        for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    weights = ((q @ k.mH).real / math.sqrt(D // H)).softmax(-1)
    mixed = (weights.to(C) @ v).transpose(1, 2).flatten(2)
    close(mixer(x)[0], mixed @ torch.view_as_complex(mixer.output_proj.weight).mT)


def test_rotary_turns_each_complex_feature():
    rope = RotaryPositionalEmbedding(100.0, 2 * 4)
    z = randn(6, 4)
    turned = from_pairs(rope(to_pairs(z)))
    close(turned, [twin.rotate(row, n, 100.0) for n, row in enumerate(z.tolist())])


def heads_one_by_one(stacked, gains, turns, heads):
    """Every head of every position by itself, in complex numbers."""
    z, width = from_pairs(stacked), len(gains[0])
    parts = z.unflatten(-1, (-1, width)).split([heads[0], heads[1], heads[1]], dim=2)
    done = []
    for part, gain in zip(parts, gains):
        rows = torch.stack([
            torch.stack([torch.stack([head / (head.abs().square().mean() + 1e-5).sqrt() * gain for head in at])
                         for at in row]) for row in part
        ])  # fmt: skip
        done.append(rows if turns is None else rows * turns)
    return *map(to_pairs, done), to_pairs(parts[2])


@pytest.mark.parametrize("heads", [(2, 2), (4, 1)], ids=str)
@pytest.mark.parametrize("turned", [True, False, "by row"], ids=str)
def test_heads_that_are_normed_and_turned_at_once_equal_those_one_by_one(heads, turned):
    width, (b, t) = 3, (2, 5)
    stacked = to_pairs(randn(b, t, sum(heads) * width + heads[1] * width)).requires_grad_()
    gains = tuple(randn(width, seed=1 + i, dtype=torch.float64).requires_grad_() for i in range(2))
    rows = (b,) if turned == "by row" else ()
    angles = randn(*rows, t, 1, width, seed=3, dtype=torch.float64)
    turns = torch.polar(torch.ones_like(angles), angles) if turned else None
    found = turned_heads(stacked, gains, turns, heads, 1e-5)
    expected = heads_one_by_one(stacked, gains, turns, heads)
    weights = [randn(*part.shape, seed=9 + i, dtype=torch.float64) for i, part in enumerate(expected)]
    # Gradients of other layouts too: by heads, as attention gives them, and one that is no whole number of pairs.
    odd = torch.empty(weights[0].numel() + 1, dtype=torch.float64)[1:].view(weights[0].shape).copy_(weights[0])
    layouts = (weights, [odd, *(w.transpose(1, 2).contiguous().transpose(1, 2) for w in weights[1:])])
    for a, e in zip(found, expected):
        close(a, e)
    for layout in layouts:
        got = torch.autograd.grad(found, [stacked, *gains], layout, retain_graph=True)
        for a, e in zip(got, torch.autograd.grad(expected, [stacked, *gains], weights, retain_graph=True)):
            close(a, e)
    summed = torch.autograd.grad(sum(part.sum() for part in found), stacked, retain_graph=True)
    close(summed[0], torch.autograd.grad(sum(part.sum() for part in expected), stacked)[0])


@pytest.mark.parametrize("options", [{}, {"rope": "none"}, {"n_kv_heads": 1}, {"causal": True}], ids=str)
def test_training_makes_heads_at_once_and_gives_what_they_give_one_by_one(options, monkeypatch):
    mixer = randomised(ComplexAttention(D, H, **options))
    calls = []
    monkeypatch.setattr(complex_mixer, "turned_heads", lambda *given: calls.append(given) or turned_heads(*given))
    x = randn(2, 5, D).requires_grad_()
    results = []
    for fused in (True, False):
        if not fused:
            monkeypatch.setattr(complex_mixer, "can_fuse", lambda stacked: False)
        out = mixer(x)[0]
        results.append([out, *torch.autograd.grad(out.abs().square().sum(), [x, *mixer.parameters()])])
    assert len(calls) == 1
    for a, e in zip(*results):
        close(a, e)
    with torch.no_grad():
        close(mixer(x)[0], results[0][0])
    assert len(calls) == 1, "without gradients there is nothing to win"


def test_im_of_a_score_is_the_real_score_of_turned_queries():
    q, k = randn(5), randn(5, seed=1)
    s = (q * k.conj()).sum()
    close((to_pairs(q) * to_pairs(k)).sum(), s.real)
    close((-times_i(to_pairs(q)) * to_pairs(k)).sum(), s.imag)


@pytest.mark.parametrize("gate", ["none", "learned", "magnitude"])
def test_gates_multiply_what_the_heads_give(gate):
    mixer = randomised(ComplexAttention(D, H, gate=gate))
    x = randn(2, 5, D)
    bare = ComplexAttention(D, H).double()
    bare.load_state_dict(mixer.state_dict(), strict=False)
    bare.output_proj, heads = torch.nn.Identity(), []
    bare.output_proj.pairs = lambda given: heads.append(from_pairs(given)) or given
    bare(x)
    factor = torch.ones(D, dtype=C)
    if gate == "learned":
        factor = torch.view_as_complex(mixer.gate_constant)
    elif gate == "magnitude":
        factor = torch.sigmoid((mixer.gate_proj(x).abs().square() + 1e-6).sqrt() + mixer.gate_bias)
    close(mixer(x)[0], mixer.output_proj(heads[0] * factor))


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("score", ["magnitude", "phase", "split"])
def test_blocks_of_queries_with_passes_by_hand_equal_all_scores_at_once(score, causal, monkeypatch):
    # Two whole blocks and a rest, more keys than queries, two heads to a key head, values of another width.
    monkeypatch.setattr(score_passes, "_BLOCK", 32 * 75)
    q, k, v = (randn(*shape, seed=i) for i, shape in enumerate([(2, 4, 70, 3), (2, 2, 75, 3), (2, 2, 75, 2)]))
    share = torch.rand(4, dtype=torch.float64).requires_grad_() if score == "split" else None
    given = [*(to_pairs(t).detach().requires_grad_() for t in (q, k, v)), *([] if share is None else [share])]
    found = score_passes.scored(*given[:3], share, score, causal, 0.7)
    wanted = score_passes._defined(*given[:3], share, score, causal, 0.7)
    close(found, wanted)
    of = torch.randn_like(wanted)
    for a, e in zip(torch.autograd.grad(found, given, of), torch.autograd.grad(wanted, given, of)):
        close(a, e)


def test_scores_of_long_sequences_keep_nothing_of_their_size():
    q, k, v = (to_pairs(randn(1, 2, 200, 4, seed=i)).detach().requires_grad_() for i in range(3))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        complex_attend(q, k, v, score="phase")
    assert kept and max(kept) < 200 * 200


def test_scores_so_far_apart_that_weights_vanish_stay_finite():
    q, k, v = (to_pairs(randn(1, 1, 6, 2, seed=i)).detach().float().requires_grad_() for i in range(3))
    for score in ("magnitude", "phase", "split"):
        out = complex_attend(q * 1e4, k, v, score=score, share=torch.full((1,), 0.5))[0]
        for found in (out, *torch.autograd.grad(out.sum(), [q, k, v])):
            assert bool(found.isfinite().all())
