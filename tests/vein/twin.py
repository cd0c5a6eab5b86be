"""The vein-flow document's formulas in loops and float64: the definition that every fast path is compared with.

A vein is a pair of maps, V: d -> r and U: r -> d. With h = LN(x) in front of each half, and summed to the stream x:

    attention  (TVA)   q, k, v = V W_q h, V W_k h, V W_v h in each head;  W_o [U Σ_s softmax_s(q·k_s / √r) v_s]
    FFN        (VFT)   U (W_2 silu(W_1 V h + b_1) + b_2) + A LN(h)
    error              ε = ‖h − U V h‖, of the FFN's input
    compensation       x + 1[ε > τ] · Σ_j α · σ(gate_j(x)) · u_j (v_jᵀ x)

Source: the vein-flow document, its `TVAAttention`, `VFTFeedForward`, `NormalCompensator` and `VFTBlock`; the block is
what the preset `seed` is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blockyard.vein.block import VFTBlock


def silu(value: float) -> float:
    """x · σ(x)."""
    return value / (1 + math.exp(-value))


def matvec(matrix: Tensor, vector: Tensor) -> Tensor:
    """A matrix times a vector, row by row."""
    return torch.stack([sum(m * v for m, v in zip(row, vector)) for row in matrix])


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return torch.stack([(value - mean) / math.sqrt(variance + eps) for value in x]) * weight + bias


def tri_vein_attention(
    x: Tensor,
    q_w: Tensor,
    k_w: Tensor,
    v_w: Tensor,
    o_w: Tensor,
    vein: Tensor,
    back: Tensor,
    n_heads: int,
    allowed: Tensor,
) -> Tensor:
    """x [T, d]; square projections [d, d]; vein [r, head_dim]; back [head_dim, r]; allowed [T, T] bool."""
    length, d_model = x.shape
    head_dim, rank = d_model // n_heads, vein.shape[0]
    merged = torch.zeros(length, d_model, dtype=torch.float64)
    for head in range(n_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        q, k, v = ([matvec(vein, matvec(w[rows], token)) for token in x] for w in (q_w, k_w, v_w))
        for i in range(length):
            seen = [j for j in range(length) if allowed[i, j]]
            scores = [math.exp(float(q[i] @ k[j]) / math.sqrt(rank)) for j in seen]
            if seen:
                mixed = sum(score * v[j] for score, j in zip(scores, seen)) / sum(scores)
                merged[i, rows] = matvec(back, mixed)
    return torch.stack([matvec(o_w, token) for token in merged])


def compensate(x: Tensor, eps: float, tau: float, alpha_scale: float, u: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """x [d] + 1[eps > tau] · Σ_j alpha_scale · σ(gates[j]) · u_j (v_jᵀ x)."""
    if eps <= tau:
        return x
    correction = torch.zeros_like(x)
    for j in range(len(u)):
        weight = alpha_scale / (1 + math.exp(-float(gates[j])))
        correction = correction + weight * float(v[j] @ x) * u[j]
    return x + correction


def seed_block(block: VFTBlock, x: Tensor) -> tuple[Tensor, Tensor]:
    """The document's whole block on x [T, d], with the weights of a block of preset seed: (output, eps [T])."""
    w = {name: value.double() for name, value in block.state_dict().items()}
    everything = torch.ones(len(x), len(x), dtype=torch.bool)
    h = torch.stack([layer_norm(token, w["ln1.weight"], w["ln1.bias"]) for token in x])
    projections = (w[f"attn.{name}_proj.weight"] for name in ("q", "k", "v", "output"))
    veins = (w["attn.vein.V.weight"], w["attn.vein.U.weight"])
    x = x + tri_vein_attention(h, *projections, *veins, block.attn.n_heads, everything)
    out, errors = [], []
    for token in x:
        h = layer_norm(token, w["ln2.weight"], w["ln2.bias"])
        z = matvec(w["ffn.vein.V.weight"], h)
        rebuilt = matvec(w["ffn.vein.U.weight"], z)
        eps = math.sqrt(sum(float(a - b) ** 2 for a, b in zip(h, rebuilt)))
        before = matvec(w["ffn.w1.weight"], z) + w["ffn.w1.bias"]
        hidden = torch.tensor([silu(float(value)) for value in before], dtype=torch.float64)
        change = matvec(w["ffn.vein.U.weight"], matvec(w["ffn.w2.weight"], hidden) + w["ffn.w2.bias"])
        steady = layer_norm(h, w["ffn.stabilizer.norm.weight"], w["ffn.stabilizer.norm.bias"])
        token = token + change + matvec(w["ffn.stabilizer.up.weight"], steady)
        gated = layer_norm(token, w["normals.gate_norm.weight"], w["normals.gate_norm.bias"])
        gates = matvec(w["normals.gate.weight"], gated) + w["normals.gate.bias"]
        tau, scale = float(w["normals.tau"]), block.normals.alpha_scale
        out.append(compensate(token, eps, tau, scale, w["normals.U"], w["normals.V"], gates))
        errors.append(eps)
    return torch.stack(out), torch.tensor(errors, dtype=torch.float64)
