"""Every registered mixer and FFN passes the suite, in its default form and under its options."""

from __future__ import annotations

import pytest

from blockyard.conformance import ffn_checks, mixer_checks
from blockyard.registry import entries

# Beside the defaults: options that take another path through the code.
MIXER_OPTIONS = {
    "standard": [
        {"n_kv_heads": 1},
        {"window": 3},
        {"rope": "interleaved"},
        {"rope": "none", "qk_norm": False},
        {"bias": True},
        {"head_dim": 6},
        {"kernel": "sdpa"},
        {"kernel": "sdpa", "window": 3},
        {"kernel": "sdpa", "n_kv_heads": 1},
    ],
}
FFN_OPTIONS = {
    "standard": [{"activation": "relu"}, {"activation": "silu", "bias": True}],
    "swiglu": [{"d_ff": 24, "bias": True}],
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


@pytest.mark.parametrize("case", cases("ffn", ffn_checks, FFN_OPTIONS), ids=str)
def test_ffn(case):
    case()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [c for e in builtin("attn") for c in mixer_checks(e.cls, slow=True) if c.check.slow],
    ids=str,
)
def test_mixer_slowly(case):
    case()
