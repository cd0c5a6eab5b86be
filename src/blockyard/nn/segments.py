"""Rows that hold several documents: each is mixed as it would be alone, without one mixer knowing of it.

A causal mixer reads a row from its beginning, and what stands behind a position changes nothing there. So documents are
laid out as rows of their own, those of similar length together, each padded at its end to the longest of its group;
the mixer runs on every group as on any batch, and what it gives is put back. Positions restart, states are new and
nothing is attended to across documents because to the mixer they are different rows; it needs no mask and no kernel of
its own (attention has one for CUDA, which mixes them where they stand), and computes less: the squares of lengths add
up to less than the square of their sum. What works token by token (norms, FFNs, experts, the head) stays where it is.

    flat[s] = x[row, place],   rows[i] = flat[take[i]],   x'[s] = mixed[back[s]]

Twin in loops: tests/nn/test_segments.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.derivatives import HandWritten, hand_written, must_read
from blockyard.nn.dropout import Dropout, mix

# One call of a mixer and its backward pass cost about as much as so many tokens in it: what a group must save in
# padding to be worth its while. Between 16 and 512 the time of a step of width 256 moved by less than a tenth.
CALL_TOKENS = 48
# Length at which a token's share of attention costs about as much as its projections.
EVEN_LENGTH = 512
# Lengths that groups may have; more are rounded up to so many.
MOST_LENGTHS = 48


@dataclass(frozen=True)
class Group:
    """Documents that are mixed together.

    Args:
        count: how many.
        length: of the longest; the others are padded at their ends.
        spans: their numbers, in the order of rows and then places.
    """

    count: int
    length: int
    spans: Tensor


class Segments:
    """Which positions of a batch's rows belong together, and how they are laid out to be mixed.

    Made once for a batch and handed to every layer; `blockyard.models.TransformerLM` makes it of its argument
    `segments`.

    Args:
        numbers: integers [B, T]: neighbours in a row with the same number are one document. Below 0 is filling, which
            is no text: experts do not count it.
        alike: positions up to which a mixer computes the same in rows of any length; longer documents are mixed with
            those of their own length alone, since padding would make them longer. None for any number.

    Attributes:
        count: number of documents, filling included.
        keep: bool [B, T], false at filling; None where there is none.
        positions: places within the documents, int64 [B, T].
        groups: the documents by similar length.

    Raises:
        InputError: for numbers of another shape or type.
    """

    def __init__(self, numbers: Tensor, alike: int | None = None) -> None:
        if numbers.ndim != 2 or not numbers.numel() or numbers.is_floating_point() or numbers.dtype == torch.bool:
            raise InputError(
                f"segments is {numbers.dtype} {tuple(numbers.shape)}, expected integers [batch, length], equal within "
                "a document"
            )
        must_read(numbers, "segments decide which positions are mixed together")
        self.shape, self.alike = numbers.shape, alike
        # Counting and sorting a few hundred numbers: on a device it would wait for every one of them.
        with torch.device("cpu"):
            self._lay_out(numbers.cpu(), numbers.device)

    def _lay_out(self, read: Tensor, device: torch.device) -> None:
        """Set everything else, from the numbers on the CPU."""

        def sent(tensor: Tensor) -> Tensor:
            # Nobody waits for it to arrive.
            return tensor.to(device, non_blocking=True)

        self.keep = None if bool((read >= 0).all()) else sent(read >= 0)
        first = torch.ones_like(read, dtype=torch.bool)
        first[:, 1:] = read[:, 1:] != read[:, :-1]
        starts = first.flatten().nonzero().flatten()
        within = torch.arange(read.numel()) - starts[first.flatten().cumsum(0) - 1]
        self.positions = sent(within.view(read.shape))
        lengths = torch.diff(starts, append=torch.tensor([read.numel()]))
        self.groups = _grouped(lengths, self.alike)
        # Each row one document: there is nothing to lay out.
        self.whole = len(starts) == len(read)
        back, laid = torch.empty(read.numel(), dtype=torch.long), 0
        taken_by, filler = [], []
        for group in self.groups:
            places = torch.arange(group.length)
            begins, sizes = starts[group.spans, None], lengths[group.spans, None]
            real = places < sizes
            # Filling repeats the document's first token: a number like any other, which nothing behind it reads.
            taken = torch.where(real, begins + places, begins).flatten()
            slots = torch.arange(laid, laid + len(taken))
            back[taken[real.flatten()]] = slots[real.flatten()]
            filler.append(slots[~real.flatten()])
            taken_by.append(taken)
            laid += len(taken)
        # Slots that a mixer computes for this batch, those of padding included.
        self.laid = laid
        take = torch.cat(taken_by)
        self._take, self._back, self._filler = sent(take), sent(back), sent(torch.cat(filler))
        self.count = len(starts)
        # Where each group's documents begin: their rows, and places in these.
        length = read.shape[1]
        self._begins = [
            (sent(starts[group.spans] // length), sent(starts[group.spans] % length)) for group in self.groups
        ]

    def apart(self, mixing: Callable[..., Tensor], x: Tensor, module: nn.Module | None = None) -> Tensor:
        """Return what a causal function of rows gives for every document alone.

        Args:
            mixing: [n, L, D] -> [n, L, D'].
            x: [B, T, D].
            module: whose dropout `mixing` draws, keyed by rows of the batch until now. One that keeps documents apart
                itself, and does so fast (`takes_documents(x)`), gets the rows as they are: mixing(x, documents=self).

        Returns: [B, T, D'].
        """
        if x.shape[:2] != self.shape:
            raise InputError(f"segments has shape {tuple(self.shape)}, x has {tuple(x.shape)}")
        takes = getattr(module, "takes_documents", None)
        if takes is not None and not self.whole and takes(x):
            return mixing(x, documents=self)
        if torch.compiler.is_compiling():
            # Lengths are others in every batch: traced, each would be compiled anew.
            from blockyard.nn.uncompiled import uncompiled

            mixed: Tensor = uncompiled(self._apart, mixing, x, module)
            return mixed
        return self._apart(mixing, x, module)

    def _apart(self, mixing: Callable[[Tensor], Tensor], x: Tensor, module: nn.Module | None) -> Tensor:
        if self.whole:
            with self._keyed(module, 0):
                return mixing(x)
        rows = hand_written(_Laid, x.flatten(0, 1), self._take, self._back)
        pieces = []
        sizes = [group.count * group.length for group in self.groups]
        for number, (group, part) in enumerate(zip(self.groups, rows.split(sizes))):
            with self._keyed(module, number):
                pieces.append(mixing(part.unflatten(0, (group.count, group.length))).flatten(0, 1))
        mixed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return hand_written(_PutBack, mixed, self._take, self._back, self._filler).unflatten(0, self.shape)

    @contextmanager
    def _keyed(self, module: nn.Module | None, number: int) -> Iterator[None]:
        """Give a module's dropout a key for each document of a group, of its row's key and its place in the row."""
        # Not of the group: which documents share one depends on the rank that the row falls to. A mask of attention
        # weights depends on the group's length all the same, as it is a hash of places in a matrix of that size.
        keyed = [] if module is None else [m for m in module.modules() if isinstance(m, Dropout) and _has_keys(m)]
        before = [m.keys for m in keyed]
        try:
            for drop in keyed:
                assert drop.keys is not None
                rows, places = self._begins[number]
                drop.keys = mix(drop.keys[rows] ^ mix(places))
            yield
        finally:
            for drop, keys in zip(keyed, before):
                drop.keys = keys


def _has_keys(drop: Dropout) -> bool:
    return drop.training and drop.p > 0 and drop.keys is not None


def _grouped(lengths: Tensor, alike: int | None) -> list[Group]:
    """Return the documents in groups of similar length, so that padding and calls together cost least; those longer
    than `alike` in groups of one length."""
    order = torch.argsort(lengths, descending=True, stable=True)
    distinct, counts = (found.flip(0) for found in torch.unique(lengths, return_counts=True))
    longest, numbers = distinct.tolist(), counts.tolist()
    alone = 0 if alike is None else sum(length > alike for length in longest)
    if len(longest) - alone > MOST_LENGTHS:
        coarse, many = _coarser(longest[alone:], numbers[alone:])
        longest, numbers = longest[:alone] + coarse, numbers[:alone] + many
    cuts = [(place, place + 1) for place in range(alone)]
    cuts += [(alone + first, alone + end) for first, end in cheapest_cuts(longest[alone:], numbers[alone:])]
    groups, at = [], 0
    for first, end in cuts:
        count = sum(numbers[first:end])
        groups.append(Group(count, longest[first], order[at : at + count].sort().values))
        at += count
    return groups


def _coarser(longest: Sequence[int], numbers: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return lengths, longest first, and how many documents have each, rounded up to at most `MOST_LENGTHS` of them."""
    step = -(-(longest[0] - longest[-1] + 1) // MOST_LENGTHS)
    lengths: list[int] = []
    counts: list[int] = []
    for length, number in zip(longest, numbers):
        if lengths and lengths[-1] - length < step:
            counts[-1] += number
        else:
            lengths.append(length)
            counts.append(number)
    return lengths, counts


def cheapest_cuts(lengths: Sequence[int], counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the groups, as (first, end) of the lengths, whose cost is least: exactly, by dynamic programming.

    Args:
        lengths: different ones, longest first.
        counts: how many documents have each.
    """
    size = len(lengths)
    # best[i]: the least cost of all documents from the i-th length on, and where their first group ends.
    best: list[tuple[float, int]] = [(0.0, size)] * (size + 1)
    for first in range(size - 1, -1, -1):
        each, held, found = lengths[first] * (1 + lengths[first] / EVEN_LENGTH), 0, (float("inf"), size)
        for end in range(first + 1, size + 1):
            held += counts[end - 1]
            cost = held * each + CALL_TOKENS + best[end][0]
            if cost < found[0]:
                found = (cost, end)
        best[first] = found
    cuts, at = [], 0
    while at < size:
        cuts.append((at, best[at][1]))
        at = best[at][1]
    return cuts


class _Laid(HandWritten):
    """Tokens [N, D] as rows [S, D]. What filling gives back is exactly 0, since no output of a document depends on
    what stands behind it; so the backward pass is a gathering, too, and need not add up."""

    differentiable = True

    @staticmethod
    def forward(ctx: Any, flat: Tensor, take: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return flat.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back), None, None

    @staticmethod
    def plain(flat: Tensor, take: Tensor, back: Tensor) -> Tensor:
        return flat.index_select(0, take)


class _PutBack(HandWritten):
    """Rows [S, D] as tokens [N, D]; nothing goes back to filling."""

    differentiable = True

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, take: Tensor, back: Tensor, filler: Tensor) -> Tensor:
        ctx.save_for_backward(take, filler)
        return mixed.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        take, filler = ctx.saved_tensors
        rows = grad.index_select(0, take)
        # In place, but where a graph of the gradients is wanted.
        fill = rows.index_fill if torch.is_grad_enabled() else rows.index_fill_
        return fill(0, filler, 0), None, None, None

    @staticmethod
    def plain(mixed: Tensor, take: Tensor, back: Tensor, filler: Tensor) -> Tensor:
        return mixed.index_select(0, back)
