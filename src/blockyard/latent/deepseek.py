"""Latent attention to and from transformers' `DeepseekV3Attention`: the same weights under other names.

Theirs [out, in]                         ours
q_proj, or q_a_proj, q_a_layernorm and   q_proj, or q_down_proj, q_norm and q_proj
q_b_proj
kv_a_proj_with_mqa [rank + rope, d]      kv_down_proj
kv_a_layernorm                           kv_norm
kv_b_proj [heads · (nope + v), rank]     k_up [heads, nope, rank] and v_up [heads, v, rank]
o_proj                                   output_proj

Other models have the same attention under other names (DeepSeek-V2, GLM-4-MoE-Lite, MiniCPM3, …). Every key and every
setting of a module is read or refused by its name, and both compute random input before it is given out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.nn.parity import answer, deviation, evaluating, probe, settings
from blockyard.nn.rotary import Layout

if TYPE_CHECKING:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention


# A LatentAttention, which stands above this file and is handed in.
Latent = Any

_PARTS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")
# Attributes that the configuration or the weights tell as well.
_KNOWN = {
    *("layer_idx", "hidden_size", "num_heads", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "head_dim"),
    *("qk_rope_head_dim", "qk_nope_head_dim", "qk_head_dim", "v_head_dim", "attention_dropout"),
}
# Tokens that both are asked for, in two rows.
_ASKED = 12


def from_deepseek(cls: Callable[..., Latent], module: Any) -> Latent:
    """See `LatentAttention.from_hf`."""
    kind = type(module).__name__
    if not all(hasattr(module, part) for part in _PARTS):
        raise InputError(f"{kind} is no DeepseekV3Attention: it lacks {', '.join(_PARTS)}")
    config = module.config
    rope = _rope(config, kind)
    _check_settings(module)
    weight = module.o_proj.weight
    layouts = get_args(Layout)
    if hasattr(config, "rope_interleave"):
        layouts = ("interleaved",) if config.rope_interleave else ("half",)
    attention = cls(
        config.hidden_size,
        config.num_attention_heads,
        kv_rank=config.kv_lora_rank,
        q_rank=config.q_lora_rank,
        rope_dim=config.qk_rope_head_dim,
        nope_dim=config.qk_nope_head_dim,
        v_dim=config.v_head_dim,
        causal=True,
        rope_layout=layouts[0],
        rope_theta=rope["rope_theta"],
        bias=module.o_proj.bias is not None,
        dropout=config.attention_dropout or 0.0,
    ).to(device=weight.device, dtype=weight.dtype)
    _check_keys(attention, module)
    with torch.no_grad():
        for ours, theirs in _pairs(attention, module):
            ours.copy_(theirs)
        k_up, v_up = _up_projections(attention, module)
        attention.k_up.copy_(k_up)
        attention.v_up.copy_(v_up)
    for norm, other in ((attention.kv_norm, module.kv_a_layernorm), (attention.q_norm, module.q_a_layernorm)):
        if norm is not None:
            norm.eps = other.variance_epsilon
    _settle(attention, module, layouts)
    return attention.train(module.training)


def _rope(config: Any, kind: str) -> Mapping[str, Any]:
    """Return the rotary parameters, all of which are known here."""
    rope: Mapping[str, Any] = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type={rope['rope_type']!r} of the {kind}; only 'default' can be converted")
    for name, value in rope.items():
        usual = {"partial_rotary_factor": 1.0}.get(name)
        if name not in ("rope_type", "rope_theta") and value not in (None, usual):
            raise InputError(f"rope_parameters[{name!r}]={value!r} of the {kind} has no counterpart here")
    return rope


def _check_settings(module: Any) -> None:
    """Refuse attributes that change what is computed and that `LatentAttention` does not have."""
    kind, config = type(module).__name__, module.config
    scale = (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5
    for name, value in settings(module):
        usual = {"is_causal": True, "num_key_value_groups": 1}.get(name, False)
        if name == "scaling":
            if not math.isclose(value, scale, rel_tol=1e-6):
                raise InputError(f"scaling={value!r} of the {kind}; here it is (nope + rope)^-1/2 = {scale:.6g}")
        elif name not in _KNOWN and value != usual:
            raise InputError(f"{name}={value!r} of the {kind} has no counterpart here")


def _check_keys(attention: Latent, module: Any) -> None:
    theirs = {"kv_b_proj.weight"}
    for ours, name in _named(attention):
        theirs |= {f"{name}.{key}" for key, _ in ours.named_parameters()}
    found = set(module.state_dict())
    kind = type(module).__name__
    if more := sorted(found - theirs):
        raise InputError(f"no place here for {', '.join(more[:4])} of the {kind}")
    if missing := sorted(theirs - found):
        raise InputError(f"the {kind} has no {', '.join(missing[:4])}, which latent attention with its other parts has")


def _settle(attention: Latent, module: Any, layouts: tuple[Layout, ...]) -> None:
    """Leave the attention with the pairing of the rotation that repeats the module's output on random input.

    Raises:
        InputError: when none does, or the module's file has no rotary embedding to ask it with.
    """
    kind, weight = type(module).__name__, module.o_proj.weight
    x = probe(2, _ASKED, attention.d_model, like=weight)
    with evaluating(module, attention):
        expected = answer(module, lambda: _call(module, x))
        errors = {}
        for layout in layouts:
            attention.rope.layout = layout
            errors[layout], tolerance = deviation(expected, attention(x)[0])
    best = min(errors, key=lambda layout: errors[layout])
    if not errors[best] <= tolerance:
        raise InputError(
            f"the {kind} computes what neither its keys nor its settings tell: its output on random input is "
            f"{errors[best]:.1g} of its size away from that of latent attention"
        )
    attention.rope.layout = best


def _call(module: Any, x: Tensor) -> Any:
    """Return the output of a module of transformers, causal, with the rotary embedding of its own file."""
    modeling = vars(sys.modules[type(module).__module__])
    makers = [value for name, value in modeling.items() if name.endswith("RotaryEmbedding") and isinstance(value, type)]
    if len(makers) != 1:
        raise InputError(f"there are {len(makers)} rotary embeddings beside it, and one is needed")
    tables = makers[0](module.config).to(x.device)(x, torch.arange(_ASKED, device=x.device)[None])
    mask = torch.full((_ASKED, _ASKED), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu(1)[None, None]
    # Flash attention is causal by itself and takes no such mask.
    flash = "flash" in str(getattr(module.config, "_attn_implementation", ""))
    return module(x, position_embeddings=tables, attention_mask=None if flash else mask)


def to_deepseek(attention: Latent) -> DeepseekV3Attention:
    """See `LatentAttention.to_hf`."""
    if not attention.decoupled:
        raise InputError("rope='full' has no DeepseekV3Attention: that rotates a key of its own beside the latent")
    usual = (attention.nope_dim + attention.rope_dim) ** -0.5
    if attention.rope.scaled is not None or not math.isclose(attention.scale, usual, rel_tol=1e-6):
        raise InputError(
            "rope_scaling and scale are settings of a whole model in transformers: a layer by itself has neither"
        )
    if attention.q_proj.bias is not None:
        raise InputError("biases of queries (bias=qkv or all) have no DeepseekV3Attention, which has none there")
    if attention.window is not None:
        raise InputError(f"window={attention.window} has no DeepseekV3Attention, which sees all tokens")
    if attention.kv_norm is None:
        raise InputError("latent_norm=False has no DeepseekV3Attention: that always normalises its latents")
    deepseek = require("transformers.models.deepseek_v3.modeling_deepseek_v3", extra="hf")
    configuration = require("transformers.models.deepseek_v3.configuration_deepseek_v3", extra="hf")
    config = configuration.DeepseekV3Config(
        hidden_size=attention.d_model,
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_heads,
        kv_lora_rank=attention.kv_rank,
        q_lora_rank=attention.q_rank,
        qk_rope_head_dim=attention.rope_dim,
        qk_nope_head_dim=attention.nope_dim,
        v_head_dim=attention.v_dim,
        attention_bias=attention.output_proj.bias is not None,
        attention_dropout=attention.attn_dropout.p,
        rope_interleave=attention.rope.layout == "interleaved",
        rope_parameters={"rope_type": "default", "rope_theta": attention.rope.theta},
        attn_implementation="sdpa",
    )
    weight = attention.output_proj.weight
    module: Any = deepseek.DeepseekV3Attention(config, layer_idx=0).to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        for ours, theirs in _pairs(attention, module):
            theirs.copy_(ours)
        k_up, v_up = _up_projections(attention, module)
        k_up.copy_(attention.k_up)
        v_up.copy_(attention.v_up)
    for norm, other in ((attention.kv_norm, module.kv_a_layernorm), (attention.q_norm, module.q_a_layernorm)):
        if norm is not None:
            other.variance_epsilon = norm.eps
    return module.train(attention.training)


def _named(attention: Latent) -> list[tuple[nn.Module, str]]:
    """Return our modules that are stored as theirs are, and the names of these."""
    named: list[tuple[nn.Module | None, str]] = [
        (attention.kv_down_proj, "kv_a_proj_with_mqa"),
        (attention.kv_norm, "kv_a_layernorm"),
        (attention.output_proj, "o_proj"),
        (attention.q_proj, "q_proj" if attention.q_rank is None else "q_b_proj"),
        (attention.q_down_proj, "q_a_proj"),
        (attention.q_norm, "q_a_layernorm"),
    ]
    return [(module, name) for module, name in named if module is not None]


def _pairs(attention: Latent, module: Any) -> list[tuple[Tensor, Tensor]]:
    """Return (ours, theirs) of all parameters that are stored alike."""
    return [pair for ours, name in _named(attention) for pair in _parameters(ours, getattr(module, name))]


def _parameters(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    if foreign := sorted(set(mine) - set(other)):
        raise InputError(f"{type(ours).__name__} has {foreign[0]}, which has no counterpart; merge adapters first")
    return [(mine[name], other[name]) for name in mine]


def _up_projections(attention: Latent, module: Any) -> tuple[Tensor, Tensor]:
    """Return views of their joint up-projection as k_up and v_up."""
    stack = module.kv_b_proj.weight.view(attention.n_heads, -1, attention.kv_rank)
    k_up, v_up = stack.split([attention.nope_dim, attention.v_dim], dim=1)
    return k_up, v_up
