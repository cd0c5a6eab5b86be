"""Claims of the complex-block document: counted costs, and symmetries measured with random parameters."""

from __future__ import annotations

import torch

from blockyard.claims.claim import Finding, claim, judge_all, judge_number
from blockyard.claims.memory import saved_bytes
from blockyard.compat.complex_block import TransformerBlock
from blockyard.complex.norms import COMPLEX_NORMS
from blockyard.complex.symmetry import check_equivariance
from blockyard.protocol.block import ResidualBlock
from blockyard.registry.register import get_attention, get_ffn

DOCUMENT = "complex-block"


def _flops(d_model: int, kind: str, tokens: int = 1024) -> int:
    if kind == "complex":
        attn, ffn = get_attention("complex", d_model=d_model, n_heads=4), get_ffn("complex_swiglu", d_model=d_model)
    else:
        attn, ffn = get_attention("standard", d_model=d_model, n_heads=4), get_ffn("swiglu", d_model=d_model)
    return attn.cost(tokens).flops + ffn.cost(tokens).flops


@claim(
    "complex.compute", document=DOCUMENT, line=190, claimed="2×", cost="instant",
    says="A complex block takes twice the computation of a real one, for its real and imaginary parts.",
    how="FLOPs of attention and FFN by formula, T = 1024: 256 complex features against 256 real ones, and against as "
        "many real parameters (360 features).",
)  # fmt: skip
def compute() -> Finding:
    equal_features = _flops(256, "complex") / _flops(256, "real")
    equal_parameters = _flops(256, "complex") / _flops(360, "real")
    return Finding(
        f"{equal_features:.1f}× at equal features, {equal_parameters:.1f}× at equal parameters",
        judge_all(abs(equal_features - 2) < 0.2, abs(equal_parameters - 2) < 0.2),
        "A product of complex numbers is four real ones (scores take two); twice the parameters pay for half of it.",
        {"equal_features": equal_features, "equal_parameters": equal_parameters},
    )


@claim(
    "complex.memory", document=DOCUMENT, line=191, claimed="real and imaginary parts", cost="instant",
    says="Memory has to hold real and imaginary parts: twice that of a real block.",
    how="Bytes kept for the backward pass by attention and FFN at 256 features, T = 256, and bytes of the parameters.",
)  # fmt: skip
def memory() -> Finding:
    torch.manual_seed(0)
    kept, held = {}, {}
    for kind, mixer, ffn, dtype in (
        ("complex", "complex", "complex_swiglu", torch.complex64),
        ("real", "standard", "swiglu", torch.float32),
    ):
        parts = (get_attention(mixer, d_model=256, n_heads=4), get_ffn(ffn, d_model=256))
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


@claim(
    "complex.parameters", document=DOCUMENT, line=189, claimed="about 50 M", cost="instant",
    says="The block has about 50 million parameters, depending on its configuration.",
    how="Real numbers in the document's block at feature_dim = 384, 8 heads, dense and with 8 experts.",
)  # fmt: skip
def parameters() -> Finding:
    with torch.device("meta"):
        dense = sum(p.numel() for p in TransformerBlock(384, 8).parameters())
        mixture = TransformerBlock(384, 8, use_moe=True, num_experts=8, num_experts_per_token=2)
        experts = sum(p.numel() for p in mixture.parameters())
    return Finding(
        f"{dense / 1e6:.1f} M dense, {experts / 1e6:.1f} M with 8 experts",
        judge_all(*(judge_number(count, 50e6, tolerance=0.25) == "holds" for count in (dense, experts))),
        "Only the mixture comes near it; the examples begin with the dense block.",
        {"dense": dense, "experts": experts},
    )


@claim(
    "complex.norm_phase", document=DOCUMENT, line=18, claimed="keeps the phase", cost="instant",
    says="Normalising the magnitude, as LayerNorm does, keeps the phase.",
    how="Share of random complex features whose phase is turned around by the centred norm, and by RMS (float64).",
)  # fmt: skip
def norm_phase() -> Finding:
    torch.manual_seed(0)
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


@claim(
    "complex.rotation", document=DOCUMENT, line=199, claimed="rotation invariance", cost="instant",
    says="The block suits tasks that need invariance to rotations.",
    how="Largest deviation of f(e^{ia}x) from e^{ia}f(x) with random parameters (float64): the defaults here, and the "
        "document's additive positions.",
)  # fmt: skip
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


@claim(
    "complex.swiglu_phase", document=DOCUMENT, line=22, claimed="keeps the phase", cost="instant",
    says="A sigmoid of the magnitude gates and keeps the phase.",
    how="Smallest value of the gate σ(|g|) for magnitudes from 0 to 20, and the deviation from equivariance of ours.",
)  # fmt: skip
def swiglu_phase() -> Finding:
    least = float(torch.sigmoid(torch.linspace(0, 20, 1001)).min())
    ours = check_equivariance(get_ffn("complex_swiglu", d_model=16))
    return Finding(
        f"keeps it, but never closes: at least {least:.1f}",
        judge_all(bool(ours), least < 0.1),
        "A magnitude is never negative, so its sigmoid lies in [0.5, 1). m·σ(m + b) closes, and is what is used here.",
        {"least_gate": least, "error": ours.error},
    )


@claim(
    "moe.share", document=DOCUMENT, line=192, claimed="k / n", cost="instant",
    says="A mixture of experts lowers the active computation to k / n.",
    how="FLOPs of 8 experts with 2 chosen by formula against all 8 computed, d = 384, complex SwiGLU, with the router.",
)  # fmt: skip
def moe_share() -> Finding:
    few = get_ffn("moe", d_model=384, expert="complex_swiglu", n_experts=8, k=2)
    share = few.cost(512).flops / (8 * get_ffn("complex_swiglu", d_model=384).cost(512).flops)
    return Finding(
        f"{share:.3f}",
        judge_number(share, 0.25, tolerance=0.05),
        "Of the feed-forward part; attention and memory stay whole: all experts' parameters are kept.",
        {"share": share},
    )
