"""What a search for layers is given to decide on, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from blockyard.errors import InputError
from blockyard.report.notebook import small_table
from blockyard.transplant.measure import Difference
from blockyard.transplant.record import Tried

# Of the pieces that decide, the share that is spent on an order of layers.
ORDERING = 3


@dataclass(frozen=True)
class Deciding:
    """The text that decides.

    Attributes:
        order: pieces [n, length] that layers are ordered on.
        order_kinds: the kind of each, by number.
        whole: pieces that whole choices are measured on, none of them of the others.
        whole_kinds: likewise.
    """

    order: Tensor
    order_kinds: list[int]
    whole: Tensor
    whole_kinds: list[int]

    @classmethod
    def of(cls, pieces: Tensor, kinds: Sequence[int]) -> Deciding:
        """Divide pieces [n, length], whose kinds come in turns: the first third of every kind is for the order."""
        each = min(kinds.count(kind) for kind in set(kinds))
        count = max(1, each // ORDERING) * len(set(kinds))
        if count == len(pieces):
            raise InputError(
                f"the text to choose on has {len(pieces)} piece{'s' if count > 1 else ''} of {len(set(kinds))} kinds: "
                "an order of layers takes some, and whole choices are measured on others"
            )
        return cls(pieces[:count], list(kinds[:count]), pieces[count:], list(kinds[count:]))


@dataclass(frozen=True)
class LayerChoice:
    """What a search came to.

    Attributes:
        form: what is put in.
        layers: where, rising.
        cost: of it as a whole, on the text that decided.
        trials: the whole choices that were measured, in the order in which they were.
        alone: what each layer cost by itself, on the text of the order; none where the layers were given.
        notes: what was left out, and why.
    """

    form: str
    layers: tuple[int, ...]
    cost: Difference
    trials: tuple[Tried, ...]
    alone: dict[int, Difference]
    notes: tuple[str, ...]

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was chosen, and every measurement that led to it."""
        rows = [[f"{trial.blocks} in {_listed(trial.layers)}", f"{trial.cost} nats per token"] for trial in self.trials]
        rows += [[f"layer {layer} alone", f"{cost} nats per token"] for layer, cost in self.alone.items()]
        heading = f"{self.form} in {_listed(self.layers)}, at {self.cost} nats per token"
        return small_table(heading, ["choice", "loss above the original's"], rows)


def _listed(layers: Iterable[int]) -> str:
    return f"layers {', '.join(map(str, layers))}" if layers else "no layer"
