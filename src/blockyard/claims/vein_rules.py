"""Claims of the vein-flow document about its rules: ranks, thresholds, corrections, what else works with a vein."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from blockyard.claims.claim import Finding, claim, judge_all
from blockyard.claims.vein import RANK, D, seed_block
from blockyard.compat import vein_flow
from blockyard.registry.register import get_attention, get_ffn
from blockyard.vein.projector import VeinProjector


@claim("vein.recommended_rank")
def recommended_rank() -> Finding:
    found = [vein_flow.recommend_rank(d) for d in (768, 2048, 4096)]
    return Finding(
        ", ".join(map(str, found)),
        judge_all(*(a == b for a, b in zip(found, (4, 8, 16)))),
        "The comments disagree with the formula beside them, except at the largest width.",
        {f"d{d}": r for d, r in zip((768, 2048, 4096), found)},
    )


@claim("vein.errors")
def errors() -> Finding:
    vein, h = VeinProjector(D, RANK, tied=True), torch.randn(256, D)
    with torch.no_grad():
        absolute, relative = (vein.compute_reconstruction_error(h, relative=form) for form in (False, True))
    over = float((absolute > 0.18).float().mean())
    return Finding(
        f"mean {absolute.mean():.1f}, {over:.0%} over 0.18; relative {relative.mean():.3f}",
        judge_all(abs(float(absolute.mean()) - 0.12) < 0.05, abs(over - 0.23) < 0.1),
        "As written the error grows like √d, so every token is over any such threshold and it decides nothing. "
        "The relative error of a tied vein lies in [0, 1]; `calibrate_tau` sets a threshold for a share of the tokens.",
        {"absolute": float(absolute.mean()), "relative": float(relative.mean()), "over_tau": over},
    )


@claim("vein.tau_direction")
def tau_direction() -> Finding:
    vein = VeinProjector(64, 8, tied=True)
    with torch.no_grad():
        eps = vein.compute_reconstruction_error(torch.randn(4096, 64), relative=True)
    middle = float(eps.median())
    before, after = (float((eps > tau).float().mean()) for tau in (middle, middle - 0.02))
    return Finding(
        f"{before:.0%} corrected, {after:.0%} with a lower tau",
        "holds" if after < before else "false",
        "Tokens are corrected where the error exceeds tau, so a lower tau corrects more of them.",
        {"before": before, "after": after},
    )


@claim("vein.rank_ranges")
def rank_ranges() -> Finding:
    ranges = ((512, 2, 4), (2048, 4, 8), (8193, 8, 32))
    inside = []
    for d in range(64, 8193, 2):
        low, high = next((low, high) for below, low, high in ranges if d < below)
        inside.append(low <= vein_flow.recommend_rank(d) <= high)
    share = sum(inside) / len(inside)
    return Finding(
        f"the rule keeps to them at {share:.0%} of the widths",
        "holds" if share == 1 else "partly" if share > 0.5 else "false",
        "The rule gives 5 below 512 and up to 11 below 2048. Neither counts heads, though the rank is per head.",
        {"share": share},
    )


@claim("vein.tau_schedule")
def tau_schedule() -> Finding:
    h = F.layer_norm(torch.randn(512, D), (D,))
    share: dict[str, float] = {}
    with torch.no_grad():
        for name, relative, tied in (("absolute", False, False), ("relative", True, True)):
            eps = VeinProjector(D, RANK, tied=tied).compute_reconstruction_error(h, relative=relative)
            share |= {f"{name}_{tau}": float((eps > tau).float().mean()) for tau in (0.25, 0.18, 0.10)}
    told = [share[f"absolute_{tau}"] for tau in (0.25, 0.18, 0.10)]
    return Finding(
        ", ".join(f"{value:.0%}" for value in told) + " corrected",
        judge_all(told[0] < told[1] < told[2], told[0] < 0.5),
        "Four directions of 768 leave nearly all of a token, so every token is far above all three, by either error. "
        "`calibrate_tau` finds the thresholds that correct a given share.",
        share,
    )


@claim("vein.error_warning")
def error_warning() -> Finding:
    h = torch.randn(256, D)

    def error(rank: int) -> float:
        with torch.no_grad():
            return float(VeinProjector(D, rank, tied=True).compute_reconstruction_error(h, relative=True).mean())

    low, high = error(RANK), error(32)
    # It falls as √(1 − r/d), so halving finds the rank.
    below, above = 1, D
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if error(middle) < 0.3 else (middle, above)
    return Finding(
        f"{low:.3f} at rank 4, {high:.3f} at 32; below 0.3 from rank {above}",
        judge_all(high < low, high < 0.3),
        "It falls with the rank, as √(1 − r / d) where no direction stands out. On activations of a trained model "
        "see vein.manifold.",
        {"rank_4": low, "rank_32": high, "needed": above},
    )


@claim("vein.compatible")
def compatible() -> Finding:
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    found = {}
    x = torch.randn(2, 24, 64, dtype=torch.float64)
    mixer = get_attention("tva", d_model=64, n_heads=4, rank=4, kernel="sdpa").double()
    with torch.no_grad():
        fused = mixer(x, causal=True)[0]
        mixer.kernel = "matmul"
        written = mixer(x, causal=True)[0]
    found["flash"] = float((fused - written).abs().max() / written.abs().max())

    block = seed_block().eval()
    h = torch.randn(1, 8, D)
    leaf, again = h.clone().requires_grad_(), h.clone().requires_grad_()
    block(leaf)[0].square().sum().backward()
    checkpoint(lambda t: block(t)[0], again, use_reentrant=False).square().sum().backward()
    assert leaf.grad is not None and again.grad is not None
    found["checkpointing"] = float((leaf.grad - again.grad).abs().max() / leaf.grad.abs().max())
    with torch.no_grad():
        exact = block(h)[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = block(h)[0].float()
    found["bf16"] = float((rough - exact).norm() / exact.norm())

    mixture = get_ffn("moe", d_model=64, expert="vft", n_experts=4, k=2)
    out = mixture(torch.randn(2, 24, 64))
    out.square().sum().backward()
    found["moe_gradients"] = float(
        all(p.grad is not None and p.grad.isfinite().all() for p in mixture.parameters() if p.requires_grad)
    )
    return Finding(
        f"deviations {found['flash']:.0e}, {found['checkpointing']:.0e}, {found['bf16']:.1%}; the mixture learns",
        judge_all(
            found["flash"] < 1e-9, found["checkpointing"] < 1e-5, found["bf16"] < 0.02, found["moe_gradients"] == 1
        ),
        "A vein is ordinary layers, so all of them apply.",
        found,
    )
