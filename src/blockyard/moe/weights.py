"""Weights of transformers' mixtures of experts, to and from this one.

    moe = from_hf(block)                       # a MixtralSparseMoeBlock, Qwen2MoeSparseMoeBlock, DeepseekV3MoE, …
    block.load_state_dict(to_hf(moe, "mixtral"))

Every key of the weights and every setting of the module is read, or refused by its name; then both compute random
input, and what differs is refused. transformers itself is not needed. State dicts may hold the experts stacked, as its
modules do since version 5 (`experts.gate_up_proj` [E, 2·d_ff, d], `experts.down_proj`), or one by one, as checkpoints
do (`experts.0.w1.weight`, `experts.0.gate_proj.weight`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, suggest
from blockyard.moe.experts import StackedExperts
from blockyard.moe.mixture import MoE
from blockyard.moe.router import Scoring
from blockyard.moe.settings import ask, options_said
from blockyard.nn.linear import weight_of
from blockyard.nn.parity import deviation, evaluating
from blockyard.registry.register import create

# SwiGLU's w1 is the gate, w3 the value, w2 the way back; Mixtral's checkpoints call them so, too.
NAMES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
# What a state dict says nothing of, and what decides the outputs.
UNTOLD = ("k", "expert", "scoring", "renormalise", "scale", "n_groups")
# What the weights' own shapes tell.
TOLD = ("d_model", "n_experts", "n_shared", "n_gated", "vein_rank")
ROUTERS = ("gate.weight", "router.weight", "router.gate.weight")
BIASES = (
    "gate.e_score_correction_bias",
    "e_score_correction_bias",
    "gate.moe_statics.e_score_correction_bias",
    "moe_statics.e_score_correction_bias",
    "expert_bias",
)


@dataclass(frozen=True)
class Family:
    """One of transformers' mixtures: what it can be, and how it names its weights.

    Args:
        scoring: its scores.
        renormalise: whether its weights are divided by their sum; None where its configuration says.
        scaled: it has a factor on the weights.
        grouped: it has groups of experts.
        bias: the key of its selection bias.
        shared: where its shared experts are.
        gate: the key of the gate that weights them.
        optional: its shared experts may be absent.
        router: the key of the router.
    """

    scoring: Scoring
    renormalise: bool | None
    scaled: bool = False
    grouped: bool = False
    bias: str | None = None
    shared: str | None = None
    gate: str | None = None
    optional: bool = False
    router: str = "gate.weight"

    def refusals(self, moe: MoE) -> list[str]:
        """Return what a mixture has that this family has not, or the other way round."""
        router = moe.router
        found = [] if router.scoring == self.scoring else [f"scoring={router.scoring!r}"]
        if self.renormalise not in (None, router.renormalise):
            found.append(f"renormalise={router.renormalise}")
        if router.scale != 1 and not self.scaled:
            found.append(f"scale={router.scale}")
        if router.n_groups > 1 and not self.grouped:
            found.append(f"n_groups={router.n_groups}")
        if router.bias is not None and self.bias is None:
            found.append("balance='bias'")
        gated = 0 if moe.gated is None else len(moe.gated)
        if moe.shared and (self.shared is None or self.gate is not None):
            found.append(f"n_shared={len(moe.shared)}")
        if bool(gated) != (self.gate is not None):
            found.append(f"n_gated={gated}")
        return found


# By transformers' model types; the first that can be a mixture is what it becomes when none is named.
FAMILIES = {
    "mixtral": Family("softmax", True),
    "deepseek_v3": Family("sigmoid", None, True, True, "gate.e_score_correction_bias", "shared_experts"),
    "qwen3_moe": Family("softmax", None),
    "qwen2_moe": Family("softmax", None, shared="shared_expert", gate="shared_expert_gate.weight"),
    "deepseek_v2": Family("softmax", False, True, True, shared="shared_experts"),
    "ernie4_5_moe": Family("softmax", True, bias=BIASES[2], shared="shared_experts", optional=True),
    "minimax_m2": Family("sigmoid", True, bias="e_score_correction_bias"),
    "granitemoe": Family("softmax", True, router="router.weight"),
}
FAMILIES |= {"olmoe": FAMILIES["qwen3_moe"], "qwen3_next": FAMILIES["qwen2_moe"]}


def from_hf(block: nn.Module | Mapping[str, Tensor], *, k: int | None = None, **options: Any) -> MoE:
    """Return a mixture with the weights of another's, whose outputs it repeats.

    Args:
        block: the module, which tells k, groups, scale and the rest, and is asked for its output on random input; or
            its state dict, with names relative to the block, which tells the weights alone.
        k: experts per token; needed with a state dict.
        options: of `MoE`. A state dict needs expert, scoring, renormalise, scale and n_groups (and k_groups); a module
            needs none of them, and is not contradicted.

    Raises:
        InputError: for a key or a setting that a mixture here does not have, what is not told, or a module whose output
            on random input is another.
    """
    module = block if isinstance(block, nn.Module) else None
    said = {} if module is None else options_said(module)
    given = options if k is None else {"k": k, **options}
    for name, value in given.items():
        if name in TOLD:
            raise InputError(f"{name}={value!r}: the weights tell it; leave it out")
        if name in said and said[name] != value:
            raise InputError(f"{name}={value!r}: the {type(block).__name__} has {said[name]!r}; leave it out")
    settings = {**said, **given}
    weights = read_weights(block.state_dict() if isinstance(block, nn.Module) else block)
    _check_told(settings, module)
    if module is None:
        moe = _built(weights, settings)
        weights.copy_into(moe)
        return moe
    # The constructor refuses one expert renormalised; what the module does is settled below.
    moe = _built(weights, {**settings, "renormalise": False})
    weights.copy_into(moe)
    _settle(moe, module, settings)
    return moe.train(module.training)


def to_hf(moe: MoE, model: str | None = None) -> dict[str, Tensor]:
    """Return the weights under the names of a module of transformers, for its `load_state_dict`.

    Args:
        moe: a mixture of swiglu.
        model: transformers' model type, one of FAMILIES; None takes the first of them that can be this mixture
            (mixtral, or deepseek_v3 for sigmoids, unless it has more than these). k, scale, groups and renormalisation
            stand in the module's configuration, not in its weights.

    Raises:
        InputError: for a mixture that the named one, or none, can be; it says for what.
    """
    if moe.expert != "swiglu" or moe.vein is not None or not isinstance(moe.experts, StackedExperts):
        raise InputError(f"expert={moe.expert!r}: only plain mixtures of swiglu have a counterpart in transformers")
    body = _body(moe)
    if body.w1.bias is not None:
        raise InputError("expert.bias=True: the experts of transformers' mixtures have no biases")
    family = _family(moe, model)
    state = {
        family.router: weight_of(moe.router.linear),
        # transformers stacks gate and value in one matrix [E, 2·d_ff, d].
        "experts.gate_up_proj": torch.cat([body.w1.weight, body.w3.weight], dim=1),
        "experts.down_proj": body.w2.weight,
    }
    if family.bias is not None:
        bias = moe.router.bias
        # A bias of 0 chooses as none does.
        bias = moe.router.linear.weight.new_zeros(moe.n_experts) if bias is None else bias
        state[family.bias] = bias[None] if "moe_statics" in family.bias else bias
    members = list(moe.shared if moe.gated is None else moe.gated)
    if family.gate is not None:
        assert moe.gated is not None
        state[family.gate] = moe.gated.gate[None]
    if family.shared is not None and (members or not family.optional):
        # n shared experts are one of n times the width.
        for name, theirs in NAMES.items():
            one = getattr(body, name).weight[0]
            axis = 1 if name == "w2" else 0
            parts = [weight_of(getattr(member, name)) for member in members] or [one.narrow(axis, 0, 0)]
            state[f"{family.shared}.{theirs}.weight"] = torch.cat(parts, dim=axis)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _family(moe: MoE, model: str | None) -> Family:
    if model is None:
        for family in FAMILIES.values():
            if not family.refusals(moe):
                return family
        reasons = (f"{name} not with {', '.join(family.refusals(moe))}" for name, family in FAMILIES.items())
        raise InputError(f"no mixture of transformers known here can be this one: {'; '.join(reasons)}")
    if model not in FAMILIES:
        raise InputError(f"model={model!r} should be one of {', '.join(FAMILIES)}{suggest(model, FAMILIES)}")
    if refusals := FAMILIES[model].refusals(moe):
        raise InputError(f"model={model!r} cannot be a mixture with {', '.join(refusals)}")
    return FAMILIES[model]


def _body(moe: MoE) -> Any:
    return moe.experts.body if isinstance(moe.experts, StackedExperts) else None


@dataclass(frozen=True)
class Weights:
    """A mixture's tensors, the experts' and shared experts' under our names, stacked."""

    router: Tensor
    experts: dict[str, Tensor]
    bias: tuple[str, Tensor] | None
    shared: dict[str, Tensor] | None
    gate: Tensor | None

    def copy_into(self, moe: MoE) -> None:
        with torch.no_grad():
            # Some keep their router, or its bias, in float32 beside experts in half precision.
            moe.router.linear.to(self.router.dtype)
            moe.router.linear.weight.copy_(self.router)
            if self.bias is not None:
                moe.router.bias = self.bias[1].detach().reshape(-1).clone()
            for name, weight in self.experts.items():
                getattr(_body(moe), name).weight.copy_(weight)
            for i, member in enumerate(moe.shared if moe.gated is None else moe.gated):
                for name, weight in (self.shared or {}).items():
                    getattr(member, name).weight.copy_(weight[i])
            if moe.gated is not None and self.gate is not None:
                moe.gated.gate.copy_(self.gate[0])


