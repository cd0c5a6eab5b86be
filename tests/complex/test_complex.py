"""Complex layers, attention and FFN: against slow twins, and the properties that define them, in float64."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard import InputError
from blockyard.complex import attention as complex_mixer
from blockyard.complex.attention import ComplexAttention
from blockyard.complex.ffn import EPS, ComplexSwiGLU
from blockyard.complex.heads import turned_heads
from blockyard.complex.linear import ComplexLinear, from_pairs, real_block, times_i, to_pairs
from blockyard.complex.norms import COMPLEX_NORMS, ComplexLayerNorm, ComplexRMSNorm, ComplexWhitenNorm, ModReLU
from blockyard.complex.planes import gauss_product
from blockyard.complex.scores import SCORES, complex_attend
from blockyard.complex.symmetry import check_equivariance, symmetry_table
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.nn.dropout import Dropout
from blockyard.nn.norms import RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding
from blockyard.protocol.block import ResidualBlock, build_block
from blockyard.registry.pattern import LayerSpec, parse_choice
from blockyard.standard.attention import StandardAttention
from blockyard.training.muon import Muon, orthogonalize, real_blocks
from tests.complex import twin

C, C64 = torch.complex128, torch.complex64
D, H = 8, 2


def randn(*shape, seed=0, dtype=C):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.4 * noise if parameter.ndim > 1 else parameter + 0.4 * noise)
    return module


def weight_of(linear):
    return torch.view_as_complex(linear.weight).tolist()


def close(actual, expected, tolerance=1e-10):
    expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# Linear


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


# Norms and activation


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


# FFN


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


# Attention


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


@settings(max_examples=15, deadline=None)
@given(shift=st.integers(0, 5000), score=st.sampled_from(SCORES), seed=st.integers(0, 99))
def test_rotary_scores_see_only_distances(shift, score, seed):
    mixer = randomised(ComplexAttention(D, H, score=score), seed)
    x, count = randn(2, 5, D, seed=seed), torch.arange(5)
    close(mixer(x, positions=count + shift)[0], mixer(x, positions=count)[0], 1e-9)


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


def test_causal_cross_attention_sees_the_context_up_to_now_and_decodes():
    mixer = randomised(ComplexAttention(D, H, causal=True))
    x, context = randn(2, 7, D), randn(2, 7, D, seed=1)
    full = mixer(x, context=context)[0]
    changed = context.clone()
    changed[:, 4:] = 9
    close(mixer(x, context=changed)[0][:, :4], full[:, :4])
    cache = mixer.new_cache(2)
    with torch.no_grad():
        steps = [mixer(x[:, i:j], context=context[:, i:j], cache=cache)[0] for i, j in ((0, 3), (3, 4), (4, 7))]
    close(torch.cat(steps, 1), full)
    with pytest.raises(InputError, match="one clock"):
        mixer(x, context=context[:, :3])
    assert mixer(x, context=context[:, :3], causal=False)[0].shape == x.shape


def test_additive_position_encodings_are_added_to_queries_and_keys():
    mixer = randomised(ComplexAttention(D, H, rope="none", qk_norm=False))
    x, pe = randn(2, 5, D), randn(5, D, seed=1)
    with_bias = randomised(ComplexAttention(D, H, rope="none", qk_norm=False, bias=True))
    with_bias.load_state_dict({**with_bias.state_dict(), **mixer.state_dict()})
    constant = pe[:1].expand(5, -1)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            getattr(with_bias, name).bias.zero_()
        for name in ("q_proj", "k_proj"):
            getattr(with_bias, name).bias.copy_(torch.view_as_real(pe[0]))
    close(mixer(x, pe=constant)[0], with_bias(x)[0])
    assert not torch.allclose(mixer(x, pe=pe)[0], mixer(x)[0])


# What a real network would do, and symmetry


def make_real(module):
    """Drop the imaginary parts of all weights."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 3:
                parameter[..., 1] = 0
    return module


@pytest.mark.parametrize("qk_norm", [True, False])
def test_real_input_and_real_weights_are_the_real_block(qk_norm):
    mixer = make_real(randomised(ComplexAttention(D, H, rope="none", qk_norm=qk_norm)))
    real = StandardAttention(D, H, rope="none", qk_norm=qk_norm).double()
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj", "output_proj"):
            getattr(real, name).weight.copy_(getattr(mixer, name).weight[..., 0])
        if qk_norm:
            real.q_norm.weight.copy_(mixer.q_gain)
            real.k_norm.weight.copy_(mixer.k_gain)
    x = randn(2, 6, D, dtype=torch.float64)
    close(mixer(x.to(C))[0], real(x)[0].to(C), 1e-9)
    norm, real_norm = randomised(ComplexRMSNorm(D)), RMSNorm(D).double()
    with torch.no_grad():
        real_norm.weight.copy_(norm.weight)
    close(norm(x.to(C)), real_norm(x).to(C))
    ffn = make_real(randomised(ComplexSwiGLU(D, d_ff=6)))
    w1, w2, w3 = (w.weight[..., 0] for w in (ffn.w1, ffn.w2, ffn.w3))
    m = (x @ w1.mT).square().add(EPS).sqrt()
    close(ffn(x.to(C)), (((x @ w3.mT) * m * torch.sigmoid(m + ffn.gate_bias)) @ w2.mT).to(C))


