"""What a transplant costs: loss above the original's, with an interval, and whether a text is still recalled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.nn.parity import evaluating


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences.

    Attributes:
        mean: nats per token, the new model's loss above the original's.
        half: half the width of its 95 % interval, over pieces; NaN of a single one.
        tokens: tokens scored.
    """

    mean: float
    half: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.half:.3f}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the difference with its unit and what it rests on."""
        return f"<p><b>{escape(str(self))}</b> nats per token, over {self.tokens:,} tokens (95 % interval)</p>"


def pieces_of(tokens: Tensor, length: int, count: int | None = None) -> Tensor:
    """Cut tokens [n] into pieces [count, length] that do not overlap.

    Raises:
        InputError: for fewer tokens than one piece, or than `count` pieces take.
    """
    there = len(tokens) // length
    wanted = max(1, there if count is None else count)
    if there < wanted:
        raise InputError(f"the text has {len(tokens):,} tokens; {wanted} pieces of {length} take {wanted * length:,}")
    return tokens[: wanted * length].view(wanted, length)


def token_losses(model: TransformerLM, ids: Tensor) -> Tensor:
    """Return the loss of every token but the first of each piece, in nats: [pieces, length − 1]."""
    ids = ids.to(next(model.parameters()).device)
    with evaluating(model):
        return torch.stack(
            [F.cross_entropy(model(piece[None, :-1]).logits[0].float(), piece[1:], reduction="none") for piece in ids]
        )


def difference(new: Tensor, old: Tensor) -> Difference:
    """Return how much larger losses [pieces, tokens] are than those of the original on the same text."""
    return difference_over([new], [old])


def difference_over(new: Sequence[Tensor], old: Sequence[Tensor]) -> Difference:
    """Return the same over several kinds of text, each token counting alike.

    The interval is that of a stratified mean: how much the kinds differ from one another does not widen it, since which
    kinds there are is no accident.

    Args:
        new: losses by kind, [pieces, tokens] each.
        old: the original's on the same text.
    """
    tokens = sum(losses.numel() for losses in new)
    mean, variances, freedoms = 0.0, list[float](), list[int]()
    for here, there in zip(new, old, strict=True):
        # Pieces vary independently, tokens of one do not.
        each, share = (here - there).double().mean(1), here.numel() / tokens
        mean += share * float(each.mean())
        variances.append(share**2 * float(each.var()) / len(each) if len(each) > 1 else float("nan"))
        freedoms.append(len(each) - 1)
    total = sum(variances)
    if math.isnan(total):
        return Difference(mean, float("nan"), tokens)
    # Degrees of freedom of a sum of variances (Satterthwaite), those of a single one being its own.
    spread = sum(variance**2 / freedom for variance, freedom in zip(variances, freedoms))
    freedom = sum(freedoms) if spread == 0 else math.floor(total**2 / spread + 1e-9)
    return Difference(mean, _t95(freedom) * total**0.5, tokens)


def _t95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun
    26.7.5), which is too small at one and two degrees of freedom."""
    if freedom <= 2:
        return 12.7062 if freedom <= 1 else 4.3027
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def recall_losses(
    model: TransformerLM, text: Tensor, between: Tensor, first_token: int | None = None
) -> tuple[Tensor, Tensor]:
    """Test copying: a text, other text, the same text again. The mean loss hides that a model no longer recalls.

    Args:
        model: to be tested.
        text: token ids [n], read twice.
        between: token ids [m].
        first_token: what stands before everything; None for nothing.

    Returns: losses of the first and of the second copy's tokens but their first ones, [n − 1] each.
    """
    front = text.new_tensor([] if first_token is None else [first_token])
    whole = torch.cat([front, text, between, text]).to(next(model.parameters()).device)
    with evaluating(model):
        losses = F.cross_entropy(model(whole[None, :-1]).logits[0].float(), whole[1:], reduction="none")
    n, start = len(text), len(front)
    return losses[start : start + n - 1], losses[-(n - 1) :]
