"""Claims of the vein-flow document: first what counting decides, FLOPs and parameters, then a stopwatch."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim, judge_all, judge_number, judge_ratio
from blockyard.claims.memory import parameter_count
from blockyard.claims.timing import forward, seconds
from blockyard.compat import vein_flow
from blockyard.protocol.block import ResidualBlock
from blockyard.protocol.costs import Cost
from blockyard.registry.register import get_attention, get_ffn
from blockyard.report import units
from blockyard.vein.block import VFTBlock
from blockyard.vein.ffn import VFTFeedForward
from blockyard.vein.projector import VeinProjector

D, HEADS, RANK = 768, 12, 4


def standard_block() -> ResidualBlock:
    """Return the block that the document compares with: 12 heads of 64, two FFN matrices with 3072 hidden units."""
    attn = get_attention("standard", d_model=D, n_heads=HEADS, qk_norm=False)
    return ResidualBlock(attn, get_ffn("standard", d_model=D, d_ff=4 * D), D, norm="layer")


def seed_block() -> vein_flow.VFTBlock:
    """Return the document's block, parameter for parameter."""
    return vein_flow.VFTBlock(D, HEADS, RANK, preset="seed")


def _cost(module: object, tokens: int) -> Cost:
    # mypy: a block of ours, which has a cost; nn.Module does not know of it.
    return module.cost(tokens)  # type: ignore[attr-defined]


