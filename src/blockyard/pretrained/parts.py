"""How a family keeps its weights: which of its modules are which of ours, as data that reads and writes alike.

A part names a module of theirs and one or more of ours, with {i} for the number of a layer. What is fused in theirs is
one matrix whose rows are cut: one after another (`rows`), or within every head (`heads`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from blockyard.models.lm import LMConfig
from blockyard.multihead.fields import Fields

Form = Literal["rows", "heads"]


@dataclass(frozen=True)
class Part:
    """One module of theirs.

    Args:
        theirs: its name, below the family's prefix; a leading "/" means from the top.
        ours: modules, or parameters, that it holds.
        form: how several lie in it.
        turned: whether its matrices are stored [in, out].
        beside: a module that our model has to have for it, or, with "not " in front, must not have.
    """

    theirs: str
    ours: tuple[str, ...]
    form: Form = "rows"
    turned: bool = False
    beside: str = ""


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts, which the wing of mixtures reads and writes.

    Args:
        theirs: prefixes that it may have: the checkpoint's first, then those of a model in memory.
        ours: our module.
        model: what the wing calls it (`moe.weights.FAMILIES`).
        experts: the names of an expert's three matrices in a checkpoint, gate, up and down.
    """

    theirs: tuple[str, ...]
    ours: str
    model: str
    experts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """Models that are read alike.

    Args:
        name: its name.
        types: their `model_type`s.
        architecture: the class that a checkpoint names.
        prefix: of all keys but the head's.
        read: the configuration in our terms.
        parts: where the weights are; a part that our model has no module for is left out.
        derived: ends of keys that hold what follows from the configuration.
        more_layers: whether checkpoints hold layers beyond the model's, which predict further tokens in training.
        heads: modules that the output matrix may be: the checkpoint's, and the model's in memory.
    """

    name: str
    types: tuple[str, ...]
    architecture: str
    prefix: str
    read: Callable[[Fields], LMConfig]
    parts: Sequence[Part]
    mixtures: Sequence[Mixture] = ()
    derived: tuple[str, ...] = ("rotary_emb.inv_freq",)
    more_layers: bool = False
    heads: tuple[str, ...] = ("lm_head",)


def one(theirs: str, ours: str, *, turned: bool = False) -> Part:
    """Return a module that is one of ours."""
    return Part(theirs, (ours,), turned=turned)


def cut(part: Part, whole: Tensor, shapes: Sequence[tuple[int, ...]], heads: int) -> list[Tensor]:
    """Return a tensor of theirs as those of ours.

    Args:
        part: what it is.
        whole: theirs, a weight or a bias.
        shapes: of ours.
        heads: number of heads.

    Raises:
        RuntimeError, ValueError: when the sizes do not go together.
    """
    # Biases have no direction.
    if part.turned and whole.ndim == 2:
        whole = whole.mT
    if len(shapes) == 1:
        return [whole]
    # The heads of queries and keys are as many here: no family fuses grouped heads in this way.
    if part.form == "heads":
        # [heads, rows of a head, …]: what belongs to one head lies together in theirs.
        each = whole.unflatten(0, (heads, -1))
        sizes = [rows_of(shape) // heads for shape in shapes]
        return [piece.reshape(shape) for piece, shape in zip(each.split(sizes, dim=1), shapes)]
    return list(whole.split([shape[0] for shape in shapes]))


def rows_of(shape: tuple[int, ...]) -> int:
    """Return rows of a matrix, or of the matrices of all heads [heads, rows, in] together."""
    return shape[0] * shape[1] if len(shape) == 3 else shape[0]


def joined(part: Part, ours: Sequence[Tensor], heads: int) -> Tensor:
    """Join tensors of ours to the one of theirs: `cut` the other way."""
    if len(ours) == 1:
        whole = ours[0]
    elif part.form == "heads":
        whole = torch.cat(
            [t.flatten(0, 1).unflatten(0, (heads, -1)) if t.ndim == 3 else t.unflatten(0, (heads, -1)) for t in ours],
            dim=1,
        )
        whole = whole.flatten(0, 1)
    else:
        whole = torch.cat(list(ours))
    return whole.mT.contiguous() if part.turned and whole.ndim == 2 else whole.contiguous()
