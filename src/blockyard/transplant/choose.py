"""Which layers to transplant: as many as a budget of loss allows, by measuring whole choices.

Layers tried one at a time say in which order to take them, and no more: their costs are of the size of their noise and
add up to less than the whole costs. So how many are taken is decided by measuring the first ones of that order
together, their number by halving. The text that decides is spent: report on another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.models.lm import TransformerLM
from blockyard.report.notebook import small_table
from blockyard.transplant.measure import Difference, difference, token_losses
from blockyard.transplant.model import transplant
from blockyard.transplant.moments import Moments


@dataclass(frozen=True)
class Trial:
    """A choice that was measured.

    Attributes:
        layers: those transplanted.
        cost: loss above the original's on the text that decides.
    """

    layers: tuple[int, ...]
    cost: Difference


@dataclass(frozen=True)
class LayerChoice:
    """What `choose_layers` found.

    Attributes:
        layers: those to transplant, rising.
        cost: of them together.
        alone: every layer by itself, from the cheapest to the dearest.
        together: the whole choices that were measured, in the order in which they were.
    """

    layers: tuple[int, ...]
    cost: Difference
    alone: tuple[Trial, ...]
    together: tuple[Trial, ...]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the layers, and every measurement that led to them."""
        rows = [[_listed(trial.layers), f"{trial.cost} nats per token"] for trial in (*self.together, *self.alone)]
        heading = f"Layers to transplant: {_listed(self.layers)}, at {self.cost} nats per token"
        return small_table(heading, ["layers", "loss above the original's"], rows)


def _listed(layers: Iterable[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


@torch.no_grad()
def choose_layers(
    model: TransformerLM,
    blocks: str,
    ids: Tensor,
    *,
    most_loss: float,
    layers: Iterable[int] | None = None,
    moments: Moments | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LayerChoice:
    """Find the most layers that cost no more than a budget of loss when they are transplanted together.

    Args:
        model: trained.
        blocks: the mixer, as for `transplant`.
        ids: the text that decides, token ids [pieces, length]: neither the one of the moments nor the one reported on.
        most_loss: nats per token above the original's.
        layers: candidates; None = all.
        moments: as for `transplant`.
        progress: called with the measurements done and their number at most.

    Raises:
        InputError: when not even the cheapest layer alone stays within the budget, and as `transplant` does.
    """
    depth = len(model.layers)
    candidates = list(range(depth)) if layers is None else sorted(set(layers))
    # Every layer is fitted once: a fit reads the original's moments alone, whatever stands in other layers.
    fitted = transplant(model, blocks, layers=candidates, moments=moments)
    before, most = token_losses(model, ids), len(candidates) + len(candidates).bit_length()
    done = 0

    def measured(chosen: Iterable[int]) -> Trial:
        nonlocal done
        taken = tuple(sorted(chosen))
        with _mixed(fitted, model, taken):
            trial = Trial(taken, difference(token_losses(fitted, ids), before))
        done += 1
        if progress is not None:
            progress(done, most)
        return trial

    # One at a time for an order alone: their costs are of the size of their noise.
    alone = sorted((measured([i]) for i in candidates), key=lambda trial: trial.cost.mean)
    order = [trial.layers[0] for trial in alone]
    best, together = alone[0], list[Trial]()
    if best.cost.mean > most_loss:
        raise InputError(
            f"most_loss={most_loss:g} cannot be met by {blocks}: the cheapest layer, {order[0]}, alone costs "
            f"{best.cost.mean:+.3f} nats; allow more, or ask for less of each layer"
        )
    # The most that fit, by halving: every number that is kept was measured as a whole.
    fits, beyond = 1, len(order) + 1
    while fits + 1 < beyond:
        # All first: where the budget allows every layer, one measurement says so.
        count = (fits + beyond) // 2 if together else len(order)
        trial = measured(order[:count])
        together.append(trial)
        if trial.cost.mean <= most_loss:
            fits, best = count, trial
        else:
            beyond = count
    return LayerChoice(best.layers, best.cost, tuple(alone), tuple(together))


@contextmanager
def _mixed(fitted: TransformerLM, model: TransformerLM, chosen: Iterable[int]) -> Iterator[None]:
    """Let the fitted model have its own layers where chosen, and the original's elsewhere, within it."""
    own = list(fitted.layers)
    try:
        for i, layer in enumerate(model.layers):
            fitted.layers[i] = own[i] if i in set(chosen) else layer
        yield
    finally:
        for i, layer in enumerate(own):
            fitted.layers[i] = layer
