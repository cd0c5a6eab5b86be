"""Whether an exported file gives what the model gives, at batches and lengths that were not traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.export.graph import Scorer

# Of the largest logit, in float32: sums in other orders are some 1e-6 apart after dozens of layers.
TOLERANCE = 1e-5
# Rows and lengths: windows and chunks of kernels are met from both sides.
SHAPES = ((1, 1), (3, 7), (2, 33), (1, 300))

Run = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Parity:
    """Two logits of the same random tokens.

    Args:
        reader: what read the file.
        largest: the largest difference.
        size: the largest logit.
        lengths: of the rows that were compared.
    """

    reader: str
    largest: float
    size: float
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        *others, last = map(str, self.lengths)
        at = f"{', '.join(others)} and {last}" if others else last
        return (
            f"read again by {self.reader}: logits at lengths {at} differ by {self.largest:.2g} at most, of "
            f"± {self.size:.3g}"
        )


def compare(scorer: Scorer, run: Run, reader: str) -> Parity:
    """Compare logits, the largest difference over all with the largest logit.

    Args:
        scorer: what was exported, in float32.
        run: the file, on inputs.
        reader: its name.

    Raises:
        InputError: when they differ by more than rounding, or are not finite.
    """
    most = scorer.longest or max(length for _, length in SHAPES)
    shapes = dict.fromkeys((rows, min(length, most)) for rows, length in SHAPES)
    largest = size = 0.0
    with torch.no_grad():
        for seed, (rows, length) in enumerate(shapes, start=1):
            inputs = scorer.example(rows, length, seed)
            expected, found = scorer(*inputs), run(inputs)
            if expected.shape != found.shape or not bool(torch.isfinite(expected).all()):
                raise InputError(
                    f"logits are {tuple(found.shape)} by {reader} and {tuple(expected.shape)} here, or not finite"
                )
            # What is not finite there is no number to compare.
            largest = max(largest, float((found - expected).abs().nan_to_num(nan=torch.inf).max()))
            size = max(size, float(expected.abs().max()))
    parity = Parity(reader, largest, size, tuple(dict.fromkeys(length for _, length in shapes)))
    if not largest <= TOLERANCE * size:
        raise InputError(f"the file computes another function than the model, and is not kept: {parity}")
    return parity
