"""Where norms stand in a block, and sublayers side by side: each form against its formula, cached and as a model."""

from __future__ import annotations

import pytest
import torch

from blockyard.conformance.subject import own_random, random, randomise
from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.protocol.block import build_block
from blockyard.registry.pattern import LayerSpec

FORMS = {
    "pre": {},
    "post": {"norm_position": "post"},
    "branch": {"norm_position": "branch"},
    "parallel": {"parallel": True},
    "parallel-layer": {"parallel": True, "norm": "layer", "norm_eps": 1e-2},
    "branch-mla": {"norm_position": "branch", "attn": "mla"},
}


def block_of(attn="standard", **options):
    with own_random(0):
        block = build_block(LayerSpec(attn, "swiglu"), d_model=16, n_heads=2, causal=True, **options)
        randomise(block)
    return block.double().eval().requires_grad_(False)


def norm(module, x):
    """A norm in float64 by its definition."""
    if module.weight.ndim and hasattr(module, "bias"):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight + module.bias
    return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_block_is_its_formula(options):
    block, x = block_of(**options), random(2, 7, 16)

    def attn(y):
        return block.attn(y)[0]

    if options.get("parallel"):
        expected = x + attn(norm(block.ln1, x)) + block.ffn(norm(block.ln2, x))
    elif options.get("norm_position") == "post":
        middle = norm(block.ln1, x + attn(x))
        expected = norm(block.ln2, middle + block.ffn(middle))
    elif options.get("norm_position") == "branch":
        middle = x + norm(block.ln1, attn(x))
        expected = middle + norm(block.ln2, block.ffn(middle))
    else:
        middle = x + attn(norm(block.ln1, x))
        expected = middle + block.ffn(norm(block.ln2, middle))
    torch.testing.assert_close(block(x)[0], expected, rtol=1e-9, atol=1e-9)
    assert block.ln1.eps == block.ln2.eps == options.get("norm_eps", 1e-5)


@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_a_model_of_any_form_decodes_as_it_reads_and_starts_as_the_identity(options):
    given = {name: value for name, value in options.items() if name != "attn"}
    config = LMConfig(vocab_size=11, d_model=16, n_layers=2, n_heads=2, blocks=options.get("attn", "standard"), **given)
    with own_random(1):
        model = TransformerLM(config)
        fresh = model(torch.arange(6)[None]).logits
        randomise(model)
    assert not fresh.any()
    model = model.double().eval().requires_grad_(False)
    ids, cache = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0)), model.new_cache(2)
    pieces = [model(ids[:, a:b], cache=cache).logits for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, rtol=1e-9, atol=1e-9)
    assert model.cost(9).parameters == sum(p.numel() for p in model.parameters())


def test_forms_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match="both sublayers read norms of x"):
        LMConfig(vocab_size=11, parallel=True, norm_position="branch")
    with pytest.raises(InputError, match="is one block"):
        TransformerLM(LMConfig(vocab_size=11, blocks="tva+vft", parallel=True))
    with pytest.raises(InputError, match="norm_position"):
        TransformerLM(LMConfig(vocab_size=11, blocks="tva+vft", norm_position="branch"))
    with pytest.raises(InputError, match="norm_eps=0"):
        LMConfig(vocab_size=11, norm_eps=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lama3[factor=8]", "not one of: linear"),
        ("llama3[factor=8]", "needs original"),
        ("llama3[factor=8,original=64,hihg=3]", "did you mean 'high'"),
        ("yarn[factor=x,original=64]", "should be float"),
        ("linear[factor=0]", "above 0"),
        ("linear[factor=nan]", "above 0"),
        ("llama3[factor=2,original=64,low=4,high=4]", "should be above low"),
        ("longrope[original=4,short=1 2,long=1]", "for 4 pairs"),
        ("linear(factor=2)", "should be a name with options"),
    ],
)
def test_a_scaling_that_is_none_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        TransformerLM(LMConfig(vocab_size=11, d_model=16, n_heads=2, rope_scaling=text))


@pytest.mark.parametrize("mixer", ["standard", "mla", "tva", "tva+vft", "complex+complex_swiglu"])
def test_every_rotating_mixer_hears_of_the_models_scaling(mixer):
    shape = {"d_model": 16, "n_heads": 2, "causal": True, "complex_valued": mixer.startswith("complex")}
    spec = LayerSpec(*mixer.split("+"))
    plain, scaled = (build_block(spec, rope_scaling=scaling, **shape) for scaling in (None, "linear[factor=2]"))
    assert plain.attn.rope.scaling is None and scaled.attn.rope.scaling.factor == 2
