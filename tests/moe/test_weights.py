"""Weights of transformers' mixtures, there and back: outputs and gradients agree, or a line names what does not fit."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.moe.weights import FAMILIES, from_hf, to_hf
from blockyard.registry.register import get_ffn

D, F, E = 32, 24, 8
# The same sizes under the names that the configurations have for them.
SIZES = {
    **{"hidden_size": D, "intermediate_size": F, "moe_intermediate_size": F, "num_attention_heads": 4},
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), E),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 3),
}


def peer(model: str, block: str, **changes) -> nn.Module:
    """A block of transformers with random weights and biases: nothing hides behind zeros."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    modeling = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    configuration = importlib.import_module(f"transformers.models.{model}.configuration_{model}")
    configs = [c for n, c in vars(configuration).items() if inspect.isclass(c) and n.endswith("Config")]
    own = [c for c in configs if c.__module__ == configuration.__name__]
    config = next((c for c in own if c.__name__.endswith("TextConfig")), own[0])(**{**SIZES, **changes})
    return randomised(getattr(modeling, block)(config)).eval()


def randomised(block: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in (*block.parameters(), *block.buffers()):
            tensor.normal_(0, 0.3)
    return block


V2 = ("deepseek_v2", "DeepseekV2Moe", {"n_shared_experts": 2, "routed_scaling_factor": 2.5})
V3 = ("deepseek_v3", "DeepseekV3MoE", {"n_group": 4, "topk_group": 2, "n_shared_experts": 2})
QWEN2 = ("qwen2_moe", "Qwen2MoeSparseMoeBlock", {"shared_expert_intermediate_size": 2 * F})
NEXT = ("qwen3_next", "Qwen3NextSparseMoeBlock", {"shared_expert_intermediate_size": F})
ERNIE = ("ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", {"moe_num_shared_experts": 2})
MIXTRAL = ("mixtral", "MixtralSparseMoeBlock", {})
QWEN3 = ("qwen3_moe", "Qwen3MoeSparseMoeBlock", {})
GROUPED = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
# What is read, with the name under which it goes back.
PEERS = {
    "Mixtral": (*MIXTRAL, "mixtral"),
    "DeepSeek-V3": (*V3, "deepseek_v3"),
    "V3 without groups": (*V3[:2], {"n_group": 1, "topk_group": 1, "n_shared_experts": 1}, "deepseek_v3"),
    "V3 not normalised": (*V3[:2], {**V3[2], "norm_topk_prob": False}, "deepseek_v3"),
    "V3 of one expert": (*V3[:2], {**V3[2], "norm_topk_prob": False, "num_experts_per_tok": 1}, "deepseek_v3"),
    "V3 without shared experts": (*V3[:2], {**V3[2], "n_shared_experts": 0}, "deepseek_v3"),
    "DeepSeek-V2": (*V2, "deepseek_v2"),
    "V2 with groups it ignores": (*V2[:2], {**V2[2], **GROUPED, "topk_method": "greedy"}, "deepseek_v2"),
    "V2 with groups": (*V2[:2], {**V2[2], **GROUPED}, "deepseek_v2"),
    "Qwen2-MoE": (*QWEN2, "qwen2_moe"),
    "Qwen2-MoE normalised": (*QWEN2[:2], {**QWEN2[2], "norm_topk_prob": True}, "qwen2_moe"),
    "Qwen3-Next": (*NEXT, "qwen3_next"),
    "Qwen3-MoE": (*QWEN3, "qwen3_moe"),
    "Qwen3-MoE normalised": (*QWEN3[:2], {"norm_topk_prob": True}, "qwen3_moe"),
    "Qwen3-MoE of one expert": (*QWEN3[:2], {"num_experts_per_tok": 1}, "qwen3_moe"),
    "all experts": (*MIXTRAL[:2], {"num_experts_per_tok": E}, "mixtral"),
    "OLMoE": ("olmoe", "OlmoeSparseMoeBlock", {}, "olmoe"),
    "MiniMax-M2": ("minimax_m2", "MiniMaxM2SparseMoeBlock", {}, "minimax_m2"),
    "ERNIE-4.5": (*ERNIE, "ernie4_5_moe"),
    "ERNIE-4.5 without shared experts": (*ERNIE[:2], {"moe_num_shared_experts": 0}, "ernie4_5_moe"),
    "Granite": ("granitemoe", "GraniteMoeMoE", {}, "granitemoe"),
}


@pytest.mark.parametrize(("model", "block", "changes", "name"), PEERS.values(), ids=PEERS)
def test_outputs_and_gradients_equal_those_of_transformers(model, block, changes, name):
    theirs = peer(model, block, **changes)
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
    slopes = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    for key, gradient in to_hf(gradients, name).items():
        if key in slopes and gradient.numel():
            assert (gradient - slopes[key]).abs().max() <= 1e-5 * (1 + slopes[key].abs().max()), key


@pytest.mark.parametrize(("model", "block", "changes", "name"), PEERS.values(), ids=PEERS)
def test_a_way_there_and_back_changes_nothing(model, block, changes, name):
    theirs = peer(model, block, **changes)
    state = to_hf(from_hf(theirs), name)
    assert state.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(state[key], tensor), key
    theirs.load_state_dict(state)


def test_every_family_that_is_written_is_read():
    assert set(FAMILIES) == {name for *_, name in PEERS.values()}


REFUSED = {
    "Mixtral of one expert": (*MIXTRAL[:2], {"num_experts_per_tok": 1}, r"top_k=1 \(num_experts_per_tok\)"),
    "Qwen3-MoE of one normalised": (
        *(*QWEN3[:2], {"num_experts_per_tok": 1, "norm_topk_prob": True}),
        r"top_k=1 \(num_experts_per_tok\)",
    ),
    "Mixtral with jitter": (*MIXTRAL[:2], {"router_jitter_noise": 0.1}, "jitter_noise=0.1 of the Mixtral"),
    "GELU": (*MIXTRAL[:2], {"hidden_act": "gelu"}, "act_fn=GELUActivation: only SwiGLU"),
    "a shared expert of an odd width": (
        *(*QWEN2[:2], {"shared_expert_intermediate_size": 40}),
        "shared_expert.gate_proj.weight is 40 wide, which is no multiple of the experts' 24",
    ),
    "GPT-OSS": ("gpt_oss", "GptOssMLP", {}, "experts.alpha=1.702 of the GptOssMLP"),
    "Phi": ("phimoe", "PhimoeSparseMoeBlock", {}, "router_jitter_noise=0.01 of the Phimoe"),
    "Phi without jitter": (
        *("phimoe", "PhimoeSparseMoeBlock", {"router_jitter_noise": 0.0}),
        "the PhimoeSparseMoeBlock computes what neither its keys nor its settings tell",
    ),
    "Llama-4": ("llama4", "Llama4TextMoe", {}, r"experts.gate_up_proj has shape \(8, 32, 48\), expected \(8, 64, 32\)"),
    "Cohere2": ("cohere2_moe", "Cohere2MoeSparseMoeBlock", {}, "shared_expert_combination_strategy='average'"),
    "A.X": ("axk1", "AXK1MoE", {"n_group": 1, "topk_group": 1}, "no place here for post_mlp_layernorm.weight"),
}


@pytest.mark.parametrize(("model", "block", "changes", "line"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(model, block, changes, line):
    with pytest.raises(InputError, match=line):
        from_hf(peer(model, block, **changes))


@pytest.mark.slow
def test_every_mixture_in_transformers_agrees_or_is_refused():
    models = pytest.importorskip("transformers.models", reason="transformers is not installed")
    read, refused = [], []
    sizes = {"n_group": 4, "topk_group": 2, "shared_expert_intermediate_size": 2 * F, "routed_scaling_factor": 2.5}
    for found in pkgutil.iter_modules(models.__path__):
        for block in sparse_blocks(found.name):
            try:
                theirs = peer(found.name, block, **sizes)
            except Exception:  # it wants another configuration, or another package
                continue
            try:
                ours = from_hf(theirs)
            except InputError:
                refused.append(block)
                continue
            x = torch.randn(2, 17, D)
            with torch.no_grad():
                expected, actual = theirs(x.clone()), ours(x)
            assert (actual - expected).abs().max() <= 1e-5 * (1 + expected.abs().max()), block
            read.append(block)
    assert len(read) >= 20 and len(refused) >= 8, (read, refused)


def sparse_blocks(model: str) -> list[str]:
    """Classes of a model's file that hold experts."""
    file = Path(importlib.import_module("transformers.models").__path__[0], model, f"modeling_{model}.py")
    if not file.exists() or "self.experts = " not in file.read_text(encoding="utf-8"):
        return []
    try:
        modeling = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    except ImportError:
        return []
    own = [c for c in vars(modeling).values() if inspect.isclass(c) and c.__module__ == modeling.__name__]
    return [c.__name__ for c in own if "self.experts = " in inspect.getsource(c)]


def test_half_precision_is_read_and_keeps_a_router_in_float32():
    theirs = peer(*V3[:2], **V3[2]).bfloat16()
    theirs.gate.e_score_correction_bias = theirs.gate.e_score_correction_bias.float()
    ours = from_hf(theirs)
    assert ours.experts.body.w1.weight.dtype == torch.bfloat16 and ours.router.bias.dtype == torch.float32
    theirs = peer(*ERNIE[:2], **ERNIE[2]).bfloat16()
    theirs.gate.float()  # as its checkpoints are loaded
    ours, x = from_hf(theirs), torch.randn(1, 5, D, dtype=torch.bfloat16)
    assert ours.router.linear.weight.dtype == torch.float32
    torch.testing.assert_close(ours(x), theirs(x), atol=0.05, rtol=0.05)


def test_reading_leaves_the_module_and_the_random_state_as_they_were():
    theirs = peer(*QWEN2[:2], **QWEN2[2]).train()
    theirs.shared_expert.eval()
    before, state = {k: v.clone() for k, v in theirs.state_dict().items()}, torch.get_rng_state()
    ours = from_hf(theirs)
    assert ours.training and theirs.training and not theirs.shared_expert.training
    assert all(torch.equal(v, before[k]) for k, v in theirs.state_dict().items())
    assert torch.equal(torch.get_rng_state()[:8], state[:8])  # the seed; building an FFN draws its own numbers


# State dicts alone.

MIXTRALS = {"expert": "swiglu", "scoring": "softmax", "renormalise": True, "scale": 1.0, "n_groups": 1}
V3S = {**MIXTRALS, "scoring": "sigmoid", "scale": 2.5, "n_groups": 4, "k_groups": 2}


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
    assert torch.equal(from_hf(state, k=2, **MIXTRALS)(x), moe(x))
    with pytest.raises(InputError, match=r"no place here for experts.3.w1.bias"):
        from_hf({**state, "experts.3.w1.bias": torch.zeros(F)}, k=2, **MIXTRALS)
    del state[f"experts.3.{names[0]}.weight"], state[f"experts.3.{names[1]}.weight"]
    with pytest.raises(InputError, match=r"no experts.3.gate_proj.weight or experts.3.w1.weight"):
        from_hf(state, k=2, **MIXTRALS)


def test_a_state_dict_with_its_options_repeats_the_module():
    theirs = peer(*V3[:2], **V3[2], routed_scaling_factor=2.5)
    x = torch.randn(2, 9, D)
    torch.testing.assert_close(from_hf(theirs.state_dict(), k=3, **V3S)(x), theirs(x), atol=1e-5, rtol=1e-5)


def test_what_a_state_dict_does_not_tell_is_asked_for():
    state = peer(*V3[:2], **V3[2]).state_dict()
    with pytest.raises(InputError, match="does not tell expert, scoring, renormalise, scale, n_groups: give them"):
        from_hf(state, k=2)
    with pytest.raises(InputError, match="does not tell k_groups: give it "):
        from_hf(state, k=2, **{**MIXTRALS, "n_groups": 4})
    with pytest.raises(InputError, match="does not tell k"):
        from_hf(state, **V3S)
    with pytest.raises(InputError, match=r"balance='none' has no place for gate.e_score_correction_bias"):
        from_hf(state, k=3, **V3S, balance="none")
    with pytest.raises(InputError, match="expert='glu': only swiglu is read"):
        from_hf(state, k=3, **{**V3S, "expert": "glu"})
    with pytest.raises(InputError, match=r"expert_options=.* leave both out"):
        from_hf(state, k=3, **V3S, expert_options={"d_ff": 8})
    with pytest.raises(InputError, match="n_shared=1: the weights tell it"):
        from_hf(state, k=3, **V3S, n_shared=1)
    with pytest.raises(InputError, match=r"no place here for gate.tid2eid"):
        from_hf({**state, "gate.tid2eid": torch.zeros(4)}, k=3, **V3S)
    with pytest.raises(InputError, match="no option 'capcity'"):
        from_hf(state, k=3, **V3S, capcity=1.0)
    with pytest.raises(InputError, match=r"no gate.weight or router.weight"):
        from_hf({"experts.down_proj": torch.zeros(4, D, F)}, k=2, **MIXTRALS)
    with pytest.raises(InputError, match=r"no experts.gate_up_proj and no experts.0.gate_proj.weight"):
        from_hf({"gate.weight": torch.zeros(4, D)}, k=2, **MIXTRALS)
    gpt = peer("gpt_oss", "GptOssMLP", hidden_size=48).state_dict()  # 2 · d_ff = d: the shapes alone would do
    with pytest.raises(InputError, match=r"experts.gate_up_proj has shape|no place here for .*bias"):
        from_hf(gpt, k=2, **MIXTRALS)


def test_options_may_add_to_a_module_but_not_contradict_it():
    theirs = peer(*MIXTRAL[:2])
    assert from_hf(theirs, k=3, capacity=1.5, expert_options={"dropout": 0.1}).capacity == 1.5
    with pytest.raises(InputError, match="k=2: the MixtralSparseMoeBlock has 3"):
        from_hf(theirs, k=2)
    with pytest.raises(InputError, match="the MixtralSparseMoeBlock computes what neither its keys nor its settings"):
        from_hf(theirs, scoring="sigmoid")


def test_modules_that_cannot_be_asked_are_one_clear_line():
    theirs = peer(*MIXTRAL[:2])
    with torch.no_grad():
        theirs.experts.down_proj.fill_(float("nan"))
    with pytest.raises(InputError, match="no finite output on random input; are its weights set"):
        from_hf(theirs)
    with pytest.raises(InputError, match="on the meta device"):
        from_hf(peer(*MIXTRAL[:2]).to("meta"))
    even = peer(*MIXTRAL[:2])
    with torch.no_grad():
        even.gate.weight.zero_()
    with pytest.raises(InputError, match="softmax and sigmoids give the same"):
        from_hf(even)


# The way back.


def test_the_first_family_that_can_be_the_mixture_is_taken():
    keys = {
        "gate.weight": get_ffn("moe", d_model=D),
        "gate.e_score_correction_bias": get_ffn("moe", d_model=D, scoring="sigmoid"),
        "shared_expert_gate.weight": get_ffn("moe", d_model=D, n_gated=2),
        "shared_experts.up_proj.weight": get_ffn("moe", d_model=D, n_shared=1, renormalise=False),
        "gate.moe_statics.e_score_correction_bias": get_ffn("moe", d_model=D, n_shared=1),
    }
    for key, moe in keys.items():
        assert key in to_hf(moe)


def test_what_has_no_counterpart_is_one_clear_line():
    with pytest.raises(InputError, match="only plain mixtures of swiglu"):
        to_hf(get_ffn("moe", d_model=D, expert="standard"))
    with pytest.raises(InputError, match="no biases"):
        to_hf(get_ffn("moe", d_model=D, expert_options={"bias": True}))
    with pytest.raises(InputError, match=r"model='mixtral' cannot be a mixture with scale=2.0, n_shared=1"):
        to_hf(get_ffn("moe", d_model=D, n_shared=1, scale=2.0), "mixtral")
    with pytest.raises(InputError, match=r"no mixture .* mixtral not with n_shared=1, n_gated=1; deepseek_v3 not with"):
        to_hf(get_ffn("moe", d_model=D, n_shared=1, n_gated=1))
    with pytest.raises(InputError, match="did you mean 'mixtral'"):
        to_hf(get_ffn("moe", d_model=D), "mistral")