BREAKERS = {
    ("linear", "bias=true"),
    ("complex", "bias=true"),
    ("complex", "pe=… (additive)"),
    ("complex_swiglu", "bias=true"),
    ("gate of a SwiGLU", "a complex factor g ⊙ u"),
    ("activation", "ReLU of each part"),
}


def test_the_symmetry_table_says_which_options_keep_the_symmetry():
    rows = symmetry_table()
    assert {(r.part, r.option) for r in rows if not r.symmetry} == BREAKERS
    assert all(r.symmetry for r in rows if r.default)
    assert all(r.symmetry.error > 1e-3 for r in rows if not r.symmetry), "a violation is no matter of rounding"


@pytest.mark.parametrize("norm", sorted(COMPLEX_NORMS))
@pytest.mark.parametrize("position", ["pre", "post"])
def test_whole_blocks_are_equivariant(norm, position):
    spec = parse_choice("complex[score=phase,gate=magnitude]")[0]
    block = build_block(spec, d_model=D, n_heads=H, causal=True, norm=norm, norm_position=position, complex_valued=True)
    found = check_equivariance(block)
    assert found and found.kind == "equivariant", found


def test_the_check_leaves_its_module_alone_and_randomises_a_copy():
    layer = ComplexLinear(D, D, bias=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    assert not check_equivariance(layer), "a bias that starts at zero hides nothing"
    assert check_equivariance(layer, randomise=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())
    with pytest.raises(InputError, match=r"dtype torch.float32"):
        check_equivariance(layer, torch.ones(2, D))
    with pytest.raises(InputError, match="has no d_model"):
        check_equivariance(torch.nn.Identity())


# Blocks, models, optimizers


def test_a_complex_mixer_and_a_real_ffn_are_one_clear_error():
    with pytest.raises(InputError, match=r"ComplexAttention is complex-valued, .*FFN is real"):
        build_block(LayerSpec("complex", "relu2"), d_model=D, n_heads=H, causal=False, complex_valued=True)
    with pytest.raises(InputError, match="ComplexSwiGLU is complex-valued, StandardAttention is real"):
        ResidualBlock(StandardAttention(D, H), ComplexSwiGLU(D), D)
    with pytest.raises(InputError, match="'complex' is complex-valued, but this model's stream is real"):
        TransformerLM(LMConfig(vocab_size=8, blocks="complex", d_model=D, n_heads=H))
    with pytest.raises(InputError, match="norm='whiten' should be one of rms, layer"):
        build_block(LayerSpec(), d_model=D, n_heads=H, causal=False, norm="whiten")


def test_a_complex_layer_that_names_no_ffn_has_the_complex_one():
    assert [layer.ffn for layer in parse_choice("complex/standard/complex+complex_swiglu[d_ff=8]")] == [
        "complex_swiglu", "swiglu", "complex_swiglu",
    ]  # fmt: skip


def test_muon_makes_a_complex_matrix_nearly_unitary():
    gradient = randn(5, 3, seed=3)
    pairs = torch.view_as_real(gradient)[None]
    made = orthogonalize(real_blocks(pairs), 6, torch.float64)
    u, _, vh = torch.linalg.svd(gradient, full_matrices=False)
    close(made, real_block(torch.view_as_real(u @ vh)).view(5, 2, 3, 2).permute(1, 0, 3, 2).reshape(1, 10, 6), 0.05)


def test_muon_steps_turn_with_their_gradient():
    steps = []
    for turn in (1.0, cmath.exp(0.8j)):
        weight = torch.nn.Parameter(torch.zeros(2, 4, 3, 2, dtype=torch.float64))
        weight.grad = torch.view_as_real(turn * randn(2, 4, 3)).clone()
        group = {"params": [weight], "axes": [(-3, -2)], "pairs": [True]}
        Muon([group], lr=1.0, dtype=torch.float64).step()
        steps.append(torch.view_as_complex(weight.detach()) / turn)
    close(steps[1], steps[0], 1e-9)
    assert torch.view_as_real(steps[0]).square().mean().sqrt() == pytest.approx(0.2, rel=0.25)


complextorch = "complextorch is a peer, installed beside the library for benchmarks only"


def test_rms_norm_and_rotary_equal_complextorch():
    peer = pytest.importorskip("complextorch.nn", reason=complextorch)
    z = randn(2, 6, D)
    plain = peer.RMSNorm(D, elementwise_affine=False)
    close(ComplexRMSNorm(D).double()(z), plain(z))
    close(ComplexWhitenNorm(D).double()(z), peer.LayerNorm(D, elementwise_affine=False)(z) / math.sqrt(2), 1e-4)
