"""Claims of the price-transformer document about latent attention that counting decides."""

from __future__ import annotations

import math

from blockyard.claims.claim import Finding, claim, judge_all, judge_number, judge_ratio
from blockyard.claims.memory import parameter_count
from blockyard.latent.attention import LatentAttention
from blockyard.registry.register import get_attention
from blockyard.report import units

# The document's example: 8 heads of 64, rank 256, 180 days.
D, HEADS, RANK, DAYS = 512, 8, 256, 180


def _growth(tokens: int) -> float:
    """Return the exponent of the FLOPs of latent attention in the length, between `tokens` and twice as many."""
    mixer = LatentAttention(D, HEADS, kv_rank=RANK)
    return math.log2(mixer.cost(2 * tokens).flops / mixer.cost(tokens).flops)


@claim("mla.complexity")
def complexity() -> Finding:
    short, long = _growth(512), _growth(32_768)
    standard = get_attention("standard", d_model=D, n_heads=HEADS).cost(32_768).flops
    ratio = standard / LatentAttention(D, HEADS, kv_rank=RANK).cost(32_768).flops
    return Finding(
        f"n^{short:.2f} at 512, n^{long:.2f} at 32,768",
        "holds" if long < 1.1 else "partly" if long < 1.5 else "false",
        "Every query still meets every latent: n² products remain, as wide as before or wider. What shrinks is what is "
        f"kept per token. At n = 32,768 it takes {1 / ratio:.2f} times the FLOPs of standard attention.",
        {"exponent_512": short, "exponent_32768": long, "standard_over_latent": ratio},
    )


@claim("mla.memory")
def memory() -> Finding:
    own = (HEADS * DAYS * DAYS * (D // HEADS)) / (RANK * DAYS + HEADS * (D // HEADS))
    standard = get_attention("standard", d_model=D, n_heads=HEADS).cost(DAYS).cache_bytes_per_token
    latent = LatentAttention(D, HEADS, kv_rank=RANK).cost(DAYS).cache_bytes_per_token
    ratio = standard / latent
    return Finding(
        f"{ratio:.1f}×",
        judge_ratio(ratio, 14_242),
        f"The printed 663,552,000 is not what its expression gives: evaluated, the ratio is {own:.0f}, and it divides "
        f"multiplications by numbers stored. The caches hold {standard:,} and {latent:,} bytes per token and layer; "
        "a forecast from a fixed window uses none.",
        {"caches": ratio, "own_expression": own, "standard_bytes": standard, "latent_bytes": latent},
    )


@claim("mla.arithmetic")
def arithmetic() -> Finding:
    head = D // HEADS
    traditional, latent = HEADS * DAYS * DAYS * head, RANK * DAYS + HEADS * head
    return Finding(
        f"{traditional:,} and {latent:,}",
        judge_all(traditional == 663_552_000, latent == 46_592),
        f"The first is {663_552_000 / traditional:.0f} times too large as printed. Neither is a memory: attention "
        f"stores n² scores per head, {HEADS * DAYS * DAYS:,} numbers, and with a fused kernel not even these.",
        {"traditional": traditional, "latent": latent},
    )


@claim("mla.compression")
def compression() -> Finding:
    standard = get_attention("standard", d_model=1024, n_heads=16).cost(1).cache_bytes_per_token
    full = LatentAttention(1024, 16, kv_rank=256, rope="full", cache="latent").cost(1).cache_bytes_per_token
    apart = LatentAttention(1024, 16, kv_rank=256).cost(1).cache_bytes_per_token
    return Finding(
        f"{standard / full:.0f}×",
        judge_ratio(standard / full, 4),
        "Better than claimed, since one latent replaces keys and values. As the document has it (whole keys rotate), "
        "keys must be made anew from all latents at each step, though; DeepSeek's separate rotary key avoids that and "
        f"leaves {units.ratio(standard / apart)}.",
        {"latent": standard / full, "decoupled": standard / apart},
    )


@claim("mla.layer_parameters")
def layer_parameters() -> Finding:
    standard = get_attention("standard", d_model=D, n_heads=HEADS, qk_norm=False).cost(1).parameters
    latent = LatentAttention(D, HEADS, kv_rank=RANK, rope="full").cost(1).parameters
    return Finding(
        f"{latent:,} and {standard:,}",
        "holds" if latent < standard else "false",
        "r·(d + 2d) instead of 2d² for keys and values: it pays below r = 2d/3.",
        {"latent": latent, "standard": standard, "ratio": latent / standard},
    )


@claim("price.ffn_width")
def ffn_width() -> Finding:
    from blockyard.registry.register import get_ffn

    gated = parameter_count(get_ffn("swiglu", d_model=D, d_ff=4 * D))
    dense = parameter_count(get_ffn("standard", d_model=D, d_ff=4 * D))
    return Finding(
        f"{gated / dense:.2f}× the usual size",
        judge_number(gated / dense, 1.0, tolerance=0.1),
        "A gated FFN has three matrices; 8/3 d makes it as large as the usual one.",
        {"ratio": gated / dense},
    )