class _Keys:
    """A state dict of which every key has to be taken."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        # What is left at the end has no place here, and is refused by its name.
        self.left = dict(state)

    def first(self, names: Iterable[str]) -> tuple[str, Tensor] | None:
        for name in names:
            if name in self.left:
                return name, self.left.pop(name)
        return None

    def need(self, *names: str) -> Tensor:
        found = self.first(names)
        if found is None:
            raise InputError(
                f"the weights have no {' or '.join(names)}; they should be one mixture's, with names relative to it"
            )
        return found[1]

    def three(self, stem: str) -> dict[str, Tensor] | None:
        """Return the three matrices of a gated FFN, under either naming; None where there is none."""
        names = {ours: (f"{stem}.{theirs}.weight", f"{stem}.{ours}.weight") for ours, theirs in NAMES.items()}
        if not any(name in self.left for either in names.values() for name in either):
            return None
        return {ours: self.need(*either) for ours, either in names.items()}


def read_weights(state: Mapping[str, Tensor]) -> Weights:
    """Return a mixture's tensors out of a state dict with names relative to it.

    Raises:
        InputError: for a key without a place here, or tensors that do not go together.
    """
    keys = _Keys(state)
    router = keys.need(*ROUTERS)
    if router.ndim != 2:
        raise InputError(f"the router's weight has shape {tuple(router.shape)}, expected [experts, d_model]")
    experts = _experts(keys, *router.shape)
    bias = keys.first(BIASES)
    if bias is not None and bias[1].numel() != router.shape[0]:
        raise InputError(f"{bias[0]} has shape {tuple(bias[1].shape)}, expected [{router.shape[0]}]")
    # Qwen2-MoE has one shared expert and DeepSeek several in one; the name tells which.
    stem = next((s for s in ("shared_experts", "shared_expert") if any(k.startswith(f"{s}.") for k in keys.left)), None)
    shared = None if stem is None else _shared(stem, keys, experts["w1"].shape[1])
    gate = keys.first(["shared_expert_gate.weight"])
    if gate is not None and (gate[1].shape != (1, router.shape[1]) or shared is None):
        raise InputError(f"{gate[0]} has shape {tuple(gate[1].shape)}; only one gate over shared experts is known here")
    if keys.left:
        raise InputError(f"no place here for {', '.join(list(keys.left)[:4])}: a mixture of swiglu has no such weights")
    return Weights(router, experts, bias, shared, None if gate is None else gate[1])


def _experts(keys: _Keys, n_experts: int, d_model: int) -> dict[str, Tensor]:
    """Return the experts' three matrices, stacked."""
    if "experts.gate_up_proj" in keys.left:
        both, back = keys.need("experts.gate_up_proj"), keys.need("experts.down_proj")
        d_ff = back.shape[-1]
        for name, weight, shape in (
            ("gate_up_proj", both, (n_experts, 2 * d_ff, d_model)),
            ("down_proj", back, (n_experts, d_model, d_ff)),
        ):
            if tuple(weight.shape) != shape:
                raise InputError(f"experts.{name} has shape {tuple(weight.shape)}, expected {shape} [experts, out, in]")
        # The gate lies in front (its `chunk(2)` in transformers).
        gate, up = both.chunk(2, dim=1)
        return {"w1": gate, "w3": up, "w2": back}
    each: list[dict[str, Tensor]] = []
    while (one := keys.three(f"experts.{len(each)}")) is not None:
        each.append(one)
    if not each:
        raise InputError("the weights have no experts.gate_up_proj and no experts.0.gate_proj.weight")
    if len(each) != n_experts:
        raise InputError(f"the weights have {len(each)} experts, and a router of {n_experts}")
    return {name: torch.stack([one[name] for one in each]) for name in NAMES}


