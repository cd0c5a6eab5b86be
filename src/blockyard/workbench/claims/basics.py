"""Claims of the language-model basics that counting and a few lines of arithmetic decide."""

from __future__ import annotations

import torch

from blockyard.layers.norms import LayerNorm, RMSNorm
from blockyard.layers.rotary import RotaryPositionalEmbedding, rotate
from blockyard.registry import get_ffn
from blockyard.workbench.claims.claim import Finding, claim, judge_all, judge_number

DOCUMENT = "basics"


def _spreads(conjugated: bool) -> tuple[float, float]:
    """How much scores of pairs with one distance m − n differ, and scores of pairs with one sum m + n."""
    torch.manual_seed(0)
    half = 16
    q, k = (torch.randn(half, dtype=torch.complex128) for _ in range(2))
    angles = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def score(m: int, n: int) -> float:
        turned_q = q * torch.polar(torch.ones_like(angles), m * angles)
        turned_k = k * torch.polar(torch.ones_like(angles), (-n if conjugated else n) * angles)
        return float((turned_q.real * turned_k.real + turned_q.imag * turned_k.imag).sum())

    by_distance = torch.tensor([score(n + 5, n) for n in range(20)])
    by_sum = torch.tensor([score(m, 20 - m) for m in range(20)])
    return float(by_distance.max() - by_distance.min()), float(by_sum.max() - by_sum.min())


@claim(
    "basics.conjugated_key", document=DOCUMENT, line=322, claimed="conjugate the key", cost="instant",
    says="The key must be turned by the conjugate of the rotation, or all information about position is lost.",
    how="Real dot products of random queries and keys, turned both ways, over pairs of equal distance (float64).",
)  # fmt: skip
def conjugated_key() -> Finding:
    theirs, sums = _spreads(conjugated=True)
    ours, far = _spreads(conjugated=False)
    return Finding(
        f"spread over equal distances {theirs:.1f} conjugated, {ours:.1g} not",
        judge_all(theirs < 1e-9, ours > 1e-9),
        "The real dot product conjugates already. Conjugating the rotation as well makes the score depend on m + n "
        f"(its spread over equal sums is {sums:.1g}); without it, it depends on m − n alone, and position is not lost "
        f"({far:.1f} over different distances).",
        {"conjugated": theirs, "plain": ours, "conjugated_over_sums": sums, "plain_over_distances": far},
    )


@claim(
    "rope.length", document="price-transformer", line=278, claimed="length kept", cost="instant",
    says="Rotation keeps the length of queries and keys.",
    how="Largest relative change of the norms of random vectors, positions up to 4096 (float64).",
)  # fmt: skip
def rotation_keeps_length() -> Finding:
    torch.manual_seed(0)
    rope = RotaryPositionalEmbedding(10_000.0, 64)
    x = torch.randn(4096, 64, dtype=torch.float64)
    cos, sin = rope.tables(4096, x)
    turned = rotate(x, cos, sin, rope.layout)
    change = float(((turned.norm(dim=-1) - x.norm(dim=-1)).abs() / x.norm(dim=-1)).max())
    return Finding(f"changes by {change:.1g}", "holds" if change < 1e-6 else "false",
                   "A rotation is orthogonal.", {"change": change})  # fmt: skip


@claim(
    "rope.relative", document="price-transformer", line=233, claimed="depends on m − n", cost="instant",
    says="The product of a rotated query and a rotated key depends on their distance only.",
    how="Spread of the product over 20 pairs at one distance (float64).",
)  # fmt: skip
def rotation_is_relative() -> Finding:
    spread, _ = _spreads(conjugated=False)
    return Finding(f"spread {spread:.1g}", "holds" if spread < 1e-9 else "false",
                   "True of the real part, which is what attention uses.", {"spread": spread})  # fmt: skip


@claim(
    "basics.swiglu_width", document=DOCUMENT, line=180, claimed="8/3 d", cost="instant",
    says="With d_ff = 8/3 d the gated FFN has as many parameters as the usual one with 4 d.",
    how="Parameters of both at d = 768, ours rounded up to a multiple of 64.",
)  # fmt: skip
def swiglu_width() -> Finding:
    gated, dense = (sum(p.numel() for p in get_ffn(name, d_model=768).parameters()) for name in ("swiglu", "standard"))
    return Finding(f"{gated:,} and {dense:,}", judge_number(gated, dense, tolerance=0.02),
                   "Three matrices of 8/3 d and two of 4 d are both 8 d².",
                   {"swiglu": gated, "standard": dense})  # fmt: skip


@claim(
    "basics.rmsnorm_parameters", document=DOCUMENT, line=130, claimed="a gain only", cost="instant",
    says="RMSNorm has slightly fewer parameters than LayerNorm: it keeps the gain and drops the shift.",
    how="Parameters of both at width 768.",
)  # fmt: skip
def rmsnorm_parameters() -> Finding:
    rms, layer = (sum(p.numel() for p in norm(768).parameters()) for norm in (RMSNorm, LayerNorm))
    return Finding(f"{rms} and {layer}", "holds" if rms < layer else "false",
                   "Half as many, of a part that is about a thousandth of a block.",
                   {"rms": rms, "layer": layer})  # fmt: skip
