"""Decoders of standard attention and dense FFNs: Llama, Mistral, Qwen 2 and 3, Phi-3, OLMo 2, GPT-2, GPT-NeoX.

A family is its configuration read into `LMConfig` and its names. None has a class of its own here.
"""

from __future__ import annotations

from typing import Any

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig
from blockyard.multihead.fields import Fields, rotary
from blockyard.pretrained.parts import Family, Part, one
from blockyard.registry.pattern import MOST_REPEATS, LayerSpec

SILU = {"silu": "silu", "swish": "silu"}
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu", **SILU,
}  # fmt: skip


# Qwen's, where a configuration switches its window on and does not say how long it is.
QWEN_WINDOW = 4096


def shape(f: Fields) -> dict[str, Any]:
    """Return what most configurations say of a decoder's shape, as arguments of `LMConfig`."""
    return {
        "vocab_size": f.whole("vocab_size"),
        "context": f.whole("max_position_embeddings"),
        "d_model": f.whole("hidden_size"),
        "n_layers": f.whole("num_hidden_layers", most=MOST_REPEATS),
        "n_heads": f.whole("num_attention_heads"),
        "tied": f.flag("tie_word_embeddings"),
        "positions": "none",
        "zero_init_outputs": False,
    }


def grouped(f: Fields, sizes: dict[str, Any], head_dim: int | None = None) -> dict[str, Any]:
    """Return key heads and the width of heads, as options of standard attention."""
    heads, width = sizes["n_heads"], sizes["d_model"]
    # Ours normalises queries and keys unless told otherwise; most of theirs do not.
    options: dict[str, Any] = {"qk_norm": False}
    key_heads = f.whole("num_key_value_heads", heads)
    if key_heads != heads:
        options["n_kv_heads"] = key_heads
    each = f.whole("head_dim", head_dim or max(width // heads, 1))
    if each * heads != width:
        options["head_dim"] = each
    return options


def turned(
    options: dict[str, Any], sizes: dict[str, Any], f: Fields, *, partial: bool = False, **usual: Any
) -> dict[str, Any]:
    """Read rotary positions: arguments of `LMConfig`, and the width that is rotated among the mixer's options.

    Raises:
        InputError: for a part of the heads where the family's models do not look at it (`partial`).
    """
    rope = rotary(f, sizes["context"], **usual)
    if rope.share != 1.0 and not partial:
        raise f.wrong("partial_rotary_factor", rope.share, "1: models of this family rotate whole heads")
    head_dim = options.get("head_dim", sizes["d_model"] // sizes["n_heads"])
    # Rounded down, as theirs is.
    width = int(head_dim * rope.share)
    if width != head_dim:
        options["rope_dim"] = width
    return {"rope_theta": rope.theta, "rope_scaling": rope.scaling}


def qwen_window(f: Fields) -> int | None:
    """Return the window that Qwen's configurations name, where it is switched on.

    Raises:
        InputError: for one that is no length.
    """
    uses, window = f.flag("use_sliding_window"), f.take("sliding_window")
    if "sliding_window" not in f.config:
        # Not mentioned is another thing than null, which is none.
        window = QWEN_WINDOW
    if not uses or window is None:
        return None
    return f.whole("sliding_window", window)


def windows(f: Fields, n_layers: int, *, alternate: bool = False) -> list[int | None]:
    """Return the window of each layer, as Qwen's configurations say it.

    Args:
        f: the configuration.
        n_layers: number of layers.
        alternate: whether, where no layer says what it is, every other one below max_window_layers has the window
            (Qwen2-MoE), and not all from there on.
    """
    window, first, kinds = qwen_window(f), f.whole("max_window_layers", 28, least=0), f.take("layer_types")
    # Since version 5 every layer says what it is; before, a number of layers did for all.
    if kinds is None:
        slides = [i < first and not i % 2 if alternate else i >= first for i in range(n_layers)]
        kinds = ["sliding_attention" if window is not None and each else "full_attention" for each in slides]
    if (
        not isinstance(kinds, list)
        or len(kinds) != n_layers
        or not set(kinds) <= {"sliding_attention", "full_attention"}
    ):
        raise f.wrong("layer_types", kinds, f"{n_layers} times full_attention or sliding_attention")
    if "sliding_attention" in kinds and window is None:
        raise f.wrong("layer_types", kinds, "full_attention alone: sliding_window is none, or not switched on")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def everywhere(f: Fields, n_layers: int, usual: int | None = None) -> list[int | None]:
    """Return one window for all layers, as Mistral's configurations say it; `usual` where they do not mention it."""
    window = f.take("sliding_window")
    if window is not None or (usual is not None and "sliding_window" not in f.config):
        window = f.whole("sliding_window", usual)
    kinds = f.take("layer_types")
    if kinds is not None and set(kinds) != {"full_attention" if window is None else "sliding_attention"}:
        raise f.wrong("layer_types", kinds, "of one kind in all layers")
    return [window] * n_layers


def layers(attn: dict[str, Any], ffn: list[LayerSpec] | LayerSpec, spans: list[int | None]) -> tuple[LayerSpec, ...]:
    """Return the pattern: attention with each layer's window, and an FFN; a single layer where all are alike."""
    ffns = [ffn] * len(spans) if isinstance(ffn, LayerSpec) else ffn
    # Windows and mixtures alternate in some families: then every layer is written out.
    specs = [
        LayerSpec("standard", each.ffn, {**attn, **({} if window is None else {"window": window})}, each.ffn_options)
        for window, each in zip(spans, ffns)
    ]
    return (specs[0],) if all(spec == specs[0] for spec in specs) else tuple(specs)


def swiglu(f: Fields, *, bias: bool = False) -> LayerSpec:
    """Return the gated FFN."""
    f.word("hidden_act", SILU, "silu")
    options: dict[str, Any] = {"d_ff": f.whole("intermediate_size")}
    return LayerSpec("standard", "swiglu", {}, options | ({"bias": True} if bias else {}))


def read_llama(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    # In all four projections, the output's among them.
    if f.flag("attention_bias"):
        attn["bias"] = True
    ffn = swiglu(f, bias=f.flag("mlp_bias"))
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffn, [None] * sizes["n_layers"]), norm_eps=eps, **rope, **sizes)


def read_mistral(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    spans, ffn = everywhere(f, sizes["n_layers"], 4096), swiglu(f)
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffn, spans), norm_eps=eps, **rope, **sizes)


def read_qwen2(f: Fields) -> LMConfig:
    sizes = shape(f)
    # Not an option of theirs: queries, keys and values have biases, the output none.
    attn = {**grouped(f, sizes), "bias": "qkv"}
    spans, ffn = windows(f, sizes["n_layers"]), swiglu(f)
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffn, spans), norm_eps=eps, **rope, **sizes)


