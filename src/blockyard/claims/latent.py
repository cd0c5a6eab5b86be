"""Claims of the price-transformer document about latent attention that counting decides."""

from __future__ import annotations

import math

from blockyard.claims.claim import Finding, claim, judge_all, judge_number, judge_ratio
from blockyard.latent.attention import LatentAttention
from blockyard.registry.register import get_attention
from blockyard.report import units

DOCUMENT = "price-transformer"
# The document's example: 8 heads of 64, rank 256, 180 days.
D, HEADS, RANK, DAYS = 512, 8, 256, 180


def _growth(tokens: int) -> float:
    """Exponent of the FLOPs of latent attention in the length, between `tokens` and twice as many."""
    mixer = LatentAttention(D, HEADS, kv_rank=RANK)
    return math.log2(mixer.cost(2 * tokens).flops / mixer.cost(tokens).flops)


@claim(
    "mla.complexity", document=DOCUMENT, line=118, claimed="O(nd)", cost="instant",
    says="Latent attention takes O(nd) where ordinary attention takes O(n²d).",
    how="Exponent of n in the layer's FLOPs by formula (checked against FlopCounterMode), n from 512 to 65,536.",
)  # fmt: skip
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


@claim(
    "mla.memory", document=DOCUMENT, line=488, claimed="14,242×", cost="instant",
    says="At 180 steps, 8 heads of 64 and rank 256 latent attention needs 14,242 times less memory.",
    how="The document's own expressions evaluated, and bytes of the caches of both layers at 180 tokens.",
)  # fmt: skip
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


@claim(
    "mla.arithmetic", document=DOCUMENT, line=487, claimed="663,552,000 and 46,592", cost="instant",
    says="n_heads · n² · head_dim is 663,552,000 and kv_lora_rank · n + n_heads · head_dim is 46,592.",
    how="Both expressions with the document's values: 8 heads of 64, n = 180, rank 256.",
)  # fmt: skip
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


@claim(
    "mla.compression", document=DOCUMENT, line=123, claimed="4×", cost="instant",
    says="Compressing keys and values from 1024 to 256 saves a factor of 4.",
    how="Cache bytes per token at d = 1024 and 16 heads, where keys and values are 1024 wide each.",
)  # fmt: skip
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


@claim(
    "mla.layer_parameters", document=DOCUMENT, line=138, claimed="fewer parameters", cost="instant",
    says="Keys and values from a latent of 256 take fewer parameters than straight from 512.",
    how="Parameters of the document's layer and of standard attention at d = 512.",
)  # fmt: skip
def layer_parameters() -> Finding:
    standard = get_attention("standard", d_model=D, n_heads=HEADS, qk_norm=False).cost(1).parameters
    latent = LatentAttention(D, HEADS, kv_rank=RANK, rope="full").cost(1).parameters
    return Finding(
        f"{latent:,} and {standard:,}",
        "holds" if latent < standard else "false",
        "r·(d + 2d) instead of 2d² for keys and values: it pays below r = 2d/3.",
        {"latent": latent, "standard": standard, "ratio": latent / standard},
    )


@claim(
    "price.ffn_width", document=DOCUMENT, line=505, claimed="4 d is the standard", cost="instant",
    says="A hidden width of 4 d is the standard for the gated FFN.",
    how="Parameters of SwiGLU with 4 d against two matrices with 4 d, d = 512.",
)  # fmt: skip
def ffn_width() -> Finding:
    from blockyard.registry.register import get_ffn

    gated = sum(p.numel() for p in get_ffn("swiglu", d_model=D, d_ff=4 * D).parameters())
    dense = sum(p.numel() for p in get_ffn("standard", d_model=D, d_ff=4 * D).parameters())
    return Finding(
        f"{gated / dense:.2f}× the usual size",
        judge_number(gated / dense, 1.0, tolerance=0.1),
        "A gated FFN has three matrices; 8/3 d makes it as large as the usual one.",
        {"ratio": gated / dense},
    )
