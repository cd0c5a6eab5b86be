"""Claims of the complex-block document: counted costs, and symmetries measured with random parameters."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim, judge_all, judge_number
from blockyard.claims.memory import parameter_count, saved_bytes
from blockyard.compat.complex_block import TransformerBlock
from blockyard.complex.norms import COMPLEX_NORMS
from blockyard.complex.symmetry import check_equivariance
from blockyard.protocol.block import ResidualBlock
from blockyard.registry.register import get_attention, get_ffn


def _flops(d_model: int, kind: str, tokens: int = 1024) -> int:
    if kind == "complex":
        attn, ffn = get_attention("complex", d_model=d_model, n_heads=4), get_ffn("complex_swiglu", d_model=d_model)
    else:
        attn, ffn = get_attention("standard", d_model=d_model, n_heads=4), get_ffn("swiglu", d_model=d_model)
    return attn.cost(tokens).flops + ffn.cost(tokens).flops


@claim("complex.compute")
def compute() -> Finding:
    equal_features = _flops(256, "complex") / _flops(256, "real")
    equal_parameters = _flops(256, "complex") / _flops(360, "real")
    return Finding(
        f"{equal_features:.1f}× at equal features, {equal_parameters:.1f}× at equal parameters",
        judge_all(abs(equal_features - 2) < 0.2, abs(equal_parameters - 2) < 0.2),
        "A product of complex numbers is four real ones (scores take two); twice the parameters pay for half of it.",
        {"equal_features": equal_features, "equal_parameters": equal_parameters},
    )


@claim("complex.memory")
def memory() -> Finding:
    kept, held = {}, {}
    for kind, mixer, options, ffn, dtype in (
        # Products as torch has them: where Gauss' form is faster, which depends on the processor, it keeps more.
        ("complex", "complex", {"linear": "native"}, "complex_swiglu", torch.complex64),
        ("real", "standard", {}, "swiglu", torch.float32),
    ):
        parts = (get_attention(mixer, d_model=256, n_heads=4, **options), get_ffn(ffn, d_model=256))
        x = torch.randn(1, 256, 256, dtype=dtype)
        kept[kind] = sum(saved_bytes(part, x) for part in parts)
        held[kind] = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    activations, weights = kept["complex"] / kept["real"], held["complex"] / held["real"]
    return Finding(
        f"{activations:.1f}× activations, {weights:.1f}× parameters",
        judge_all(abs(activations - 2) < 0.4, abs(weights - 2) < 0.2),
        "Two numbers for one, in weights and in what training keeps; magnitudes and gates come on top.",
        {"activations": activations, "parameters": weights},
    )


@claim("complex.parameters")
def parameters() -> Finding:
    with torch.device("meta"):
        dense = parameter_count(TransformerBlock(384, 8))
        mixture = TransformerBlock(384, 8, use_moe=True, num_experts=8, num_experts_per_token=2)
        experts = parameter_count(mixture)
    return Finding(
        f"{dense / 1e6:.1f} M dense, {experts / 1e6:.1f} M with 8 experts",
        judge_all(*(judge_number(count, 50e6, tolerance=0.25) == "holds" for count in (dense, experts))),
        "Only the mixture comes near it; the examples begin with the dense block.",
        {"dense": dense, "experts": experts},
    )


@claim("complex.norm_phase")
def norm_phase() -> Finding:
    z = torch.randn(512, 64, dtype=torch.complex128)
    flipped = {}
    for kind in ("layer", "rms"):
        out = COMPLEX_NORMS[kind](64).double()(z)
        flipped[kind] = float(((out * z.conj()).real < 0).double().mean())
    return Finding(
        f"turned by π for {flipped['layer']:.0%} of the features",
        "holds" if flipped["layer"] == 0 else "false",
        f"Centring makes magnitudes below the mean negative. Dividing by the RMS turns {flipped['rms']:.0%}.",
        flipped,
    )


@claim("complex.rotation")
def rotation() -> Finding:
    ours = check_equivariance(
        ResidualBlock(get_attention("complex", d_model=16, n_heads=2), get_ffn("complex_swiglu", d_model=16), 16)
    )
    mixer = get_attention("complex", d_model=16, n_heads=2)
    encoding = torch.randn(7, 16, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    theirs = check_equivariance(mixer, call=lambda m, x: m(x, pe=encoding))
    return Finding(
        f"error {ours.error:.0g} here, {theirs.error:.2f} with additive positions",
        judge_all(bool(ours), bool(theirs)),
        "With rotary positions and real gates the symmetry is exact. Positions added to queries and keys do not turn "
        "with the input, and break it; so do biases.",
        {"default": ours.error, "additive_positions": theirs.error},
    )


@claim("complex.swiglu_phase")
def swiglu_phase() -> Finding:
    least = float(torch.sigmoid(torch.linspace(0, 20, 1001)).min())
    ours = check_equivariance(get_ffn("complex_swiglu", d_model=16))
    return Finding(
        f"keeps it, but never closes: at least {least:.1f}",
        judge_all(bool(ours), least < 0.1),
        "A magnitude is never negative, so its sigmoid lies in [0.5, 1). m·σ(m + b) closes, and is what is used here.",
        {"least_gate": least, "error": ours.error},
    )


@claim("moe.share")
def moe_share() -> Finding:
    few = get_ffn("moe", d_model=384, expert="complex_swiglu", n_experts=8, k=2)
    share = few.cost(512).flops / (8 * get_ffn("complex_swiglu", d_model=384).cost(512).flops)
    return Finding(
        f"{share:.3f}",
        judge_number(share, 0.25, tolerance=0.05),
        "Of the feed-forward part; attention and memory stay whole: all experts' parameters are kept.",
        {"share": share},
    )
