"""The mixture of experts against its definition in loops: outputs, gradients, shapes, costs, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.moe.grouped import GroupedLinear
from blockyard.nn.dropout import set_dropout_keys
from blockyard.nn.roles import roles
from blockyard.protocol.block import build_block
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import get_ffn
from tests.fixtures.mixtures import IMPLEMENTATIONS, ROUTERS, D, E, T, build, expert_functions, inputs, routing_of
from tests.moe import twin

# The definition.


@pytest.mark.parametrize("options", ROUTERS.values(), ids=ROUTERS.keys())
def test_the_output_is_the_weighted_sum_over_the_chosen_experts(options):
    moe, x = build(**options), inputs()
    expected = twin.mixture(x, moe.router.linear.weight, expert_functions(moe), **routing_of(moe, options))
    assert torch.allclose(moe(x), expected, atol=1e-12)


def test_the_softmax_before_renormalised_is_the_softmax_after():
    after, before = build(k=3), build(k=3, renormalise=False)
    x = inputs()
    routed = before.router(x.view(-1, D), 3)
    renormalised = routed.gates / routed.gates.sum(-1, keepdim=True)
    assert (renormalised - after.router(x.view(-1, D), 3).gates).abs().max() <= 4e-16


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_all_implementations_agree_in_outputs_and_gradients(impl, dtype):
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    mask = torch.ones(2, T)
    mask[1, :4] = 0
    for options in ({}, {"expert": "standard", "expert_options": {"bias": True}}, {"capacity": 0.8, "k": 3}):
        found = []
        for this, kind in ((impl, dtype), ("loop", torch.float64)):
            moe = build(torch.float32, impl=this, **options).to(dtype).to(kind)
            x = inputs(torch.float32).to(dtype).to(kind).requires_grad_()
            y = moe(x, padding_mask=mask)
            y.double().square().sum().backward()
            found.append([y, x.grad, *[p.grad for p in moe.parameters()]])
        for mine, reference in zip(*found):
            assert (mine.double() - reference).abs().max() <= tolerance * (1 + reference.abs().max())


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", [{}, {"capacity": 1.0}, {"vein_rank": 4}, {"expert": "vft"}], ids=str)
def test_gradients_equal_finite_differences(impl, options):
    if options.get("expert") == "vft" and impl in ("grouped", "padded"):
        pytest.skip("a vein FFN with a vein of its own is not made of Linear layers alone")
    moe, x = build(impl=impl, n_experts=4, **options), inputs(shape=(1, 5)).requires_grad_()
    # A step of finite differences must not change who is chosen.
    assert torch.autograd.gradcheck(lambda x, *_: moe(x), (x, *moe.parameters()), fast_mode=True, atol=1e-5)


@pytest.mark.parametrize("expert", ["complex_swiglu", "toy_complex_ffn"])
@pytest.mark.parametrize("impl", ["loop", "segment", "auto"])
def test_complex_experts_are_routed_by_magnitudes(expert, impl):
    moe = build(torch.complex128, expert=expert, impl=impl, n_experts=4)
    x = inputs(torch.complex128, shape=(1, 5))
    members = moe.experts.each()
    experts = [lambda v, e=e: members[e](v[None], None)[0] for e in range(4)]
    expected = twin.mixture(x, moe.router.linear.weight, experts, k=2, scoring="softmax", renormalise=True)
    assert torch.allclose(moe(x), expected, atol=1e-11)
    # Magnitudes do not turn, so neither does the choice.
    turned = moe(x * complex(math.cos(0.7), math.sin(0.7)))
    assert torch.allclose(turned, expected * complex(math.cos(0.7), math.sin(0.7)), atol=1e-11)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, *_: moe(x), (x, *moe.parameters()), fast_mode=True, atol=1e-5)


@pytest.mark.parametrize("conjugated", [False, True])
def test_the_products_of_segments_know_complex_numbers(conjugated):
    members = [nn.Module() for _ in range(3)]
    for member in members:
        member.weight, member.bias = nn.Parameter(torch.randn(4, 6, dtype=torch.complex128)), None
    linear, x = GroupedLinear(members), torch.randn(7, 6, dtype=torch.complex128, requires_grad=True)
    from blockyard.moe.grouped import Rows

    linear.rows = Rows("segment", torch.tensor([2, 2, 6]), (2, 0, 4), whole=False)
    y = linear(x.conj() if conjugated else x)
    assert not y[6:].any(), "a row of nobody is not 0"
    assert torch.autograd.gradcheck(lambda x, w: linear(x), (x, linear.weight))


def test_a_permutation_of_the_tokens_permutes_the_outputs():
    moe, x = build(k=3), inputs()
    order = torch.randperm(T)
    assert torch.allclose(moe(x[:, order]), moe(x)[:, order], atol=1e-12)


# Dropout keys, roles, shapes.


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_dropout_within_experts_depends_on_the_row_alone(impl):
    moe, x = build(impl=impl, dropout=0.5), inputs(shape=(4, T))
    keys = torch.arange(4) + 40
    set_dropout_keys(moe, keys)
    together = moe(x)
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        set_dropout_keys(moe, keys[rows])
        parts.append(moe(x[rows]))
    assert torch.allclose(torch.cat(parts), together, atol=1e-12)
    assert not torch.allclose(together, build()(x)), "nothing was dropped"
    reference = build(impl="loop", dropout=0.5)
    set_dropout_keys(reference, keys)
    assert torch.allclose(together, reference(x), atol=1e-12)


def test_stacked_matrices_are_matrices_and_their_biases_vectors():
    found = roles(build(expert="standard", expert_options={"bias": True}))
    assert found["experts.body.w1.weight"].kind == "matrix" and found["experts.body.w1.bias"].kind == "vector"
    assert found["router.linear.weight"].kind == "matrix"


@pytest.mark.parametrize("shape", [(), (T,), (2, 3, T)], ids=str)
def test_inputs_of_any_leading_shape_are_taken(shape):
    moe, x = build(), inputs(shape=shape)
    assert torch.allclose(moe(x).view(-1, D), moe(x.view(1, -1, D))[0], atol=1e-12)


@pytest.mark.parametrize("expert", ["swiglu", "glu", "standard", "relu2", "vft"])
def test_costs_are_all_parameters_and_the_work_of_the_chosen(expert):
    moe, one = build(expert=expert, n_shared=1, n_gated=2), get_ffn(expert, d_model=D)
    cost, single = moe.cost(T), one.cost(T)
    assert cost.parameters == 11 * single.parameters + (E + 1) * D == sum(p.numel() for p in moe.parameters())
    assert cost.flops == (2 + 1 + 2) * single.flops + 2 * T * D * (E + 1)
    assert moe.active_parameters() == 5 * single.parameters + (E + 1) * D


@torch.no_grad()
def test_a_block_tells_its_ffn_what_is_padding():
    block = build_block(parse_choice("moe[n_experts=4]")[0], d_model=D, n_heads=2, causal=True)
    x, mask = torch.randn(2, T, D), torch.ones(2, T)
    mask[0, :5] = 0
    assert block(x, padding_mask=mask)[1]["stats"]["load"].sum() == 2 * (2 * T - 5)
    cache = block.new_cache(2)
    block(x[:, :7], padding_mask=mask[:, :7], cache=cache)
    _, aux = block(x[:, 7:], padding_mask=mask, cache=cache)
    assert aux["stats"]["load"].sum() == 2 * 2 * (T - 7)


# Errors.

REFUSED = {
    "k above the experts": ({"k": 9}, "k=9 should be between 1 and n_experts=8"),
    "groups that do not divide": ({"n_groups": 3}, "n_groups=3 should divide n_experts=8"),
    "more open groups than groups": ({"n_groups": 2, "k_groups": 3}, "k_groups=3 should be between 1 and n_groups=2"),
    "k above the open groups": ({"n_groups": 4, "k": 3}, "k=3 is more than the 2 experts in k_groups=1 of n_groups=4"),
    "a weight that is always 1": ({"k": 1}, "k=1 with renormalise=True .* learns nothing"),
    "one expert": ({"n_experts": 1}, "n_experts=1 should be at least 2"),
    "an unknown expert": ({"expert": "swigl"}, "no FFN named 'swigl'. Did you mean 'swiglu'?"),
    "itself": ({"expert": "moe"}, "cannot be its own expert"),
    "a misspelt option of the expert": ({"expert_options": {"d_f": 3}}, r"no option 'd_f' \(did you mean 'd_ff'"),
    "an expert's option as its own": ({"d_ff": 3}, "its expert has it, write expert.d_ff="),
    "no room": ({"capacity": 0.0}, "capacity=0.0 should be a number above 0"),
    "two ranks": ({"expert": "vft", "vein_rank": 4, "expert_options": {"rank": 3}}, "vein_rank=4 .* expert.rank=3"),
    "a scale of nothing": ({"scale": 0.0}, "scale=0.0"),
    "a negative number of shared experts": ({"n_shared": -1}, "n_shared=-1"),
    "a negative number of gated experts": ({"n_gated": -1}, "n_gated=-1"),
}


@pytest.mark.parametrize(("options", "line"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_options_are_one_clear_line(options, line):
    with pytest.raises(InputError, match=line):
        get_ffn("moe", d_model=D, **options)


def test_wrong_calls_are_one_clear_line():
    moe, x = build(capacity=1.0), inputs()
    with pytest.raises(InputError, match="k=9 should be between 1 and n_experts=8"):
        moe(x, k=9)
    with pytest.raises(InputError, match="k=1 with renormalise=True"):
        moe(x, k=1)
    with pytest.raises(InputError, match=r"padding_mask has shape \(2, 3\)"):
        moe(x, padding_mask=torch.ones(2, 3))
    x[0, 3, 2] = float("nan")
    with pytest.raises(InputError, match="the router's logits should be finite, but 8 of 208 are NaN or infinite"):
        moe(x)


def test_a_capacity_with_a_cache_is_refused_in_training():
    block = build_block(parse_choice("moe[capacity=1.0]")[0], d_model=D, n_heads=2, causal=True)
    x = torch.randn(1, 4, D)
    with torch.no_grad():
        with pytest.raises(InputError, match=r"capacity=1.0 in training with a cache"):
            block(x, cache=block.new_cache(1))
        block.eval()(x, cache=block.new_cache(1))


@pytest.mark.parametrize("options", [{"expert": "vft"}, {"impl": "loop"}], ids=str)
def test_what_cannot_be_one_graph_breaks_it_and_computes_the_same(options):
    moe, x = build(torch.float32, **options), inputs(torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(moe, backend="eager")
    for seed in (1, 2, 3):
        x = inputs(torch.float32, seed=seed)
        assert torch.allclose(compiled(x), moe(x), atol=1e-6)
    y = compiled(x.requires_grad_())
    y.sum().backward()
    assert all(p.grad is not None for p in moe.parameters())


def test_importing_the_mixture_does_not_import_the_compiler():
    import subprocess
    import sys

    code = "import sys, blockyard.moe.mixture; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
