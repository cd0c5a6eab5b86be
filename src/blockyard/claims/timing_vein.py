"""Claims of the vein-flow document that a stopwatch decides."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim, judge_all, judge_ratio
from blockyard.claims.timing import forward, seconds
from blockyard.claims.vein import HEADS, RANK, D, seed_block, standard_block
from blockyard.compat import vein_flow


@claim(
    "vein.long_sequences", document="vein-flow", line=679, claimed="T > 512, not T < 32", cost="seconds",
    says="Vein blocks pay for sequences above 512 and hardly below 32.",
    how="Forward pass of the document's block, and of the folded default, against a standard block, d = 768, 12 heads, "
        "rank 4, T = 16, 512 and 2048.",
)  # fmt: skip
def long_sequences() -> Finding:
    torch.manual_seed(0)
    found: dict[str, float] = {}
    for tokens in (16, 512, 2048):
        x = torch.randn(1, tokens, D)
        taken = seconds(
            {
                "standard": forward(standard_block(), x),
                "document": forward(seed_block(), x),
                "folded": forward(vein_flow.VFTBlock(D, HEADS, RANK, s_normals=0), x),
            }
        )
        found |= {f"{name}_T{tokens}": taken["standard"] / taken[name] for name in ("document", "folded")}
    return Finding(
        ", ".join(f"{found[f'document_T{t}']:.1f}× at {t}" for t in (16, 512, 2048)),
        judge_all(found["document_T2048"] > 1.2 and found["document_T512"] > 1.2, found["document_T16"] < 1.2),
        "Its advantage is smaller matrices, which short sequences have as well. Folded: "
        + ", ".join(f"{found[f'folded_T{t}']:.1f}× at {t}" for t in (16, 512, 2048)) + ".",
        found,
    )  # fmt: skip


@claim(
    "vein.own_benchmark", document="vein-flow", line=511, claimed="about 100×", cost="seconds",
    says="A block is about 100 times faster at T = 128, d = 768, r = 4, by the timing script beside the table.",
    how="That script's terms: forward pass of 8 × 128 tokens, the document's block against standard attention and FFN.",
)  # fmt: skip
def own_benchmark() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(8, 128, D)
    folded = vein_flow.VFTBlock(D, HEADS, RANK, s_normals=0, use_stabilizer=False)
    taken = seconds(
        {
            "standard": forward(standard_block(), x),
            "document": forward(seed_block(), x),
            "folded": forward(folded, x),
        }
    )
    ratio = {name: taken["standard"] / taken[name] for name in ("document", "folded")}
    return Finding(
        f"{ratio['document']:.1f}×",
        judge_ratio(ratio["document"], 100),
        f"Its d × d matrices remain. Folded, without stabiliser and corrections, it is {ratio['folded']:.0f}×.",
        ratio,
    )


@claim(
    "vein.normals_time", document="vein-flow", line=594, claimed="s = 0 fastest, 2–3 slower", cost="seconds",
    says="Corrections cost time: s = 0 is fastest, 2 or 3 slower than 1, a small tau slower than a large one.",
    how="Forward pass of the document's block over 8 × 128 tokens with s = 0, 1 and 3, all tokens corrected, and with "
        "s = 1 and none.",
)  # fmt: skip
def normals_time() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(8, 128, D)

    def block(s: int, tau: float) -> vein_flow.VFTBlock:
        return vein_flow.VFTBlock(D, HEADS, RANK, s_normals=s, tau=tau, preset="seed")

    settings = {"s0": (0, 0.0), "s1": (1, 0.0), "s3": (3, 0.0), "none_over": (1, 1e9)}
    taken = seconds({name: forward(block(*setting), x) for name, setting in settings.items()})
    extra = {name: taken[name] / taken["s0"] - 1 for name in ("s1", "s3", "none_over")}
    return Finding(
        f"{extra['s1']:+.0%} with s = 1, {extra['s3']:+.0%} with 3; {extra['none_over']:+.0%} when none is over tau",
        judge_all(extra["s1"] > 0.01, extra["s3"] > extra["s1"] + 0.01, extra["s1"] > extra["none_over"] + 0.01),
        "The error and the threshold are worked out in any case; three directions are hardly more than one, since all "
        "are one product.",
        extra,
    )


@claim(
    "vein.rank_time", document="vein-flow", line=685, claimed="r = 2 for speed", cost="seconds",
    says="Rank 2 is for fast inference, 8 and 16 to 32 for accuracy.",
    how="Forward pass over 8 × 128 tokens at rank 2 and 32 against rank 4, the document's block and a folded one.",
)  # fmt: skip
def rank_time() -> Finding:
    torch.manual_seed(0)
    x = torch.randn(8, 128, D)
    work = {}
    for rank in (2, 4, 32):
        work[f"document_{rank}"] = forward(vein_flow.VFTBlock(D, HEADS, rank, preset="seed"), x)
        folded = vein_flow.VFTBlock(D, HEADS, rank, s_normals=0, use_stabilizer=False)
        work[f"folded_{rank}"] = forward(folded, x)
    taken = seconds(work)
    speed = {
        f"{name}_{rank}": taken[f"{name}_4"] / taken[f"{name}_{rank}"]
        for name in ("document", "folded")
        for rank in (2, 32)
    }
    return Finding(
        f"{speed['document_2']:.2f}× at 2, {speed['document_32']:.2f}× at 32",
        judge_all(speed["document_2"] > 1.05, speed["document_32"] < 0.95),
        "What dominates the document's block does not depend on the rank. Folded it does: "
        f"{speed['folded_2']:.2f}× and {speed['folded_32']:.2f}×.",
        speed,
    )