def _shared(stem: str, keys: _Keys, d_ff: int) -> dict[str, Tensor] | None:
    """Return the shared experts' matrices [n, ...], cut out of one of n times the width."""
    found = keys.three(stem)
    if found is None or not found["w1"].shape[0]:
        return None
    width = found["w1"].shape[0]
    if width % d_ff:
        raise InputError(f"{stem}.gate_proj.weight is {width} wide, which is no multiple of the experts' {d_ff}")
    return {name: torch.stack(weight.split(d_ff, dim=1 if name == "w2" else 0)) for name, weight in found.items()}


def _check_told(settings: dict[str, Any], module: nn.Module | None) -> None:
    if module is None:
        needed = [*UNTOLD, *(["k_groups"] if settings.get("n_groups", 1) != 1 else [])]
        missing = [name for name in needed if settings.get(name) is None]
        if missing:
            which = "it" if len(missing) == 1 else "them"
            raise InputError(
                f"a state dict does not tell {', '.join(missing)}: give {which} "
                "(Mixtral: expert='swiglu', scoring='softmax', renormalise=True, scale=1.0, n_groups=1), or the module"
            )
    elif settings.get("k") is None:
        raise InputError(f"the {type(module).__name__} has no top_k: give k")


def _built(weights: Weights, settings: dict[str, Any]) -> MoE:
    n_experts, d_ff, d_model = weights.experts["w1"].shape
    if settings.get("expert", "swiglu") != "swiglu":
        raise InputError(f"expert={settings['expert']!r}: only swiglu is read here")
    inner = {"d_ff": d_ff, **settings.get("expert_options", {})}
    if inner["d_ff"] != d_ff or inner.get("bias"):
        raise InputError(f"expert_options={inner}: the weights are {d_ff} wide, without biases; leave both out")
    if weights.bias is not None and settings.setdefault("balance", "bias") != "bias":
        raise InputError(f"balance={settings['balance']!r} has no place for {weights.bias[0]}; use balance='bias'")
    count = 0 if weights.shared is None else weights.shared["w1"].shape[0]
    options = {
        **settings,
        "expert": "swiglu",
        "expert_options": inner,
        "n_experts": n_experts,
        "n_shared": count if weights.gate is None else 0,
        "n_gated": 0 if weights.gate is None else count,
    }
    placement = weights.experts["w1"]
    moe: MoE = create("ffn", "moe", {"d_model": d_model, **options}).to(placement.device, placement.dtype)
    return moe


