"""Weights of transformers' Mixtral and DeepSeek-V3 mixtures, there and back; outputs and gradients agree."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.ffn.moe_weights import from_hf, to_hf
from blockyard.registry import get_ffn

D, F, E = 32, 24, 8


def mixtral() -> nn.Module:
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    config = pytest.importorskip("transformers").MixtralConfig(
        hidden_size=D, intermediate_size=F, num_local_experts=E, num_experts_per_tok=3
    )
    return modeling.MixtralSparseMoeBlock(config)


def deepseek(**changes) -> nn.Module:
    modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    options = {"n_group": 4, "topk_group": 2, "n_shared_experts": 2, "routed_scaling_factor": 2.5} | changes
    config = pytest.importorskip("transformers").DeepseekV3Config(
        hidden_size=D, moe_intermediate_size=F, n_routed_experts=E, num_experts_per_tok=3, **options
    )
    return modeling.DeepseekV3MoE(config)


def randomised(block: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.normal_(0, 0.3)
    return block


PEERS = {
    "mixtral": mixtral,
    "deepseek": deepseek,
    "deepseek without groups": lambda: deepseek(n_group=1, topk_group=1, n_shared_experts=1),
    "deepseek not normalised": lambda: deepseek(norm_topk_prob=False),
}


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS.keys())
def test_outputs_and_gradients_equal_those_of_transformers(make):
    theirs = randomised(make())
    ours = from_hf(theirs)
    x = torch.randn(2, 17, D, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, actual = theirs(x), ours(y)
    assert (actual - expected).abs().max() <= 1e-5 * (1 + expected.abs().max())
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (actual * weight).sum().backward()
    assert (y.grad - x.grad).abs().max() <= 1e-5 * (1 + x.grad.abs().max())
    # Our gradients in their names: the same map carries weights and gradients.
    gradients = from_hf(theirs)
    with torch.no_grad():
        for ours_parameter, mine in zip(gradients.parameters(), ours.parameters()):
            ours_parameter.copy_(mine.grad)
    for name, gradient in to_hf(gradients).items():
        if name in dict(theirs.named_parameters()):
            expected = dict(theirs.named_parameters())[name].grad
            assert (gradient - expected).abs().max() <= 1e-5 * (1 + expected.abs().max()), name


@pytest.mark.parametrize("make", PEERS.values(), ids=PEERS.keys())
def test_a_way_there_and_back_changes_nothing(make):
    theirs = randomised(make())
    state = to_hf(from_hf(theirs))
    assert state.keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(state[name], tensor), name
    theirs.load_state_dict(state)


@pytest.mark.parametrize(
    "names", [("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")], ids=["mixtral", "deepseek"]
)
def test_experts_one_by_one_are_read_as_well_as_stacked(names):
    moe = get_ffn("moe", d_model=D, n_experts=4, expert_options={"d_ff": F})
    body = moe.experts.body
    state = {"gate.weight": moe.router.linear.weight}
    for e in range(4):
        for ours, name in zip(("w1", "w3", "w2"), names):
            state[f"experts.{e}.{name}.weight"] = getattr(body, ours).weight[e]
    x = torch.randn(1, 9, D)
    assert torch.equal(from_hf(state, k=2)(x), moe(x))


def test_what_has_no_counterpart_is_one_clear_line():
    with pytest.raises(InputError, match="give k"):
        from_hf(to_hf(get_ffn("moe", d_model=D)))
    with pytest.raises(InputError, match=r"no experts.gate_up_proj and no experts.0.gate_proj.weight"):
        from_hf({"gate.weight": torch.zeros(4, D)}, k=2)
    with pytest.raises(InputError, match="only plain mixtures of swiglu"):
        to_hf(get_ffn("moe", d_model=D, expert="standard"))
    with pytest.raises(InputError, match="no biases"):
        to_hf(get_ffn("moe", d_model=D, expert_options={"bias": True}))
    with pytest.raises(InputError, match="Mixtral has no shared experts"):
        to_hf(get_ffn("moe", d_model=D, n_shared=1))
