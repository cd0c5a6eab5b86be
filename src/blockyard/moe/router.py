"""The router of a mixture of experts: which k experts a token goes to, with which weights.

Scores are a softmax (Shazeer et al. 2017; Switch, arXiv 2101.03961; Mixtral, arXiv 2401.04088) or sigmoids
(DeepSeek-V3, arXiv 2412.19437, section 2.1.2). Experts are kept equally busy by a loss, or by a bias that only the
choice sees (arXiv 2408.15664).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.nn.attention_kernels import as_given
from blockyard.nn.finite import check_finite
from blockyard.nn.linear import Linear, weight_of
from blockyard.protocol.costs import Cost, linear_flops

Scoring = Literal["softmax", "sigmoid"]
Balance = Literal["loss", "bias", "none"]
# Keeps a sum of sigmoids that all vanish from dividing by 0; DeepSeek's.
TINY = 1e-20


@dataclass(frozen=True)
class Routing:
    """Where the tokens go.

    Args:
        experts: [N, k] expert of each choice.
        gates: [N, k] weight of each choice, at least float32.
        logits: [N, E] at least float32.
    """

    experts: Tensor
    gates: Tensor
    logits: Tensor


class Router(nn.Module):
    """Logits W x in at least float32, scores, and the best k of them.

    Args:
        d_in: width of what it reads.
        n_experts: number of experts E.
        scoring: softmax or sigmoid.
        renormalise: divide the k weights by their sum. With softmax that is the softmax over the k chosen logits.
        scale: factor on the weights.
        n_groups: groups of E / n_groups neighbouring experts.
        k_groups: groups that a token may choose from: those with the best expert (softmax), or with the best two
            (sigmoid), as DeepSeek-V2 and V3 have it.
        biased: keep a bias [E] that is added to the scores for the choice, not for the weights.

    Shapes: x [N, d_in], real or complex (then its magnitudes are read).
    """

    def __init__(
        self,
        d_in: int,
        n_experts: int,
        *,
        scoring: Scoring = "softmax",
        renormalise: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        k_groups: int = 1,
        biased: bool = False,
    ) -> None:
        super().__init__()
        self.n_experts, self.scoring, self.renormalise, self.scale = n_experts, scoring, renormalise, scale
        self.n_groups, self.k_groups = n_groups, k_groups
        # One map, kept in the model's precision and multiplied in float32: see `logits`.
        self.linear = Linear(d_in, n_experts)
        self.bias: Tensor | None
        self.register_buffer("bias", torch.zeros(n_experts) if biased else None)

    def forward(self, x: Tensor, k: int) -> Routing:
        """Route tokens [N, d_in] to k experts each.

        Raises:
            InputError: for logits that are not finite.
        """
        logits = self.logits(x)
        check_finite(logits, "the router's logits")
        softmax_after = self.scoring == "softmax" and self.renormalise
        # The order of the logits is that of the scores; where only the order matters, they will do.
        ordered_alike = softmax_after and self.bias is None and self.n_groups == 1
        scores = logits if ordered_alike else self.scores(logits)
        experts = self.choose(scores, k)
        if softmax_after:
            # The softmax over all, divided by the sum of the k chosen, is the softmax over these k (Mixtral).
            gates = logits.gather(-1, experts).softmax(-1)
        else:
            # Without the bias: it says who computes, not how much it counts (arXiv 2408.15664).
            gates = scores.gather(-1, experts)
            if self.renormalise:
                gates = gates / (gates.sum(-1, keepdim=True) + TINY)
        return Routing(experts, gates * self.scale if self.scale != 1.0 else gates, logits)

    def scores(self, logits: Tensor) -> Tensor:
        """Return [N, E] softmax or sigmoids."""
        return logits.softmax(-1) if self.scoring == "softmax" else logits.sigmoid()

    def logits(self, x: Tensor) -> Tensor:
        """Compute W x, or W |x| of complex x. In half precision near ties would be broken by rounding."""
        x = x.abs() if x.is_complex() else x
        wide = torch.promote_types(x.dtype, torch.float32)
        with as_given(x.device):
            return F.linear(x.to(wide), weight_of(self.linear).to(wide))

    @torch.no_grad()
    def choose(self, scores: Tensor, k: int) -> Tensor:
        """Return [N, k] the experts with the best scores, the bias added, within the best groups."""
        if self.bias is not None:
            scores = scores + self.bias
        if self.n_groups > 1:
            grouped = scores.unflatten(-1, (self.n_groups, -1))
            # A group is as good as its best expert (DeepSeek-V2), or as its best two together (V3).
            best = 1 if self.scoring == "softmax" else min(2, grouped.shape[-1])
            chosen = grouped.topk(best, dim=-1).values.sum(-1).topk(self.k_groups, dim=-1).indices
            closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, chosen, False)
            scores = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
        return scores.topk(k, dim=-1).indices

    @torch.no_grad()
    def rebalance(self, load: Tensor, rate: float) -> None:
        """Move the bias by `rate` towards the experts that had less than their share, away from those that had more.

        Only differences of biases matter, so their mean is kept at 0.

        Args:
            load: [E] tokens that chose each expert in the whole step.
            rate: DeepSeek's γ, in units of the scores.
        """
        if self.bias is None or not bool(load.any()):
            return
        # The sign alone: a step of one size, however far an expert is from its share.
        self.bias += rate * torch.sign(load.mean() - load).to(self.bias)
        self.bias -= self.bias.mean()

    def cost(self, tokens: int) -> Cost:
        shape = (self.linear.weight.shape[1], self.n_experts)
        return Cost(self.linear.weight.numel(), linear_flops(tokens, shape))


def balance_loss(scores: Tensor, load: Tensor, counted: Tensor | None) -> Tensor:
    """Switch's loss E · Σ f·P: 1 when the mean probabilities P are uniform, E when everything goes to one expert.

    f is the fraction of the choices that an expert got, without gradient. Sigmoids are divided by their sum first.

    Args:
        scores: [N, E].
        load: [E] how many choices fell on each expert.
        counted: [N] bool, the tokens that count (no padding); None for all.
    """
    # Changes nothing of a softmax.
    scores = scores / scores.sum(-1, keepdim=True).clamp_min(TINY)
    # f only counts and has no slope; through P the busy experts' probabilities are pushed down.
    share = load / load.sum().clamp_min(1.0)
    return scores.shape[-1] * (share.to(scores) * _mean(scores, counted)).sum()


def z_loss(logits: Tensor, counted: Tensor | None) -> Tensor:
    """Compute mean(logsumexp(logits)²): keeps the logits small (ST-MoE, arXiv 2202.08906)."""
    return _mean(logits.logsumexp(-1).square(), counted)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    """Return the mean over the tokens that count; 0 when none does."""
    if counted is None:
        return values.mean(0)
    weight = counted.to(values)
    shaped = weight.view(-1, *[1] * (values.ndim - 1))
    # Not a product with 0: what stands in padding may not be finite.
    kept = torch.where(shaped > 0, values, torch.zeros_like(values))
    return kept.sum(0) / weight.sum().clamp_min(1.0)


def check_router(n_experts: int, k: int, n_groups: int, k_groups: int) -> None:
    """Raise InputError for numbers that do not go together."""
    at_least(2, n_experts=n_experts)
    if n_groups < 1 or n_experts % n_groups:
        raise InputError(f"n_groups={n_groups} should divide n_experts={n_experts}")
    if not 1 <= k_groups <= n_groups:
        raise InputError(f"k_groups={k_groups} should be between 1 and n_groups={n_groups}")
    check_k(k, n_experts, n_groups, k_groups)


def check_k(k: int, n_experts: int, n_groups: int, k_groups: int) -> None:
    """Raise InputError unless 1 <= k <= the experts that a token may choose from."""
    if not 1 <= k <= n_experts:
        raise InputError(f"k={k} should be between 1 and n_experts={n_experts}")
    open_to = n_experts // n_groups * k_groups
    if k > open_to:
        raise InputError(f"k={k} is more than the {open_to} experts in k_groups={k_groups} of n_groups={n_groups}")