def _settle(moe: MoE, module: nn.Module, settings: Mapping[str, Any]) -> None:
    """Leave the mixture with the scoring and normalisation that repeat the module's output on random input.

    Softmax or sigmoids, renormalised or not: many modules have neither key nor setting for it, only code.

    Raises:
        InputError: when none does, or scorings cannot be told apart.
    """
    kind, router = type(module).__name__, moe.router
    choices = {"renormalise": (True, False), "scoring": ("softmax", "sigmoid")}
    tried = [(settings[name],) if name in settings else values for name, values in choices.items()]
    x, expected = ask(module, router.linear.weight, _body(moe).w1.weight)
    found, nearest = [], float("inf")
    for renormalise, scoring in itertools.product(*tried):
        router.renormalise, router.scoring = renormalise, scoring
        with evaluating(moe):
            error, tolerance = deviation(expected, moe(x))
        # Said when nothing fits: a small number is another rounding, a large one another function.
        nearest = min(nearest, error)
        if error <= tolerance:
            found.append((renormalise, scoring))
    if not found:
        raise InputError(
            f"the {kind} computes what neither its keys nor its settings tell: its output on random input is "
            f"{nearest:.1g} of its size away from that of the nearest mixture here"
        )
    if moe.k == 1 and found[0][0]:
        raise InputError(
            f"top_k=1 (num_experts_per_tok) of the {kind}, renormalised: the one weight is 1 whatever the router says, "
            "and the router could learn nothing here; only k of at least 2, or weights not renormalised, can be read"
        )
    if len({scoring for _, scoring in found}) > 1:
        raise InputError(f"softmax and sigmoids give the same with the router of this {kind}; give scoring")
    # With all experts chosen a softmax sums to 1 in any case: either is right.
    router.renormalise, router.scoring = found[0]
