"""Decoders with mixtures of experts: Mixtral, Qwen2-MoE, Qwen3-MoE, and DeepSeek-V2 and V3 with latent attention."""

from __future__ import annotations

from typing import Any

from blockyard.models.lm import LMConfig
from blockyard.multihead.fields import Fields, rotary
from blockyard.pretrained.decoders import (
    ATTENTION,
    COMMON,
    SILU,
    SWIGLU,
    everywhere,
    grouped,
    layers,
    qwen_window,
    shape,
    turned,
    windows,
)
from blockyard.pretrained.parts import Family, Mixture, Part, one
from blockyard.registry.pattern import LayerSpec


def mixture(d_ff: int, **options: Any) -> LayerSpec:
    """Return a layer's FFN as a mixture of gated experts, with the options that differ from the defaults."""
    usual = {"n_experts": 8, "k": 2, "scoring": "softmax", "renormalise": True, "scale": 1.0, "n_groups": 1}
    usual |= {"k_groups": 1, "n_shared": 0, "n_gated": 0, "balance": "loss"}
    # Only what differs, so that a choice reads as a person would write it.
    own = {name: value for name, value in options.items() if value != usual[name]}
    return LayerSpec("standard", "moe", {}, {"expert.d_ff": d_ff, **own})


def read_mixtral(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    f.word("hidden_act", SILU, "silu")
    ffn = mixture(
        f.whole("intermediate_size"), n_experts=f.whole("num_local_experts", 8), k=f.whole("num_experts_per_tok", 2)
    )
    spans = everywhere(f, sizes["n_layers"])
    rope, eps = turned(attn, sizes, f, theta=1e6), f.number("rms_norm_eps", 1e-5)
    return LMConfig(blocks=layers(attn, ffn, spans), norm_eps=eps, **rope, **sizes)


def sparse_layers(f: Fields, sparse: LayerSpec, n_layers: int) -> list[LayerSpec]:
    """Return the FFN of each layer: dense ones where Qwen's configurations say so."""
    # Every so many layers are sparse, and some never.
    # (a count from 1 for the step, from 0 for the list: theirs)
    step, dense_only = f.whole("decoder_sparse_step", 1), f.take("mlp_only_layers", [])
    if not isinstance(dense_only, list) or not all(type(number) is int for number in dense_only):
        raise f.wrong("mlp_only_layers", dense_only, "a list of numbers of layers")
    dense = LayerSpec("standard", "swiglu", {}, {"d_ff": f.whole("intermediate_size")})
    return [sparse if i not in dense_only and (i + 1) % step == 0 else dense for i in range(n_layers)]


def read_qwen2_moe(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    if f.flag("qkv_bias", True):
        attn["bias"] = "qkv"
    f.word("hidden_act", SILU, "silu")
    width, shared = f.whole("moe_intermediate_size"), f.whole("shared_expert_intermediate_size")
    # One shared expert as wide as several of ours, behind one gate.
    if shared % width:
        raise f.wrong("shared_expert_intermediate_size", shared, f"a multiple of the experts' {width}")
    sparse = mixture(
        width,
        n_experts=f.whole("num_experts"),
        k=f.whole("num_experts_per_tok"),
        renormalise=f.flag("norm_topk_prob"),
        n_gated=shared // width,
    )
    spans, ffns = windows(f, sizes["n_layers"], alternate=True), sparse_layers(f, sparse, sizes["n_layers"])
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffns, spans), norm_eps=eps, **rope, **sizes)


def read_qwen3_moe(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    attn["qk_norm"] = True
    if f.flag("attention_bias"):
        attn["bias"] = True
    f.word("hidden_act", SILU, "silu")
    sparse = mixture(
        f.whole("moe_intermediate_size"),
        n_experts=f.whole("num_experts", f.whole("num_local_experts", 128)),
        k=f.whole("num_experts_per_tok", 8),
        renormalise=f.flag("norm_topk_prob"),
    )
    ffns = sparse_layers(f, sparse, sizes["n_layers"])
    # One window for all layers, if it is switched on.
    spans = [qwen_window(f)] * sizes["n_layers"]
    f.take("max_window_layers")
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffns, spans), norm_eps=eps, **rope, **sizes)


