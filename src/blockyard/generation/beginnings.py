"""Beginnings that prompts share: found once for all of them, read once, and copied to the rows that go on from them.

Prompts are sorted, so that those that share a beginning stand side by side; how much two neighbours have in common then
gives the tree of all beginnings (the intervals of a suffix array). The last token of a prompt is never part of one: it
is read in any case, since it predicts the first new token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blockyard.protocol.cache import ModelCache

# Tokens that reading a beginning by itself should save at least. It is a pass of one row, whose weights come from
# memory for it alone: with 135 million parameters that costs what 10 to 20 tokens cost in company (AMD EPYC Zen 4).
LEAST_SAVED = 32


@dataclass(eq=False)
class Beginning:
    """Tokens that several prompts begin with.

    Attributes:
        length: how many.
        parent: the beginning of this one that further prompts share.
        waiting: prompts with this beginning that are still to be read.
        cache: what reading it gave, of one row; None before, and when nobody waits for it any more.
    """

    length: int
    parent: Beginning | None
    waiting: int = 0
    cache: ModelCache | None = None

    def path(self) -> list[Beginning]:
        """Return the beginnings that this one begins with, itself first."""
        found, node = [], self
        while node is not None:
            found.append(node)
            node = node.parent  # type: ignore[assignment]
        return found


def shared_beginnings(prompts: Sequence[Sequence[int]], least: int = LEAST_SAVED) -> list[Beginning | None]:
    """Return for every prompt the longest beginning that it shares with others, None where it pays for none.

    Args:
        prompts: token ids; an empty one shares nothing.
        least: tokens that a beginning should save, by as many prompts as share it, beside those that it begins with.
    """
    keys = [list(prompt[:-1]) for prompt in prompts]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [in_common(keys[one], keys[other]) for one, other in pairwise(order)]
    deepest: list[Beginning | None] = [None] * len(keys)
    made: list[Beginning] = []
    # Beginnings that the present prompt has, each longer than the one before it.
    open_: list[Beginning] = []
    for place, prompt in enumerate(order):
        before = common[place - 1] if place else 0
        after = common[place] if place < len(common) else 0
        closed = None
        while open_ and open_[-1].length > before:
            closed = open_.pop()
        for length in (before, after):
            if length > (open_[-1].length if open_ else 0):
                open_.append(Beginning(length, open_[-1] if open_ else None))
                made.append(open_[-1])
                if closed is not None and length == before:
                    # Between the one that has ended and what it began with.
                    closed.parent = open_[-1]
        if open_:
            deepest[prompt] = open_[-1]
    for node in deepest:
        for each in [] if node is None else node.path():
            each.waiting += 1
    paying = _paying(made, least)
    return [None if node is None else paying[id(node)] for node in deepest]


def _paying(made: list[Beginning], least: int) -> dict[int, Beginning | None]:
    """Return for each beginning the longest part of it that pays."""
    paying: dict[int, Beginning | None] = {}
    # From short to long: a parent is decided before its children.
    for node in sorted(made, key=lambda node: node.length):
        parent = None if node.parent is None else paying[id(node.parent)]
        saved = (node.waiting - 1) * (node.length - (0 if parent is None else parent.length))
        node.parent, paying[id(node)] = parent, node if saved >= least else parent
    return paying


def in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two texts begin with alike."""
    low, high = 0, min(len(one), len(other))
    # By halves, comparing slices: a loop over tokens would be Python's.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