def read_qwen3(f: Fields) -> LMConfig:
    sizes = shape(f)
    # Heads of 128 whatever the stream's width is.
    attn = grouped(f, sizes, 128)
    attn["qk_norm"] = True
    if f.flag("attention_bias"):
        attn["bias"] = True
    spans, ffn = windows(f, sizes["n_layers"]), swiglu(f)
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-6)
    return LMConfig(blocks=layers(attn, ffn, spans), norm_eps=eps, **rope, **sizes)


def read_phi3(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    spans, ffn = everywhere(f, sizes["n_layers"]), swiglu(f)
    rope, eps = turned(attn, sizes, f, partial=True), f.number("rms_norm_eps", 1e-5)
    return LMConfig(blocks=layers(attn, ffn, spans), norm_eps=eps, **rope, **sizes)


def read_olmo2(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn = grouped(f, sizes)
    # One mean square for all heads of a token.
    attn["qk_norm"] = "whole"
    if f.flag("attention_bias"):
        attn["bias"] = True
    ffn = swiglu(f)
    rope, eps = turned(attn, sizes, f), f.number("rms_norm_eps", 1e-5)
    blocks = layers(attn, ffn, [None] * sizes["n_layers"])
    return LMConfig(blocks=blocks, norm_eps=eps, norm_position="branch", **rope, **sizes)


def read_neox(f: Fields) -> LMConfig:
    sizes = shape(f)
    attn: dict[str, Any] = {"qk_norm": False}
    if sizes["d_model"] % sizes["n_heads"]:
        raise InputError(f"{f.where}: num_attention_heads={sizes['n_heads']} does not divide {sizes['d_model']}")
    if f.flag("attention_bias", True):
        attn["bias"] = True
    options = {"d_ff": f.whole("intermediate_size"), "bias": True}
    activation = f.word("hidden_act", ACTIVATIONS, "gelu")
    ffn = LayerSpec("standard", "standard", {}, {**options, "activation": activation})
    # A quarter of each head, where the configuration does not say (rotary_pct).
    rope, eps = turned(attn, sizes, f, partial=True, share=0.25), f.number("layer_norm_eps", 1e-5)
    blocks = layers(attn, ffn, [None] * sizes["n_layers"])
    parallel = f.flag("use_parallel_residual", True)
    return LMConfig(blocks=blocks, norm="layer", norm_eps=eps, parallel=parallel, **rope, **sizes)


def read_gpt2(f: Fields) -> LMConfig:
    f.only("scale_attn_weights", True)
    f.only("scale_attn_by_inverse_layer_idx", False)
    f.only("add_cross_attention", False)
    # Their old name for n_positions, how logits are pooled for classes, and in what type scores are computed.
    for name in ("n_ctx", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation"):
        f.take(name)
    for name in ("summary_proj_to_labels", "summary_first_dropout"):
        f.take(name)
    width = f.whole("n_embd")
    options = {"d_ff": f.whole("n_inner", 4 * width), "bias": True}
    activation = f.word("activation_function", ACTIVATIONS, "gelu_new")
    # Positions are the model's: learned, and added to the embedding.
    attn = {"qk_norm": False, "rope": "none", "bias": True}
    spec = LayerSpec("standard", "standard", attn, {**options, "activation": activation})
    return LMConfig(
        blocks=(spec,),
        vocab_size=f.whole("vocab_size"),
        context=f.whole("n_positions"),
        d_model=width,
        n_layers=f.whole("n_layer", most=MOST_REPEATS),
        n_heads=f.whole("n_head"),
        tied=f.flag("tie_word_embeddings", True),
        positions="learned",
        norm="layer",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        zero_init_outputs=False,
    )


_STREAM = [one("embed_tokens", "token_embeddings"), one("norm", "ln_final")]
_NORMS = [
    one("layers.{i}.input_layernorm", "layers.{i}.ln1"),
    one("layers.{i}.post_attention_layernorm", "layers.{i}.ln2"),
]
ATTENTION = [
    *(one(f"layers.{{i}}.self_attn.{name}", f"layers.{{i}}.attn.{name}") for name in ("q_proj", "k_proj", "v_proj")),
    one("layers.{i}.self_attn.o_proj", "layers.{i}.attn.output_proj"),
    *(one(f"layers.{{i}}.self_attn.{name}", f"layers.{{i}}.attn.{name}") for name in ("q_norm", "k_norm")),
]
SWIGLU = [
    one("layers.{i}.mlp.gate_proj", "layers.{i}.ffn.w1"),
    one("layers.{i}.mlp.up_proj", "layers.{i}.ffn.w3"),
    one("layers.{i}.mlp.down_proj", "layers.{i}.ffn.w2"),
]
# What most families share; norms behind the sublayers (OLMo 2) have names of their own.
COMMON = [*_STREAM, *_NORMS]
LLAMA = [*COMMON, *ATTENTION, *SWIGLU]
_QKV = tuple(f"layers.{{i}}.attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
# Fused: queries, keys and values in one matrix, gate and value in another.
_PHI3 = [
    *COMMON,
    Part("layers.{i}.self_attn.qkv_proj", _QKV),
    one("layers.{i}.self_attn.o_proj", "layers.{i}.attn.output_proj"),
    Part("layers.{i}.mlp.gate_up_proj", ("layers.{i}.ffn.w1", "layers.{i}.ffn.w3")),
    one("layers.{i}.mlp.down_proj", "layers.{i}.ffn.w2"),
]
_OLMO2 = [
    *_STREAM, *ATTENTION, *SWIGLU,
    one("layers.{i}.post_attention_layernorm", "layers.{i}.ln1"),
    one("layers.{i}.post_feedforward_layernorm", "layers.{i}.ln2"),
]  # fmt: skip
_NEOX = [
    one("embed_in", "token_embeddings"), one("final_layer_norm", "ln_final"), *_NORMS,
    # Head by head: [q, k, v] of the first, [q, k, v] of the second, …
    Part("layers.{i}.attention.query_key_value", _QKV, "heads"),
    one("layers.{i}.attention.dense", "layers.{i}.attn.output_proj"),
    one("layers.{i}.mlp.dense_h_to_4h", "layers.{i}.ffn.w1"),
    one("layers.{i}.mlp.dense_4h_to_h", "layers.{i}.ffn.w2"),
]  # fmt: skip
_GPT2 = [
    one("wte", "token_embeddings"), one("wpe", "position_embeddings"), one("ln_f", "ln_final"),
    one("h.{i}.ln_1", "layers.{i}.ln1"), one("h.{i}.ln_2", "layers.{i}.ln2"),
    # Its Conv1D keeps matrices as [in, out].
    Part("h.{i}.attn.c_attn", _QKV, turned=True),
    one("h.{i}.attn.c_proj", "layers.{i}.attn.output_proj", turned=True),
    one("h.{i}.mlp.c_fc", "layers.{i}.ffn.w1", turned=True),
    one("h.{i}.mlp.c_proj", "layers.{i}.ffn.w2", turned=True),
]  # fmt: skip
# Buffers that old checkpoints hold: masks, and frequencies.
_NEOX_DERIVED = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")

DECODERS = (
    Family("llama", ("llama",), "LlamaForCausalLM", "model", read_llama, LLAMA),
    Family("mistral", ("mistral",), "MistralForCausalLM", "model", read_mistral, LLAMA),
    Family("qwen2", ("qwen2",), "Qwen2ForCausalLM", "model", read_qwen2, LLAMA),
    Family("qwen3", ("qwen3",), "Qwen3ForCausalLM", "model", read_qwen3, LLAMA),
    Family("phi3", ("phi3",), "Phi3ForCausalLM", "model", read_phi3, _PHI3),
    Family("olmo2", ("olmo2",), "Olmo2ForCausalLM", "model", read_olmo2, _OLMO2),
    Family(
        "gpt_neox", ("gpt_neox",), "GPTNeoXForCausalLM", "gpt_neox", read_neox, _NEOX, derived=_NEOX_DERIVED,
        heads=("embed_out", "lm_head"),
    ),
    Family(
        "gpt2", ("gpt2",), "GPT2LMHeadModel", "transformer", read_gpt2, _GPT2,
        derived=(".attn.bias", ".attn.masked_bias"),
    ),
)  # fmt: skip
