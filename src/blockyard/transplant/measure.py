"""What a transplant costs: loss above the original's, with an interval, and whether a text is still recalled."""

from __future__ import annotations

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
    with evaluating(model):
        return torch.stack(
            [F.cross_entropy(model(piece[None, :-1]).logits[0].float(), piece[1:], reduction="none") for piece in ids]
        )


def difference(new: Tensor, old: Tensor) -> Difference:
    """Return how much larger losses [pieces, tokens] are than those of the original on the same text."""
    each = (new - old).double().mean(1)
    half = float("nan")
    if len(each) > 1:
        # Pieces vary independently, tokens of one do not.
        half = _t95(len(each) - 1) * float(each.std()) / len(each) ** 0.5
    return Difference(float(each.mean()), half, new.numel())


def _t95(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, by its expansion around the normal's (Abramowitz and Stegun
    26.7.5)."""
    z = 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def recall_losses(model: TransformerLM, text: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """Test copying: a text, other text, the same text again. The mean loss hides that a model no longer recalls.

    Args:
        model: to be tested.
        text: token ids [n], read twice.
        between: token ids [m].

    Returns: losses of the first and of the second copy's tokens but their first ones, [n − 1] each.
    """
    whole = torch.cat([text, between, text])
    with evaluating(model):
        losses = F.cross_entropy(model(whole[None, :-1]).logits[0].float(), whole[1:], reduction="none")
    n = len(text)
    return losses[: n - 1], losses[-(n - 1) :]
