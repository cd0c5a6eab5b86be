"""Complex attention: distances, gates, context, positions; and the real block that it is of real numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockyard import InputError
from blockyard.complex.attention import ComplexAttention
from blockyard.complex.ffn import EPS, ComplexSwiGLU
from blockyard.complex.norms import ComplexRMSNorm
from blockyard.complex.scores import SCORES
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.nn.norms import RMSNorm
from blockyard.protocol.block import ResidualBlock, build_block
from blockyard.registry.pattern import LayerSpec, parse_choice
from blockyard.standard.attention import StandardAttention
from tests.fixtures.complex_numbers import C, D, H, close, randn, randomised


@settings(max_examples=15, deadline=None)
@given(shift=st.integers(0, 5000), score=st.sampled_from(SCORES), seed=st.integers(0, 99))
def test_rotary_scores_see_only_distances(shift, score, seed):
    mixer = randomised(ComplexAttention(D, H, score=score), seed)
    x, count = randn(2, 5, D, seed=seed), torch.arange(5)
    close(mixer(x, positions=count + shift)[0], mixer(x, positions=count)[0], 1e-9)


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


# What a real network would do


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


# Blocks and models


def test_a_complex_mixer_and_a_real_ffn_are_one_clear_error():
    with pytest.raises(InputError, match=r"ComplexAttention is complex-valued, .*FFN is real"):
        build_block(LayerSpec("complex", "relu2"), d_model=D, n_heads=H, causal=False, complex_valued=True)
    with pytest.raises(InputError, match="ComplexSwiGLU is complex-valued, StandardAttention is real"):
        ResidualBlock(StandardAttention(D, H), ComplexSwiGLU(D), D)
    with pytest.raises(InputError, match="'complex' is complex-valued, but this model's stream is real"):
        TransformerLM(LMConfig(vocab_size=8, blocks="complex", d_model=D, n_heads=H))
    with pytest.raises(InputError, match="norm='whiten' is not one of: rms, layer"):
        build_block(LayerSpec(), d_model=D, n_heads=H, causal=False, norm="whiten")


def test_a_complex_layer_that_names_no_ffn_has_the_complex_one():
    assert [layer.ffn for layer in parse_choice("complex/standard/complex+complex_swiglu[d_ff=8]")] == [
        "complex_swiglu", "swiglu", "complex_swiglu",
    ]  # fmt: skip