@claim("vein.attention")
def attention() -> Finding:
    standard = get_attention("standard", d_model=D, n_heads=HEADS)
    seed = get_attention("tva", d_model=D, n_heads=HEADS, rank=RANK, factored=True)
    folded = get_attention("tva", d_model=D, n_heads=HEADS, rank=RANK)
    short, long = (_cost(standard, t).flops / _cost(seed, t).flops for t in (128, 2048))
    best = _cost(standard, 2048).flops / _cost(folded, 2048).flops
    scores = (D // HEADS) / RANK
    return Finding(
        f"{short:.2f}× at T = 128, {long:.1f}× at 2048",
        judge_ratio(long, 192),
        f"r is per head, so score and value products shrink by d_head / r = {scores:.0f}, not d / r, and the "
        "document's d × d projections stay. "
        f"Folded into thin heads, which is the same function, it is {best:.0f}× at T = 2048.",
        {"document_T128": short, "document_T2048": long, "folded_T2048": best, "score_products": scores},
    )


def _ffn_ratios(tokens: int = 128) -> tuple[float, float]:
    standard = get_ffn("standard", d_model=D, d_ff=4 * D)
    full, bare = (VFTFeedForward(D, RANK, stabilizer=kind, tied=False) for kind in ("full", "none"))
    base = _cost(standard, tokens).flops
    return base / _cost(full, tokens).flops, base / _cost(bare, tokens).flops


@claim("vein.ffn")
def ffn() -> Finding:
    full, bare = _ffn_ratios()
    return Finding(
        f"{full:.1f}× as it is by default",
        judge_ratio(full, 2000),
        f"The default stabiliser is a d × d matrix and takes nearly all of it; without one the ratio is {bare:.0f}×, "
        "and projecting to the vein and back, 2·d·r, is what remains.",
        {"default": full, "no_stabilizer": bare},
    )


@claim("vein.ffn_parameters")
def ffn_parameters() -> Finding:
    base = parameter_count(get_ffn("standard", d_model=D, d_ff=4 * D))
    counts = {kind: parameter_count(VFTFeedForward(D, RANK, stabilizer=kind, tied=False)) for kind in ("full", "none")}
    ratio, bare = base / counts["full"], base / counts["none"]
    return Finding(
        f"{ratio:.1f}× as it is by default",
        judge_ratio(ratio, 30_000),
        f"128 is the size of the non-linear core alone. The vein itself takes 2·d·r = {2 * D * RANK:,}, the default "
        f"stabiliser d² more; without it the ratio is {bare:.0f}×.",
        {"default": ratio, "no_stabilizer": bare},
    )


@claim("vein.block")
def block() -> Finding:
    short, long = (_cost(standard_block(), t).flops / _cost(seed_block(), t).flops for t in (128, 4096))
    folded = VFTBlock(D, HEADS, RANK, stabilizer="none", s=0, gated=False)
    best = _cost(standard_block(), 4096).flops / _cost(folded, 4096).flops
    return Finding(
        f"{short:.2f}× at T = 128, {long:.1f}× at 4096",
        judge_ratio(long, 100),
        "The d × d projections and the stabiliser remain. "
        f"Folded, without stabiliser and corrections, it is {best:.0f}× at T = 4096.",
        {"document_T128": short, "document_T4096": long, "folded_T4096": best},
    )


@claim("vein.parameters")
def parameters() -> Finding:
    count = parameter_count(seed_block())
    base = parameter_count(standard_block())
    return Finding(
        f"{count:,}",
        judge_number(count, 1.5e6),
        f"The four d × d projections alone are {4 * D * D:,}. "
        f"A standard block has {base:,}, {base / count:.2f}× as many.",
        {"parameters": count, "standard": base},
    )


@claim("vein.compression")
def compression() -> Finding:
    ratio = VeinProjector(D, RANK).get_compression_ratio()
    return Finding(
        f"{ratio:.0f}×",
        judge_number(ratio, 147),
        "d² / (2·d·r) = d / (2r). By width alone it would be d / r = 192.",
        {"ratio": ratio},
    )


@claim("vein.parameter_form")
def parameter_form() -> Finding:
    linear, plain = (parameter_count(VeinProjector(D, RANK, implementation=form)) for form in ("linear", "parameter"))
    return Finding(
        f"{plain:,} and {linear:,}",
        "holds" if plain < linear else "false",
        "The same two matrices, held differently.",
        {"linear": linear, "parameter": plain},
    )


@claim("vein.flops_10_100")
def typical_savings() -> Finding:
    found = []
    for d, heads in ((768, 12), (4096, 32)):
        for rank in (4, 32):
            with torch.device("meta"):
                attn = get_attention("standard", d_model=d, n_heads=heads, qk_norm=False)
                standard = ResidualBlock(attn, get_ffn("standard", d_model=d, d_ff=4 * d), d, norm="layer")
                vein = vein_flow.VFTBlock(d, heads, rank, preset="seed")
            found.append(_cost(standard, 2048).flops / _cost(vein, 2048).flops)
    low, high = min(found), max(found)
    return Finding(
        f"{units.ratio(low)} to {units.ratio(high)}",
        judge_all(low >= 10, high >= 100),
        "Five d × d matrices of twelve stay in the document's block, so no rank can save more than about 2.4 times "
        "where they dominate.",
        {"least": low, "most": high},
    )


@claim("vein.score_cost")
def score_cost() -> Finding:
    tokens = 4096
    pairs = {}
    for name, options in (("standard", {"qk_norm": False, "rope": "none"}), ("tva", {"rank": RANK, "rope": "none"})):
        cost = _cost(get_attention(name, d_model=D, n_heads=HEADS, **options), tokens)
        projections = 2 * tokens * cost.parameters
        pairs[name] = (cost.flops - projections) / tokens**2
    ratio = pairs["standard"] / pairs["tva"]
    return Finding(
        f"{ratio:.0f}×",
        judge_ratio(ratio, D / RANK),
        "The heads of ordinary attention share the width: a pair of tokens costs "
        f"{pairs['standard']:,.0f} FLOPs, 4·d and not 4·H·d; in the vein {pairs['tva']:,.0f}, 4·H·r. What is left is "
        "(d / H) / r.",
        {"ratio": ratio, "standard_per_pair": pairs["standard"], "vein_per_pair": pairs["tva"]},
    )


@claim("vein.ffn_core")
def ffn_core() -> Finding:
    ffn = VFTFeedForward(D, RANK, stabilizer="full", tied=False)
    inside = 2 * RANK * ffn.r_hidden
    whole = parameter_count(ffn)
    return Finding(
        f"{inside} and {whole - inside:,} beside",
        judge_all(inside == 128, whole - inside < 10 * inside),
        "The core is as said. The overhead is not small: the vein's two matrices and the stabiliser's one are "
        f"{(whole - inside) / inside:,.0f} times the core.",
        {"core": inside, "beside": whole - inside, "r_hidden": ffn.r_hidden},
    )


@claim("vein.stabilizer")
def stabilizer() -> Finding:
    full, bare = (VFTFeedForward(D, RANK, stabilizer=kind, tied=False) for kind in ("full", "none"))
    share = {
        name: 1 - getattr(_cost(bare, 128), name) / getattr(_cost(full, 128), name) for name in ("parameters", "flops")
    }
    return Finding(
        f"{share['parameters']:.1%} of the parameters, {share['flops']:.1%} of the FLOPs",
        judge_all(share["parameters"] < 0.25, share["flops"] < 0.25),
        "A d × d matrix beside a vein of rank 4 is nearly all there is; `stabilizer=diag` has d numbers.",
        share,
    )


@claim("vein.standard_size")
def standard_size() -> Finding:
    found = standard_block()
    attn, ffn = (parameter_count(part) for part in (found.attn, found.ffn))
    return Finding(
        f"{attn / 1e6:.2f} M + {ffn / 1e6:.2f} M",
        judge_all(abs(attn / 1e6 - 2.36) < 0.01, abs(ffn / 1e6 - 4.72) < 0.01),
        "Four d × d matrices, and two of d × 4 d.",
        {"attention": attn, "ffn": ffn},
    )


@claim("vein.reduction")
def reduction() -> Finding:
    base = parameter_count(standard_block())
    document, folded = (
        base / parameter_count(seed_block()),
        base / parameter_count(VFTBlock(D, HEADS, RANK, stabilizer="none")),
    )
    return Finding(
        f"{document:.2f}×",
        judge_ratio(document, 7.08 / 1.5),
        f"The document's d × d matrices stay, {5 * D * D:,} parameters. Folded into thin heads and without the "
        f"stabiliser it would be {folded:.0f}×.",
        {"document": document, "folded": folded},
    )


@claim("vein.long_sequences")
def long_sequences() -> Finding:
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
        + ", ".join(f"{found[f'folded_T{t}']:.1f}× at {t}" for t in (16, 512, 2048))
        + ".",
        found,
    )


@claim("vein.own_benchmark")
def own_benchmark() -> Finding:
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


@claim("vein.normals_time")
def normals_time() -> Finding:
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


@claim("vein.rank_time")
def rank_time() -> Finding:
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
