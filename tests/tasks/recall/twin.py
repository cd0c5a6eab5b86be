"""Associative recall by its definition, in loops: how a row follows from what was drawn, and how likely the places are.

Zoology (arXiv 2312.04927): the pairs one after the other, `passes` times; then places of two tokens each, of which
every key takes one, in the order of the pairs. The n-th place behind the pairs is drawn in proportion to
n ** (power_a − 1), among the places that are still free. A key's value is asked where the key stands the second time.
"""

from collections.abc import Sequence
from itertools import permutations

IGNORED = -100


def row(
    keys: Sequence[int], values: Sequence[int], places: Sequence[int], fill: Sequence[int], passes: int
) -> tuple[list[int], list[int]]:
    """A row and its targets.

    Args:
        keys: of the pairs.
        values: of the pairs.
        places: of every key, which of the places behind the pairs it takes, from 0.
        fill: a token for every position, which stays where nothing else stands.
        passes: how often the pairs stand.
    """
    tokens, targets = list(fill), [IGNORED] * len(fill)
    position = 0
    for _ in range(passes):
        for key, value in zip(keys, values):
            tokens[position] = key
            tokens[position + 1] = value
            position += 2
    for key, value, place in zip(keys, values, places):
        tokens[position + 2 * place] = key
        targets[position + 2 * place] = value
    return tokens, targets


def chances(n_places: int, pairs: int, power_a: float) -> dict[tuple[int, ...], float]:
    """The probability of every way to give places to the keys, in the order of the pairs."""
    found = {}
    for places in permutations(range(n_places), pairs):
        chance, free = 1.0, list(range(n_places))
        for place in places:
            chance *= weight(place, power_a) / sum(weight(other, power_a) for other in free)
            free.remove(place)
        found[places] = chance
    return found


def weight(place: int, power_a: float) -> float:
    """How likely a place is beside others, by the power law; the first is 1 away."""
    return (place + 1) ** (power_a - 1)
