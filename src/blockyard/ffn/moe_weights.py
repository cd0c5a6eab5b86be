"""Weights of Mixtral's and DeepSeek-V3's mixtures, to and from this one.

    moe = from_hf(block)        # a MixtralSparseMoeBlock or DeepseekV3MoE of transformers, or its state dict
    block.load_state_dict(to_hf(moe))

transformers itself is not needed. State dicts may hold the experts stacked, as its modules do since version 5
(`experts.gate_up_proj` [E, 2·d_ff, d], `experts.down_proj`), or one by one, as checkpoints do (`experts.0.w1.weight`,
`experts.0.gate_proj.weight`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.ffn.experts import StackedExperts
from blockyard.ffn.moe import MoE

# SwiGLU's w1 is the gate, w3 the value, w2 the way back; Mixtral's checkpoints call them so, too.
NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def from_hf(block: nn.Module | Mapping[str, Tensor], *, k: int | None = None, **options: Any) -> MoE:
    """A mixture with the weights of another's, whose outputs it repeats.

    Args:
        block: the module, which also tells k, groups and scale; or its state dict, with names relative to the block.
        k: experts per token; needed with a state dict.
        options: of `MoE`; what is given here goes before what the module says. A state dict with a selection bias is
            taken for DeepSeek-V3's (sigmoids), one without for Mixtral's (softmax over the chosen).

    Raises:
        InputError: for a state dict of another kind or without k, or an expert that is no SwiGLU.
    """
    said: dict[str, Any] = {}
    state: Mapping[str, Tensor]
    if isinstance(block, nn.Module):
        state, said = block.state_dict(), _options_said(block)
    else:
        state = block
    said |= {"k": k} if k is not None else {}
    if "k" not in said:
        raise InputError("k=None: a state dict does not tell how many experts a token passes; give k")
    experts = _experts(state)
    n_experts, d_ff, d_model = experts["w1"].shape
    shared = _shared(state, d_ff)
    router = _needed(state, "gate.weight")
    sigmoid = "gate.e_score_correction_bias" in state
    style = {"scoring": "sigmoid", "balance": "bias"} if sigmoid else {"scoring": "softmax"}
    moe = MoE(
        d_model,
        expert="swiglu",
        expert_options={"d_ff": d_ff},
        n_experts=n_experts,
        n_shared=0 if shared is None else shared["w1"].shape[0],
        **{**style, **said, **options},
    ).to(router.device, router.dtype)
    with torch.no_grad():
        moe.router.linear.weight.copy_(router)
        if moe.router.bias is not None and sigmoid:
            moe.router.bias = state["gate.e_score_correction_bias"].detach().clone()
        body = _body(moe)
        for name, weight in experts.items():
            getattr(body, name).weight.copy_(weight)
            for i, member in enumerate(moe.shared):
                assert shared is not None
                getattr(member, name).weight.copy_(shared[name][i])
    return moe


def to_hf(moe: MoE) -> dict[str, Tensor]:
    """The weights under the names of transformers' module: MixtralSparseMoeBlock, or DeepseekV3MoE for sigmoids.

    Raises:
        InputError: for a mixture that neither of them can be: other experts than SwiGLU without biases, a vein.
    """
    if moe.expert != "swiglu" or moe.vein is not None or not isinstance(moe.experts, StackedExperts):
        raise InputError(f"expert={moe.expert!r}: only plain mixtures of swiglu have a counterpart in transformers")
    body = _body(moe)
    if body.w1.bias is not None:
        raise InputError("expert.bias=True: the experts of Mixtral and DeepSeek-V3 have no biases")
    sigmoid = moe.router.scoring == "sigmoid"
    if not sigmoid and (moe.shared or not moe.router.renormalise or moe.router.scale != 1 or moe.router.n_groups > 1):
        raise InputError("Mixtral has no shared experts, groups or scale, and renormalises; use scoring='sigmoid'")
    state = {
        "gate.weight": moe.router.linear.weight,
        "experts.gate_up_proj": torch.cat([body.w1.weight, body.w3.weight], dim=1),
        "experts.down_proj": body.w2.weight,
    }
    if sigmoid:
        bias = moe.router.bias
        state["gate.e_score_correction_bias"] = (
            moe.router.linear.weight.new_zeros(moe.n_experts) if bias is None else bias
        )
        # n shared experts are one of n times the width.
        for name, theirs in NAMES.items():
            parts = [getattr(member, name).weight for member in moe.shared]
            if parts:
                state[f"shared_experts.{theirs}.weight"] = torch.cat(parts, dim=1 if name == "w2" else 0)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _body(moe: MoE) -> Any:
    return moe.experts.body if isinstance(moe.experts, StackedExperts) else None


def _options_said(block: Any) -> dict[str, Any]:
    """What transformers' module says of its router."""
    gate = block.gate
    activation = type(getattr(block.experts, "act_fn", nn.SiLU())).__name__
    if "SiLU" not in activation:
        raise InputError(f"the experts' activation is {activation}; only SwiGLU (SiLU) is known here")
    said: dict[str, Any] = {"k": gate.top_k if hasattr(gate, "top_k") else block.top_k}
    for ours, theirs in (("n_groups", "num_group"), ("k_groups", "topk_group"), ("scale", "routed_scaling_factor"),
                         ("renormalise", "norm_topk_prob")):  # fmt: skip
        if hasattr(gate, theirs):
            said[ours] = getattr(gate, theirs)
    return said


def _experts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The experts' three matrices, stacked."""
    if "experts.gate_up_proj" in state:
        gate, up = state["experts.gate_up_proj"].chunk(2, dim=1)
        return {"w1": gate, "w3": up, "w2": _needed(state, "experts.down_proj")}
    found = {}
    for ours, theirs in NAMES.items():
        parts: list[Tensor] = []
        while True:
            stem = f"experts.{len(parts)}"
            part = state.get(f"{stem}.{theirs}.weight", state.get(f"{stem}.{ours}.weight"))
            if part is None:
                break
            parts.append(part)
        if not parts:
            raise InputError(f"the state dict has no experts.gate_up_proj and no experts.0.{theirs}.weight")
        found[ours] = torch.stack(parts)
    return found


def _shared(state: Mapping[str, Tensor], d_ff: int) -> dict[str, Tensor] | None:
    """The shared experts' matrices [n, ...], cut out of one of n times the width."""
    if "shared_experts.gate_proj.weight" not in state:
        return None
    found = {ours: _needed(state, f"shared_experts.{theirs}.weight") for ours, theirs in NAMES.items()}
    width = found["w1"].shape[0]
    if width % d_ff:
        raise InputError(f"shared_experts is {width} wide, which is no multiple of the experts' {d_ff}")
    return {name: torch.stack(weight.split(d_ff, dim=1 if name == "w2" else 0)) for name, weight in found.items()}


def _needed(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise InputError(f"the state dict has no {name}; it should be one mixture's, with names relative to it")
    return state[name]
