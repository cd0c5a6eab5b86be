"""Latent attention to and from transformers' `DeepseekV3Attention`: the same weights under other names.

Theirs [out, in]                         ours
q_proj, or q_a_proj, q_a_layernorm and   q_proj, or q_down_proj, q_norm and q_proj
q_b_proj
kv_a_proj_with_mqa [rank + rope, d]      kv_down_proj
kv_a_layernorm                           kv_norm
kv_b_proj [heads · (nope + v), rank]     k_up [heads, nope, rank] and v_up [heads, v, rank]
o_proj                                   output_proj
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, require
from blockyard.mixers.latent import LatentAttention

if TYPE_CHECKING:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention

_PARTS = ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "o_proj")


def from_deepseek(module: Any) -> LatentAttention:
    """See `LatentAttention.from_hf`."""
    if not all(hasattr(module, part) for part in _PARTS):
        raise InputError(f"{type(module).__name__} is no DeepseekV3Attention: it lacks {', '.join(_PARTS)}")
    config = module.config
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise InputError(f"rope_type={rope['rope_type']!r} of the DeepseekV3Attention; only 'default' can be converted")
    weight = module.o_proj.weight
    attention = LatentAttention(
        config.hidden_size,
        config.num_attention_heads,
        kv_rank=config.kv_lora_rank,
        q_rank=config.q_lora_rank,
        rope_dim=config.qk_rope_head_dim,
        nope_dim=config.qk_nope_head_dim,
        v_dim=config.v_head_dim,
        causal=True,
        rope_layout="interleaved" if config.rope_interleave else "half",
        rope_theta=rope["rope_theta"],
        bias=config.attention_bias,
        dropout=config.attention_dropout,
    ).to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        for ours, theirs in _pairs(attention, module):
            ours.copy_(theirs)
        k_up, v_up = _up_projections(attention, module)
        attention.k_up.copy_(k_up)
        attention.v_up.copy_(v_up)
    for norm, other in ((attention.kv_norm, module.kv_a_layernorm), (attention.q_norm, module.q_a_layernorm)):
        if norm is not None:
            norm.eps = other.variance_epsilon
    return attention.train(module.training)


def to_deepseek(attention: LatentAttention) -> DeepseekV3Attention:
    """See `LatentAttention.to_hf`."""
    if not attention.decoupled:
        raise InputError("rope='full' has no DeepseekV3Attention: that rotates a key of its own beside the latent")
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


def _pairs(attention: LatentAttention, module: Any) -> list[tuple[Tensor, Tensor]]:
    """(ours, theirs) of all parameters that are stored alike."""
    modules: list[tuple[Any, Any]] = [
        (attention.kv_down_proj, module.kv_a_proj_with_mqa),
        (attention.kv_norm, module.kv_a_layernorm),
        (attention.output_proj, module.o_proj),
        (attention.q_proj, module.q_proj if attention.q_rank is None else module.q_b_proj),
    ]
    if attention.q_rank is not None:
        modules += [(attention.q_down_proj, module.q_a_proj), (attention.q_norm, module.q_a_layernorm)]
    return [pair for ours, theirs in modules for pair in _parameters(ours, theirs)]


def _parameters(ours: nn.Module, theirs: nn.Module) -> list[tuple[Tensor, Tensor]]:
    mine, other = dict(ours.named_parameters()), dict(theirs.named_parameters())
    return [(mine[name], other[name]) for name in mine]


def _up_projections(attention: LatentAttention, module: Any) -> tuple[Tensor, Tensor]:
    """Views of their joint up-projection as k_up and v_up."""
    stack = module.kv_b_proj.weight.view(attention.n_heads, -1, attention.kv_rank)
    k_up, v_up = stack.split([attention.nope_dim, attention.v_dim], dim=1)
    return k_up, v_up
