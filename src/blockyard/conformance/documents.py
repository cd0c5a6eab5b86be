"""Checks that documents laid out in the rows of a batch are mixed as each of them alone.

A language model with `data.pack=documents` calls a mixer with documents of similar length as rows, padded at their ends
and without a mask. What a causal mixer gives is then right by construction; these checks hold it to that, the
gradients and what it keeps between two calls included.
"""

from __future__ import annotations

import torch
from torch import Tensor

from blockyard.conformance.subject import Subject, at_lengths, close
from blockyard.conformance.suite import check_of
from blockyard.conformance.training import gradients, same_gradients
from blockyard.nn.segments import Segments

# Of two rows each, which the documents fill: single tokens, equal ones, and one that fills a row.
SHORT = ((5, 1, 4, 3), (6, 6, 1))
LONG = {257: ((64, 129, 64), (256, 1)), 1031: ((512, 519), (1, 1030))}


def numbered(lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """Return the number of each position's document: int64 [rows, length]."""
    rows = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    return torch.stack(rows)


@check_of("attn", "causal")
def documents_in_a_row_give_what_they_give_alone(subject: Subject) -> str:
    mixer = subject.build(True)

    def compare(lengths: tuple[tuple[int, ...], ...]) -> None:
        x = subject.x(batch=len(lengths), length=sum(lengths[0]))
        with torch.no_grad():
            out = Segments(numbered(lengths)).apart(mixer, x)
            for row, sizes in enumerate(lengths):
                ends = torch.tensor(sizes).cumsum(0).tolist()
                for end, size in zip(ends, sizes):
                    part = slice(end - size, end)
                    what = f"the document of {size} before position {end} of row {row}"
                    close(out[row : row + 1, part], mixer(x[row : row + 1, part]), what)

    compare(SHORT)
    return at_lengths(lambda length: compare(LONG[length]))


@check_of("attn", "causal")
def gradients_of_documents_in_a_row_are_those_alone(subject: Subject) -> None:
    mixer = subject.build(True)
    segments = Segments(numbered(SHORT))

    def alone(x: Tensor) -> Tensor:
        rows = [[mixer(part) for part in row[None].split(sizes, 1)] for row, sizes in zip(x, map(list, SHORT))]
        return torch.cat([torch.cat(parts, 1) for parts in rows])

    x = subject.x(batch=len(SHORT), length=sum(SHORT[0]))
    expected = gradients(mixer.module, alone, x)
    same_gradients(gradients(mixer.module, lambda x: segments.apart(mixer, x), x), expected, "documents in a row")
