"""What a mixture of transformers says of itself beside its weights: options of ours, or a refusal by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.parity import answer, evaluating, probe, settings

# Attributes of the block, its router (gate) and its experts.
SAID = {
    "top_k": "k",
    "norm_topk_prob": "renormalise",
    "routed_scaling_factor": "scale",
    "route_scale": "scale",
    "num_group": "n_groups",
    "n_group": "n_groups",
    "topk_group": "k_groups",
}
# Sizes and switches, which the weights tell as well.
SIZES = {
    *("num_experts", "n_routed_experts", "hidden_dim", "hidden_size", "input_size", "intermediate_dim"),
    *("intermediate_size", "expert_dim", "ffn_dim", "num_shared_experts", "n_shared_experts"),
    *("in_features", "out_features", "layer_idx", "use_expert_bias"),
}
# How transformers describes the layout of stacked experts.
LAYOUT = {"has_gate": True, "has_bias": False, "has_post_expert_norm": False, "is_transposed": False}
LAYOUT |= {"is_concatenated": True}
# A floor under a sum of k probabilities, that only numbers below it meet.
FLOOR = 1e-6
# Logits of about this size: softmax, sigmoids and the order of the experts are then well apart.
SPREAD = 2.0


def options_said(block: nn.Module) -> dict[str, Any]:
    """Return the options of `MoE` that a mixture of transformers has among its attributes.

    Raises:
        InputError: naming an attribute that has no counterpart, or another activation than SwiGLU's.
    """
    said: dict[str, Any] = {}
    method = None
    for prefix, owner in _owners(block):
        for name, value in settings(owner):
            if name == "topk_method":
                method = value
            elif name in SAID:
                said[SAID[name]] = value
            elif not _harmless(name, value):
                raise InputError(
                    f"{prefix}{name}={value!r} of the {type(block).__name__} has no counterpart in a mixture here"
                )
    activation = getattr(getattr(block, "experts", None), "act_fn", None)
    if (
        activation is not None
        and "silu" not in (getattr(activation, "__name__", "") + type(activation).__name__).lower()
    ):
        raise InputError(f"experts.act_fn={type(activation).__name__}: only SwiGLU (SiLU) is read here")
    if method == "greedy":
        # DeepSeek-V2 keeps the numbers of groups and does not look at them.
        said["n_groups"] = said["k_groups"] = 1
    elif method not in (None, "group_limited_greedy"):
        raise InputError(
            f"gate.topk_method={method!r} of the {type(block).__name__} has no counterpart in a mixture here"
        )
    return said


def _owners(block: nn.Module) -> list[tuple[str, nn.Module]]:
    named = [(name, getattr(block, name, None)) for name in ("gate", "router", "experts")]
    return [("", block), *((f"{name}.", module) for name, module in named if isinstance(module, nn.Module))]


def _harmless(name: str, value: Any) -> bool:
    """Return whether an attribute tells nothing that the weights do not, or that something is switched off."""
    if name in LAYOUT:
        return value == LAYOUT[name]
    if name == "norm_min":
        return 0 <= value <= FLOOR
    return name in SIZES or value is False or (isinstance(value, float) and value == 0.0)


def ask(block: nn.Module, router: Tensor, expert: Tensor) -> tuple[Tensor, Tensor]:
    """Return random input [2, 32, d] and the block's output for it.

    Args:
        block: a mixture of transformers.
        router: its router's weight [E, d], by which the input is sized: an untrained router's logits are near 0.
        expert: a weight of its experts, whose type the input has (a router may be in float32 beside them).
    """
    x = probe(2, 32, router.shape[1], like=expert)
    size = router.float().norm(dim=-1).mean()
    x = x * (SPREAD / size).clamp(max=64.0).to(x.dtype) if size > 0 else x
    with evaluating(block):
        # Some write into what they are given.
        return x, answer(block, lambda: block(x.clone())).reshape(x.shape)