def _latent(f: Fields, layout: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return DeepSeek's attention: sizes, rotary arguments of the model, options of the mixer."""
    sizes = shape(f)
    # What follows from the others, and a number of key heads that latent attention has no use for.
    for name in ("head_dim", "qk_head_dim", "num_key_value_heads"):
        f.take(name)
    options: dict[str, Any] = {
        "kv_rank": f.whole("kv_lora_rank"),
        "rope_dim": f.whole("qk_rope_head_dim", least=2),
        "nope_dim": f.whole("qk_nope_head_dim"),
        "v_dim": f.whole("v_head_dim"),
        "rope_layout": layout,
    }
    if f.has("q_lora_rank"):
        options["q_rank"] = f.whole("q_lora_rank")
    f.left.discard("q_lora_rank")
    if f.flag("attention_bias"):
        options["bias"] = True
    rope = rotary(f, sizes["context"], latent=True)
    if rope.share != 1.0:
        raise f.wrong("partial_rotary_factor", rope.share, "1: the rotary key is rotated whole")
    # DeepSeek's yarn makes scores steeper, too.
    if rope.temper != 1.0:
        options["scale"] = (options["nope_dim"] + options["rope_dim"]) ** -0.5 * rope.temper
    return sizes, {"rope_theta": rope.theta, "rope_scaling": rope.scaling}, options


def _deepseek(f: Fields, layout: str, sparse: LayerSpec, dense_layers: int) -> LMConfig:
    sizes, rope, attn = _latent(f, layout)
    f.word("hidden_act", SILU, "silu")
    bias = {"bias": True} if f.flag("mlp_bias") else {}
    dense = LayerSpec("mla", "swiglu", attn, {"d_ff": f.whole("intermediate_size"), **bias})
    mixed = LayerSpec("mla", "moe", attn, sparse.ffn_options)
    # The first layers are dense (arXiv 2405.04434, section 2.2).
    count = min(dense_layers, sizes["n_layers"])
    specs = (dense,) * count + (mixed,) * (sizes["n_layers"] - count)
    blocks = specs[:1] if count in (0, sizes["n_layers"]) else specs
    return LMConfig(blocks=blocks, norm_eps=f.number("rms_norm_eps", 1e-6), **rope, **sizes)


def _routed(f: Fields, scoring: str, usual_scale: float, **options: Any) -> LayerSpec:
    return mixture(
        f.whole("moe_intermediate_size"),
        n_experts=f.whole("n_routed_experts"),
        k=f.whole("num_experts_per_tok"),
        n_shared=f.whole("n_shared_experts", 0, least=0),
        scale=f.number("routed_scaling_factor", usual_scale),
        scoring=scoring,
        **options,
    )


def read_deepseek_v2(f: Fields) -> LMConfig:
    f.only("scoring_func", "softmax")
    f.only("moe_layer_freq", 1)
    f.only("norm_topk_prob", False)
    method, groups, open_groups = f.take("topk_method", "greedy"), f.take("n_group"), f.take("topk_group")
    if method == "greedy":
        # The numbers of groups are kept and not looked at.
        groups = open_groups = 1
    elif method != "group_limited_greedy":
        raise f.wrong("topk_method", method, "greedy or group_limited_greedy")
    if not all(type(number) is int and number > 0 for number in (groups, open_groups)):
        raise f.wrong("n_group", groups, "a whole number, as topk_group")
    sparse = _routed(f, "softmax", 1.0, renormalise=False, n_groups=groups, k_groups=open_groups)
    return _deepseek(f, "interleaved", sparse, f.whole("first_k_dense_replace", 0, least=0))


def read_deepseek_v3(f: Fields) -> LMConfig:
    f.only("scoring_func", "sigmoid")
    f.only("moe_layer_freq", 1)
    f.only("topk_method", "noaux_tc")
    # A bias of the choice instead of a loss (arXiv 2408.15664).
    sparse = _routed(
        f,
        "sigmoid",
        2.5,
        renormalise=f.flag("norm_topk_prob", True),
        n_groups=f.whole("n_group", 8),
        k_groups=f.whole("topk_group", 4),
        balance="bias",
    )
    layout = "interleaved" if f.flag("rope_interleave", True) else "half"
    return _deepseek(f, layout, sparse, f.whole("first_k_dense_replace", 3, least=0))


_DOWN, _QUERIES = "layers.{i}.attn.q_down_proj", ("layers.{i}.attn.q_proj",)
_LATENT = [
    # The queries' matrix has two names: with a latent of its own before it, and without.
    Part("layers.{i}.self_attn.q_b_proj", _QUERIES, beside=_DOWN),
    Part("layers.{i}.self_attn.q_proj", _QUERIES, beside=f"not {_DOWN}"),
    one("layers.{i}.self_attn.q_a_proj", "layers.{i}.attn.q_down_proj"),
    one("layers.{i}.self_attn.q_a_layernorm", "layers.{i}.attn.q_norm"),
    one("layers.{i}.self_attn.kv_a_proj_with_mqa", "layers.{i}.attn.kv_down_proj"),
    one("layers.{i}.self_attn.kv_a_layernorm", "layers.{i}.attn.kv_norm"),
    Part("layers.{i}.self_attn.kv_b_proj", ("layers.{i}.attn.k_up", "layers.{i}.attn.v_up"), "heads"),
    one("layers.{i}.self_attn.o_proj", "layers.{i}.attn.output_proj"),
]
# Checkpoints and models in memory differ in where a mixture is, and in how it names an expert's matrices.
_MLP = ("layers.{i}.mlp",)
_MIXTRAL = Mixture(("layers.{i}.block_sparse_moe", *_MLP), "layers.{i}.ffn", "mixtral", ("w1", "w3", "w2"))


def _moe(model: str) -> tuple[Mixture, ...]:
    return (Mixture(_MLP, "layers.{i}.ffn", model),)


MIXTURES = (
    Family("mixtral", ("mixtral",), "MixtralForCausalLM", "model", read_mixtral, [*COMMON, *ATTENTION], (_MIXTRAL,)),
    Family(
        "qwen2_moe", ("qwen2_moe",), "Qwen2MoeForCausalLM", "model", read_qwen2_moe, [*COMMON, *ATTENTION, *SWIGLU],
        _moe("qwen2_moe"),
    ),
    Family(
        "qwen3_moe", ("qwen3_moe",), "Qwen3MoeForCausalLM", "model", read_qwen3_moe, [*COMMON, *ATTENTION, *SWIGLU],
        _moe("qwen3_moe"),
    ),
    Family(
        "deepseek_v2", ("deepseek_v2",), "DeepseekV2ForCausalLM", "model", read_deepseek_v2,
        [*COMMON, *_LATENT, *SWIGLU], _moe("deepseek_v2"),
    ),
    Family(
        "deepseek_v3", ("deepseek_v3",), "DeepseekV3ForCausalLM", "model", read_deepseek_v3,
        [*COMMON, *_LATENT, *SWIGLU], _moe("deepseek_v3"), more_layers=True,
    ),
)  # fmt: skip
