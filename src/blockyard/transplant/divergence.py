"""KL(original ‖ new) of the next token from the last activations of both, without ever holding the logits of a whole
text.

A vocabulary is wide: logits of 512 tokens among 49,152 take 100 MB, and autograd would keep several such. Here the
output matrices are applied to some rows at a time, and what goes back to the new model's activations is computed with
them: ∂KL/∂z = softmax(z) − softmax(z'), through the head alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.nn.derivatives import HandWritten, hand_written, keep

# From activations [n, d_model] to logits [n, vocabulary].
Scores = Callable[[Tensor], Tensor]
# Rows whose logits are held at once: more are no faster.
ROWS = 128


def divergence(found: Tensor, wanted: Tensor, scores: Scores, wanted_scores: Scores) -> Tensor:
    """Return the mean of KL(original ‖ new) over tokens, in nats.

    Args:
        found: the new model's activations before its head [..., d_model]; gradients go back to them alone.
        wanted: the original's [..., d_model].
        scores: the new model's head. Its own weights get no gradient.
        wanted_scores: the original's head.
    """
    return hand_written(_Divergence, found.flatten(0, -2), wanted.flatten(0, -2), scores, wanted_scores)


class _Divergence(HandWritten):
    """Inputs: activations [n, d] of the new model and of the original, and the heads of both."""

    @staticmethod
    def plain(found: Tensor, wanted: Tensor, scores: Scores, wanted_scores: Scores) -> Tensor:
        logs, logs_wanted = scores(found).float().log_softmax(-1), wanted_scores(wanted).float().log_softmax(-1)
        return F.kl_div(logs, logs_wanted.detach(), reduction="batchmean", log_target=True)

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor, scores: Scores, wanted_scores: Scores) -> Tensor:
        total, back = found.new_zeros((), dtype=torch.float64), torch.empty_like(found)
        for start in range(0, len(found), ROWS):
            rows = slice(start, start + ROWS)
            own = found[rows].detach().requires_grad_()
            with torch.enable_grad():
                z = scores(own)
            logs, target = z.detach().float().log_softmax(-1), wanted_scores(wanted[rows]).float().log_softmax(-1)
            share = target.exp()
            # In float64: losses of a healing end at hundredths, sums of a vocabulary's terms.
            total += torch.sum(share * (target - logs), dtype=torch.float64)
            slope = logs.exp_().sub_(share).div_(len(found))
            # Computed at once: kept for the backward pass, logits would be what this is there to avoid.
            (back[rows],) = torch.autograd.grad(z, own, slope.to(z.dtype))
        keep(ctx, (found, wanted), (scores, wanted_scores), back)
        return (total / len(found)).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *_, back = ctx.saved_tensors
        return grad * back, None, None, None
