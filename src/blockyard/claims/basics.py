"""Claims of the language-model basics that counting and a few lines of arithmetic decide."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from blockyard.claims.claim import Finding, claim, judge_all, judge_number
from blockyard.claims.memory import parameter_count
from blockyard.nn.linear import Embedding, Linear
from blockyard.nn.norms import LayerNorm, RMSNorm
from blockyard.nn.rotary import RotaryPositionalEmbedding, rotate
from blockyard.protocol.block import ResidualBlock
from blockyard.registry.register import get_attention, get_ffn


def _spreads(conjugated: bool) -> tuple[float, float]:
    """Return how much scores of pairs with one distance m − n differ, and scores of pairs with one sum m + n."""
    torch.manual_seed(0)
    half = 16
    q, k = (torch.randn(half, dtype=torch.complex128) for _ in range(2))
    angles = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)

    def score(m: int, n: int) -> float:
        turned_q = q * torch.polar(torch.ones_like(angles), m * angles)
        turned_k = k * torch.polar(torch.ones_like(angles), (-n if conjugated else n) * angles)
        return float((turned_q.real * turned_k.real + turned_q.imag * turned_k.imag).sum())

    by_distance = torch.tensor([score(n + 5, n) for n in range(20)], dtype=torch.float64)
    by_sum = torch.tensor([score(m, 20 - m) for m in range(20)], dtype=torch.float64)
    return float(by_distance.max() - by_distance.min()), float(by_sum.max() - by_sum.min())


@claim("basics.conjugated_key")
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


@claim("rope.length")
def rotation_keeps_length() -> Finding:
    rope = RotaryPositionalEmbedding(10_000.0, 64)
    x = torch.randn(4096, 64, dtype=torch.float64)
    cos, sin = rope.tables(4096, x)
    turned = rotate(x, cos, sin, rope.layout)
    change = float(((turned.norm(dim=-1) - x.norm(dim=-1)).abs() / x.norm(dim=-1)).max())
    return Finding(
        f"changes by {change:.1g}",
        "holds" if change < 1e-6 else "false",
        "A rotation is orthogonal.",
        {"change": change},
    )


@claim("rope.relative")
def rotation_is_relative() -> Finding:
    spread, _ = _spreads(conjugated=False)
    return Finding(
        f"spread {spread:.1g}",
        "holds" if spread < 1e-9 else "false",
        "True of the real part, which is what attention uses.",
        {"spread": spread},
    )


@claim("basics.swiglu_width")
def swiglu_width() -> Finding:
    gated, dense = (parameter_count(get_ffn(name, d_model=768)) for name in ("swiglu", "standard"))
    return Finding(
        f"{gated:,} and {dense:,}",
        judge_number(gated, dense, tolerance=0.02),
        "Three matrices of 8/3 d and two of 4 d are both 8 d².",
        {"swiglu": gated, "standard": dense},
    )


@claim("basics.rmsnorm_parameters")
def rmsnorm_parameters() -> Finding:
    rms, layer = (parameter_count(norm(768)) for norm in (RMSNorm, LayerNorm))
    return Finding(
        f"{rms} and {layer}",
        "holds" if rms < layer else "false",
        "Half as many, of a part that is about a thousandth of a block.",
        {"rms": rms, "layer": layer},
    )


@claim("basics.init_variance")
def init_variance() -> Finding:
    found = {}
    with torch.no_grad():
        for wide, name in (((768, 768), "square"), ((768, 3072), "widening"), ((3072, 768), "narrowing")):
            x = torch.randn(4096, wide[0])
            found[name] = float(Linear(*wide)(x).var() / x.var())
    return Finding(
        ", ".join(f"{value:.2f} {name}" for name, value in found.items()),
        judge_all(*(abs(value - 1) < 0.1 for value in found.values())),
        "d_in · 2 / (d_in + d_out): kept where input and output are as wide. Elsewhere it is the compromise between "
        "forward pass and gradient, 0.4 and 1.6 for an FFN's two matrices.",
        found,
    )


@claim("basics.init_embedding")
def init_embedding() -> Finding:
    weight = Embedding(4096, 256).weight.detach()
    variance, largest = float(weight.var()), float(weight.abs().max())
    return Finding(
        f"variance {variance:.2f}, at most {largest:.2f}",
        judge_all(abs(variance - 1) < 0.05, largest <= 3),
        "The cut takes 2.7 % of the variance.",
        {"variance": variance, "largest": largest},
    )


def _gradients(position: Literal["pre", "post"], depth: int, width: int = 64) -> list[float]:
    """Return the norm of the loss's gradient at the input of each block, first to last, random parameters."""
    torch.manual_seed(0)
    blocks = []
    for _ in range(depth):
        attn, ffn = get_attention("standard", d_model=width, n_heads=4), get_ffn("standard", d_model=width)
        block = ResidualBlock(attn, ffn, width, norm_position=position)
        for matrix in block.parameters():
            if matrix.ndim == 2:
                torch.nn.init.xavier_normal_(matrix)
        blocks.append(block)
    streams = [torch.randn(4, 32, width, requires_grad=True)]
    for block in blocks:
        streams.append(block(streams[-1])[0])
    # What a head would send back is unrelated to the activations.
    wanted = torch.randn_like(streams[-1])
    gradients = torch.autograd.grad((F.layer_norm(streams[-1], (width,)) * wanted).sum(), streams[:-1])
    return [float(gradient.norm()) for gradient in gradients]


