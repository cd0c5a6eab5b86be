"""The mixture of experts: routing, dispatch, losses, capacity, errors, against its definition in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from blockyard.errors import InputError
from blockyard.moe.grouped import GroupedLinear
from blockyard.nn.dropout import set_dropout_keys
from blockyard.nn.roles import roles
from blockyard.protocol.block import build_block
from blockyard.protocol.costs import Cost
from blockyard.protocol.ffn import FFN
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import get_ffn, register_ffn
from tests.moe import twin

D, E, T = 16, 8, 13
# An expert's product adds up in another order when it has another number of rows; a choice more or less is far more.
SUMS = {"rtol": 1e-12, "atol": 1e-12}
IMPLEMENTATIONS = ("loop", "segment", "grouped", "padded", "auto")
ROUTERS = {
    "softmax after": {"k": 3},
    "softmax before": {"k": 3, "renormalise": False},
    "one expert": {"k": 1, "renormalise": False},
    "sigmoid": {"k": 3, "scoring": "sigmoid", "scale": 2.5},
    "biased": {"k": 2, "scoring": "sigmoid", "balance": "bias", "renormalise": False},
    "groups": {"k": 2, "scoring": "sigmoid", "balance": "bias", "n_groups": 4, "k_groups": 2},
    "softmax groups": {"k": 2, "n_groups": 2, "k_groups": 1},
}


@register_ffn("toy_complex_ffn")
class ToyComplex(FFN):
    """A complex FFN of native complex parameters: W2 (|W1 z| · W1 z).

    Args:
        d_model: width.
    """

    complex_valued = True

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(5, d_model, dtype=torch.complex64))
        self.w2 = nn.Parameter(torch.randn(d_model, 5, dtype=torch.complex64))

    def forward(self, x):
        h = x @ self.w1.T
        return (h * h.abs()) @ self.w2.T

    def cost(self, tokens):
        # Two complex products, each four real ones. The register keeps the class, so that other tests meet it, too.
        return Cost(self.w1.numel() + self.w2.numel(), 4 * 2 * tokens * (self.w1.numel() + self.w2.numel()))


def build(dtype=torch.float64, seed=0, **options):
    """A mixture with random parameters and a random selection bias."""
    torch.manual_seed(seed)
    options = {"n_experts": E} | options
    moe = get_ffn("moe", d_model=D, **options)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(0, 0.4)
        if moe.router.bias is not None:
            moe.router.bias.normal_(0, 0.2)
    if dtype == torch.complex128:
        return moe.to(torch.float64) if options.get("expert") != "toy_complex_ffn" else to_complex(moe)
    return moe.to(dtype)


def to_complex(moe):
    """Real parameters in float64, complex ones in complex128."""
    for module in moe.modules():
        for name, p in module.named_parameters(recurse=False):
            dtype = torch.complex128 if p.is_complex() else torch.float64
            module._parameters[name] = nn.Parameter(p.detach().to(dtype))
    return moe


def inputs(dtype=torch.float64, seed=1, shape=(2, T)):
    torch.manual_seed(seed)
    return torch.randn(*shape, D, dtype=dtype)


def expert_functions(moe):
    """Every expert as a function of one vector, written out from its weights (swiglu)."""
    body = moe.experts.body

    def expert(e):
        w1, w2, w3 = (getattr(body, name).weight[e] for name in ("w1", "w2", "w3"))
        return lambda v: w2 @ (torch.nn.functional.silu(w1 @ v) * (w3 @ v))

    return [expert(e) for e in range(moe.n_experts)]


def routing_of(moe, options):
    keys = ("n_groups", "k_groups")
    return {
        "k": options.get("k", 2),
        "scoring": options.get("scoring", "softmax"),
        "renormalise": options.get("renormalise", True),
        "scale": options.get("scale", 1.0),
        "bias": moe.router.bias,
        **{key: options.get(key, 1) for key in keys},
    }


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


def test_shared_experts_are_added_for_every_token():
    moe, x = build(n_shared=2), inputs()
    plain = build(n_shared=2)
    plain.shared = nn.ModuleList()
    assert torch.allclose(moe(x), plain(x) + moe.shared[0](x) + moe.shared[1](x), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gated_experts_are_added_for_every_token_times_one_gate(dtype):
    kind = {"expert": "toy_complex_ffn"} if dtype.is_complex else {}
    moe, x = build(dtype, n_gated=2, n_shared=1, **kind), inputs(dtype)
    plain = build(dtype, n_gated=2, n_shared=1, **kind)
    plain.gated = None
    gate = (1 / (1 + torch.exp(-(x.abs() if dtype.is_complex else x) @ moe.gated.gate))).unsqueeze(-1)
    expected = plain(x) + gate * (moe.gated[0](x) + moe.gated[1](x))
    assert (moe(x) - expected).abs().max() <= 1e-12
    assert roles(moe)["gated.gate"].kind == "vector"


def test_k_can_be_another_one_in_a_call():
    moe, x = build(k=2), inputs()
    other = build(k=4)
    other.load_state_dict(moe.state_dict())
    assert torch.allclose(moe(x, k=4), other(x), atol=1e-13)
    everything = twin.mixture(
        x, moe.router.linear.weight, expert_functions(moe), k=E, scoring="softmax", renormalise=True
    )
    assert torch.allclose(moe(x, k=E), everything, atol=1e-12)
    assert torch.isfinite(moe.eval()(x, k=1)).all()


# Veins.


def test_vein_experts_share_one_vein_and_their_cores_add_up_in_it():
    moe, x = build(expert="vft", vein_rank=4, expert_options={"gated": True, "stabilizer": "diag"}), inputs()
    names = [name for name, _ in moe.named_parameters()]
    assert sum("vein" in name for name in names) == 2 and moe.router.linear.weight.shape == (E, 4)
    z = moe.vein.project(x)
    cores = moe.experts.each()
    experts = [lambda v, e=e: cores[e](v[None], None)[0] for e in range(E)]
    mixed = twin.mixture(z, moe.router.linear.weight, experts, k=2, scoring="softmax", renormalise=True)
    assert torch.allclose(moe(x), moe.vein.reconstruct(mixed) + moe.stabilizer(x), atol=1e-12)


def test_any_expert_can_act_in_a_vein():
    moe, x = build(expert="swiglu", vein_rank=4), inputs()
    mixed = twin.mixture(
        moe.vein.project(x), moe.router.linear.weight, expert_functions(moe), k=2, scoring="softmax", renormalise=True
    )
    assert torch.allclose(moe(x), moe.vein.reconstruct(mixed), atol=1e-12)


# Losses and statistics.


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_losses_and_load_are_those_of_the_definition(scoring):
    moe, x = build(scoring=scoring), inputs()
    _, aux = moe.with_aux(x)
    logits = (x @ moe.router.linear.weight.T).view(-1, E)
    chosen = [twin.gates(row, 2, scoring, True)[0] for row in logits]
    assert torch.allclose(aux["losses"]["balance"], twin.switch_loss(logits, chosen, scoring))
    assert torch.allclose(aux["losses"]["z"], torch.stack([row.exp().sum().log() ** 2 for row in logits]).mean())
    counted = [sum(e in experts for experts in chosen) for e in range(E)]
    assert aux["stats"]["load"].tolist() == counted


def test_the_balance_loss_is_one_when_the_mean_probabilities_are_uniform():
    moe, x = build(), inputs()
    with torch.no_grad():
        moe.router.linear.weight.zero_()
    assert moe.with_aux(x)[1]["losses"]["balance"].item() == pytest.approx(1.0)


def test_padding_passes_no_expert_and_counts_nowhere():
    moe, x = build(capacity=1.0, n_shared=1), inputs()
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :5] = 0
    garbage = x.clone()
    garbage[0, :5] = float("nan")
    y, aux = moe.with_aux(garbage, padding_mask=mask)
    # Each row alone, without its padding: it has as many places as its own tokens give it.
    parts = [moe.with_aux(x[:1, 5:]), moe.with_aux(x[1:])]
    # The same sums over other numbers of rows.
    assert torch.allclose(y[:1, 5:], parts[0][0], atol=1e-12) and torch.allclose(y[1:], parts[1][0], atol=1e-12)
    dropped = [part[1]["stats"]["dropped"] for part in parts]
    assert min(dropped) > 0 and torch.allclose(aux["stats"]["dropped"], (8 * dropped[0] + 13 * dropped[1]) / 21)
    load = sum(part[1]["stats"]["load"] for part in parts)
    assert torch.equal(aux["stats"]["load"], load) and load.sum() == 2 * (2 * T - 5)
    z = (8 * parts[0][1]["losses"]["z"] + 13 * parts[1][1]["losses"]["z"]) / 21
    assert torch.allclose(aux["losses"]["z"], z)
    loss = y[mask.bool()].sum() + aux["losses"]["z"] + aux["losses"]["balance"]
    gradients = torch.autograd.grad(loss, list(moe.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("left", [True, False], ids=["padding in front", "padding behind"])
@pytest.mark.parametrize("capacity", [0.3, 0.7, 1.0, 1.25])
def test_padding_takes_no_places_from_a_sequence_and_gives_it_none(capacity, left):
    moe, lengths = build(capacity=capacity, k=3, balance="bias"), (1, 4, 9, 11, T)
    mask = torch.zeros(len(lengths), T)
    for row, length in enumerate(lengths):
        mask[row, T - length :] = 1
    mask = mask if left else mask.flip(1)
    x = inputs(shape=mask.shape)
    y = moe(x, padding_mask=mask)
    for row, keep in enumerate(mask.bool()):
        # The same sums over another number of rows.
        torch.testing.assert_close(y[row, keep], moe(x[row : row + 1, keep])[0], rtol=1e-12, atol=1e-12)


def test_a_batch_of_nothing_but_padding_drops_nothing_and_moves_no_bias():
    moe = build(capacity=0.5, balance="bias", bias_rate=0.1)
    before = moe.router.bias.clone()
    y, aux = moe.with_aux(inputs(), padding_mask=torch.zeros(2, T))
    moe.after_step(aux["stats"])
    assert aux["stats"]["dropped"] == 0 and not aux["stats"]["load"].any() and not y.any()
    assert aux["losses"]["z"] == 0 and torch.equal(moe.router.bias, before)


def test_losses_are_returned_and_not_counted_twice_by_checkpointing():
    moe, x = build(balance="bias"), inputs()
    plain = moe.with_aux(x)
    total = plain[0].sum() + plain[1]["losses"]["z"]
    expected = torch.autograd.grad(total, list(moe.parameters()))
    y, aux = checkpoint(moe.with_aux, x, use_reentrant=False)
    found = torch.autograd.grad(y.sum() + aux["losses"]["z"], list(moe.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert torch.equal(aux["stats"]["load"], plain[1]["stats"]["load"])
    assert not any(isinstance(value, torch.Tensor) for module in moe.modules() for value in vars(module).values())


def test_the_bias_moves_towards_idle_experts_and_stays_centred():
    moe = build(balance="bias", bias_rate=0.1, n_experts=4)
    moe.router.bias.zero_()
    moe.after_step({"load": torch.tensor([10.0, 0.0, 2.0, 0.0])})
    assert moe.router.bias.tolist() == pytest.approx([-0.15, 0.05, 0.05, 0.05])
    before = moe.router.bias.clone()
    x = inputs()
    gates = moe.router(x.view(-1, D), 4).gates.sort().values
    moe.router.bias += torch.tensor([3.0, 0.0, 0.0, -3.0])
    # Weights never see the bias: with all experts chosen nothing changes.
    assert torch.allclose(moe.router(x.view(-1, D), 4).gates.sort().values, gates)
    assert (moe.router(x.view(-1, D), 1).experts == 0).all()
    moe.router.bias.copy_(before)
    moe.after_step({"load": torch.zeros(4)})
    assert torch.equal(moe.router.bias, before), "a step without tokens moved the bias"


# Capacity.


def test_what_is_over_capacity_is_dropped_in_the_order_of_the_tokens():
    moe, x = build(capacity=0.5, k=2), inputs()
    y, aux = moe.with_aux(x)
    capacity = math.ceil(0.5 * T * 2 / E)
    experts = expert_functions(moe)
    dropped = 0
    for row in range(2):
        routed = [twin.gates(moe.router.linear.weight @ v, 2, "softmax", True) for v in x[row]]
        room = twin.places([chosen for chosen, _ in routed], capacity)
        for t, (chosen, weights) in enumerate(routed):
            parts = [w * experts[e](x[row, t]) for e, w, kept in zip(chosen, weights, room[t]) if kept]
            expected = sum(parts) if parts else torch.zeros(D, dtype=x.dtype)
            assert torch.allclose(y[row, t], expected, atol=1e-12)
            dropped += room[t].count(False)
    assert dropped > 0 and aux["stats"]["dropped"].item() == pytest.approx(dropped / (2 * T * 2))


def test_a_capacity_above_the_largest_load_drops_nothing():
    moe, x = build(capacity=float(E)), inputs()
    free = build()
    torch.testing.assert_close(moe(x), free(x), **SUMS)
    assert moe.with_aux(x)[1]["stats"]["dropped"] == 0


def test_a_capacity_holds_in_training_only():
    moe, x = build(capacity=0.3), inputs()
    assert not torch.allclose(moe(x), build()(x))
    assert torch.equal(moe.eval()(x), build()(x))


def test_a_capacity_leaks_nothing_from_the_future_nor_from_other_rows():
    moe, x = build(capacity=0.5, k=3), inputs(shape=(3, T))
    y = moe(x)
    for t in range(1, T):
        changed = x.clone()
        changed[:, t:] = inputs(seed=100 + t, shape=(3, T - t))
        torch.testing.assert_close(moe(changed)[:, :t], y[:, :t], **SUMS, msg=f"position {t} reaches back")
    other = torch.cat([inputs(seed=7, shape=(1, T)), x[1:]])
    torch.testing.assert_close(moe(other)[1:], y[1:], **SUMS, msg="a row sees another one")


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


def test_any_registered_ffn_can_be_the_expert_even_one_of_another_house():
    @register_ffn("toy_batch_ffn")
    class Foreign(nn.Module):
        def __init__(self, d_model: int, gain: float = 1.0) -> None:
            super().__init__()
            self.map, self.gain = nn.Linear(d_model, d_model), gain

        def forward(self, x):
            return torch.tanh(self.map(x)) * self.gain

    moe, x = build(expert="toy_batch_ffn", expert_options={"gain": 2.0}), inputs()
    experts = [lambda v, e=e: moe.experts[e](v[None])[0] for e in range(E)]
    expected = twin.mixture(x, moe.router.linear.weight, experts, k=2, scoring="softmax", renormalise=True)
    assert torch.allclose(moe(x), expected, atol=1e-12)
    moe(x[:1, :1]).sum().backward()
    assert all(p.grad is not None for p in moe.experts.parameters()), "an idle expert has no gradient at all"
    with pytest.raises(InputError, match="impl='padded' computes experts made of Linear layers"):
        build(expert="toy_batch_ffn", impl="padded")
    with pytest.raises(InputError, match=r"no option 'gian' \(did you mean 'gain'\?\)"):
        build(expert="toy_batch_ffn", expert_options={"gian": 2.0})


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
