"""Every registered mixer and FFN passes the suite, in its default form and under its options."""

from __future__ import annotations

import pytest

from blockyard.conformance import ffn_checks, mixer_checks
from blockyard.registry.register import Traits, attention_class, entries

# Beside the defaults: options that take another path through the code.
MIXER_OPTIONS = {
    "standard": [
        {"n_kv_heads": 1},
        {"window": 3},
        {"window": 3, "sinks": 2},
        {"window": 3, "sinks": 2, "kernel": "flex"},
        {"window": 2, "sinks": 1, "n_kv_heads": 1, "kernel": "sdpa"},
        {"rope": "interleaved"},
        {"head_dim": 6, "n_kv_heads": 1, "v_dim": 5, "rope_frequencies": (0.3, 0.02, 0.3), "qk_norm": False},
        {"head_dim": 4, "rope_frequencies": (1.0, 0.1, 0.5, 0.2), "n_kv_heads": 2, "rope": "interleaved"},
        {"rope": "none", "qk_norm": False},
        {"bias": True},
        {"head_dim": 6},
        {"kernel": "sdpa"},
        {"kernel": "sdpa", "window": 3},
        {"kernel": "sdpa", "n_kv_heads": 1},
        {"bias": "qkv", "rope_dim": 4, "norm_eps": 1e-3},
        {"qk_norm": "whole", "n_kv_heads": 1, "rope_scaling": "llama3[factor=8,original=64]"},
        {"rope_scaling": "yarn[factor=4,original=16,magnitude=1.1]", "head_dim": 6},
        {"rope_scaling": "linear[factor=3]", "rope": "interleaved", "window": 3},
    ],
    "mla": [
        {"kv_rank": 24, "decode": "naive"},
        {"kv_rank": 24, "decode": "absorbed", "q_rank": 12, "bias": True},
        {"kv_rank": 24, "cache": "mixed", "rope_layout": "interleaved", "bias": "qkv"},
        {"cache": "mixed", "decode": "absorbed", "kernel": "sdpa"},
        {"window": 3},
        {"window": 3, "sinks": 2, "cache": "mixed"},
        {"cache": "expanded", "kernel": "matmul", "bias": "all"},
        {"rope": "full"},
        {"rope": "full", "cache": "latent", "kv_rank": 24, "rope_layout": "interleaved"},
        {"rope": "full", "cache": "expanded", "v_dim": 5, "kernel": "sdpa"},
        {"rope_scaling": "yarn[factor=4,original=64,magnitude=1.1]", "scale": 0.3, "rope_dim": 6},
        {"rope_dim": 4, "rope_frequencies": (0.3, 0.02), "latent_norm": False},
        {"rope_dim": 6, "nope_dim": 5, "v_dim": 20, "latent_norm": False},
    ],
    "tva": [
        {"rank": 3, "v_rank": 5, "kernel": "sdpa"},
        {"rank": 2, "factored": True, "v_rank": 3},
        {"rank": 2, "v_rank": 3, "n_kv_heads": 1},
        {"rank": 2, "factored": True, "n_kv_heads": 1},
        {"qk_norm": True, "rope": "interleaved", "rope_scaling": "linear[factor=2]", "norm_eps": 1e-3},
    ],
    "complex": [
        {"score": "magnitude", "gate": "learned"},
        {"score": "phase", "n_kv_heads": 1},
        {"score": "split", "gate": "magnitude"},
        {"rope": "none", "qk_norm": False, "bias": True},
        {"linear": "block", "kernel": "matmul"},
        {"linear": "gauss", "rope_scaling": "linear[factor=2]"},
    ],
    "spectral": [{"bucket_spacing": "log", "interpolation": "cubic", "use_toeplitz": True, "num_groups": 2}],
}
# Options of one form only, with what that form claims.
ENCODER = Traits(causal=False, padding=True)
DECODER = Traits(causal=True, bidirectional=False, padding=True, cache="recurrent")
SPECTRAL_FORMS = [
    (DECODER, {"window": 8, "chunk": 4}),
    (DECODER, {"window": 7, "chunk": 3, "num_buckets": 6, "use_toeplitz": True}),
    (DECODER, {"window": 5, "chunk": 1}),
    (DECODER, {"window": 6, "gate": "token", "interpolation": "cubic", "bucket_spacing": "log"}),
    (ENCODER, {"n_fft": 67, "pooling_type": "attention", "memory_size": 3}),
    (ENCODER, {"pooling_type": "mean", "wavelet_on_rate": 0.5, "memory_size": 2, "memory_frozen": True}),
]
FFN_OPTIONS = {
    "standard": [{"activation": "relu"}, {"activation": "silu", "bias": True}, {"activation": "gelu_tanh"}],
    "swiglu": [{"d_ff": 24, "bias": True}],
    "complex_swiglu": [{"d_ff": 24, "bias": True, "gate_bias": -1.0}, {"linear": "gauss"}, {"linear": "block"}],
    "moe": [
        {"expert": "standard", "expert_options": {"bias": True, "d_ff": 24}, "n_experts": 4, "impl": "segment"},
        {"scoring": "sigmoid", "balance": "bias", "n_groups": 4, "k_groups": 2, "n_shared": 1, "scale": 2.5},
        {"expert": "vft", "vein_rank": 8, "k": 3, "n_experts": 4, "n_gated": 1},
    ],
    "vft": [{"tied": True, "gated": True, "stabilizer": "lowrank"}, {"stabilizer": "diag", "rank": 2}],
}


def builtin(kind):
    # Other test modules may register toys of their own in this process.
    return [entry for entry in entries(kind) if entry.cls.__module__.startswith("blockyard.")]


def cases(kind, checks, options):
    return [
        case
        for entry in builtin(kind)
        for chosen in [{}, *options.get(entry.name, [])]
        for case in checks(entry.cls, chosen)
    ]


@pytest.mark.parametrize("case", cases("attn", mixer_checks, MIXER_OPTIONS), ids=str)
def test_mixer(case):
    case()


@pytest.mark.parametrize(
    "case",
    [c for traits, chosen in SPECTRAL_FORMS for c in mixer_checks(attention_class("spectral"), chosen, traits=traits)],
    ids=str,
)
def test_spectral_form(case):
    case()


@pytest.mark.parametrize("case", cases("ffn", ffn_checks, FFN_OPTIONS), ids=str)
def test_ffn(case):
    case()


BLOCK_OPTIONS = [{}, {"preset": "seed"}, {"norm_position": "post"}]
BLOCK_TRAITS = Traits(causal=True, bidirectional=True, cache="kv", padding=True, attn_mask=True, positions=True)
# What holds for a mixer alone: a block's residual path goes around the mask.
MIXER_ONLY = {"a query that may see nothing gives zero and no nan"}


@pytest.mark.parametrize(
    "case",
    [
        case
        for entry in builtin("block")
        for options in BLOCK_OPTIONS
        for case in mixer_checks(entry.cls, options, traits=BLOCK_TRAITS)
        if case.name not in MIXER_ONLY
    ],
    ids=str,
)
def test_paired_block(case):
    case()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [c for e in builtin("attn") for c in mixer_checks(e.cls, slow=True) if c.check.slow],
    ids=str,
)
def test_mixer_slowly(case):
    case()
