"""A mixture of experts by its definition, token by token, in loops.

    y = scale · Σ_j g_j · expert_j(x)    over the k experts that the router chooses
    g = softmax(W x) or σ(W x); `renormalise` divides the chosen k by their sum (W |x| for complex x)
    choice: the k highest of g + bias, among the experts of the k_groups strongest of n_groups groups
    loss:   E · Σ_e f_e · P_e, f_e expert e's share of the choices, P_e the mean of its normalised score

Shazeer et al. 2017 (arXiv 1701.06538); the loss: Switch (arXiv 2101.03961); groups: DeepSeek-V2 (arXiv 2405.04434: the
best expert of a group counts) and V3 (arXiv 2412.19437: the best two); the bias, which the choice alone sees: arXiv
2408.15664.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choice(scores: Tensor, k: int, bias: Tensor | None = None, n_groups: int = 1, k_groups: int = 1, best: int = 1):
    """The experts of one token, best first: its k highest scores (bias added) within the k_groups best groups."""
    value = (scores.detach() + (0.0 if bias is None else bias)).tolist()
    size = len(value) // n_groups
    groups = [list(range(g * size, (g + 1) * size)) for g in range(n_groups)]
    strength = [sum(sorted((value[e] for e in group), reverse=True)[:best]) for group in groups]
    open_groups = sorted(range(n_groups), key=lambda g: -strength[g])[:k_groups]
    allowed = [e for g in open_groups for e in groups[g]]
    return sorted(allowed, key=lambda e: -value[e])[:k]


def gates(logits: Tensor, k: int, scoring: str, renormalise: bool, scale: float = 1.0, **grouping):
    """(experts, weights) of one token."""
    scores = torch.softmax(logits, -1) if scoring == "softmax" else torch.sigmoid(logits)
    chosen = choice(scores, k, best=1 if scoring == "softmax" else 2, **grouping)
    weights = torch.stack([scores[e] for e in chosen])
    if renormalise:
        weights = weights / weights.sum()
    return chosen, weights * scale


def mixture(x: Tensor, router: Tensor, experts, **routing) -> Tensor:
    """Σ weight · expert(x) for every token of x [..., d]; `experts` are functions of one vector."""
    out = []
    for vector in x.reshape(-1, x.shape[-1]):
        chosen, weights = gates(router @ (vector.abs() if vector.is_complex() else vector), **routing)
        out.append(sum(w * experts[e](vector) for e, w in zip(chosen, weights)))
    return torch.stack(out).view(x.shape)


def switch_loss(logits: Tensor, chosen: list[list[int]], scoring: str) -> Tensor:
    """E · Σ f·P over tokens' logits [N, E]."""
    n_experts = logits.shape[-1]
    total = torch.zeros((), dtype=logits.dtype)
    choices = [e for experts in chosen for e in experts]
    for e in range(n_experts):
        f = choices.count(e) / len(choices)
        p = torch.zeros((), dtype=logits.dtype)
        for row in logits:
            scores = torch.softmax(row, -1) if scoring == "softmax" else torch.sigmoid(row)
            p = p + scores[e] / scores.sum() / len(logits)
        total = total + f * p
    return n_experts * total


def places(chosen: list[list[int]], capacity: int) -> list[list[bool]]:
    """Which choices of one sequence find room, its tokens served in order."""
    taken: dict[int, int] = {}
    found = []
    for experts in chosen:
        row = []
        for e in experts:
            row.append(taken.get(e, 0) < capacity)
            taken[e] = taken.get(e, 0) + 1
        found.append(row)
    return found