@claim("basics.gradient_flow")
def gradient_flow() -> Finding:
    found: dict[str, float] = {}
    spread: dict[str, float] = {}
    places: tuple[Literal["pre", "post"], ...] = ("pre", "post")
    for position in places:
        norms = _gradients(position, 24)
        found |= {f"{position}_least": min(norms) / norms[-1], f"{position}_most": max(norms) / norms[-1]}
        spread[position] = max(norms) / min(norms)
    return Finding(
        f"{found['pre_least']:.1f} to {found['pre_most']:.1f}, post-norm {found['post_least']:.1f} to "
        f"{found['post_most']:.1f}",
        judge_all(found["pre_least"] > 0.5, spread["pre"] < 10, spread["pre"] < spread["post"]),
        "In pre-norm the stream grows with depth, so that gradients grow gently, as its square root, towards the input "
        "and never shrink. With this start post-norm's vanish less than is often said.",
        found,
    )


@claim("basics.silu_shape")
def silu_shape() -> Finding:
    x = torch.linspace(-10, 10, 20_001, dtype=torch.float64, requires_grad=True)
    y = F.silu(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    least, jump = int(y.argmin()), float(slope.diff().abs().max())
    where, value = float(x.detach()[least]), float(y.detach()[least])
    return Finding(
        f"least {value:.3f} at {where:.2f}; the slope jumps by {jump:.0e}",
        judge_all(jump < 1e-2, bool((slope < 0).any()) and bool((slope > 0).any())),
        "ReLU's slope jumps by 1, at 0.",
        {"least": value, "at": where, "jump": jump},
    )


@claim("basics.rope_parameters")
def rope_parameters() -> Finding:
    rope = RotaryPositionalEmbedding(10_000.0, 64)
    parameters, saved = parameter_count(rope), len(rope.state_dict())
    return Finding(
        f"{parameters} and {saved}",
        judge_all(parameters == 0, saved == 0),
        "cos and sin are made from positions, once for all layers.",
        {"parameters": parameters, "saved": saved},
    )


@claim("rope.theta")
def rope_theta() -> Finding:
    lengths = [2 * math.pi * 10_000.0 ** (2 * i / 64) for i in range(32)]
    slow, far = (sum(length > span for length in lengths) / len(lengths) for span in (180, 128 * 180))
    return Finding(
        f"{slow:.0%} never turn in 180 steps",
        judge_all(lengths[-1] > 180, slow < 0.5),
        f"The slowest takes {lengths[-1]:,.0f} steps, so 180 are far within range. The pairs that never turn tell far "
        f"from near hardly at all; of 23,040 steps {far:.0%} are left. For 180 a smaller base would do.",
        {"slow_180": slow, "slow_23040": far, "longest": lengths[-1]},
    )
