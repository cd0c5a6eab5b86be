"""How many texts are written at a time: as many as were asked for, unless the memory would not hold their caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from blockyard.machine.memory import available_bytes, in_words, is_forced, refuse_beyond_memory

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM

# A growing cache has room for up to twice the tokens that it holds.
ROOM = 2
# Copies of the scores of every row that drawing a token makes: float64 probabilities, their sums, and what they are of.
SCORE_BYTES = 24


def cache_bytes(model: TransformerLM, tokens: int) -> int:
    """Return bytes that the cache of one row of so many tokens holds at least; 0 for a model that has none."""
    return sum(_layer_bytes(layer, tokens) for layer in model.new_cache(1))


def _layer_bytes(layer: Any, tokens: int) -> int:
    # A cache of foreign make need not tell.
    told = getattr(layer, "nbytes_of", None)
    return int(told(tokens)) if told is not None else tokens * int(getattr(layer, "bytes_per_token", 0))


def rows_in_memory(
    model: TransformerLM, wanted: int, longest: int, tokens: int, note: Callable[[str], None], use_cache: bool
) -> int:
    """Return how many rows are written at a time: those wanted, or as many as the memory holds, which is told.

    Args:
        model: a language model.
        wanted: rows at a time.
        longest: tokens of the longest prompt, as far as it is read.
        tokens: the most that a row may come to hold.
        note: receives a line when there are fewer rows than wanted.
        use_cache: whether there is a cache at all.

    Raises:
        InputError: when not even the longest prompt's cache fits.
    """
    if is_forced():
        return wanted
    device = next(model.parameters()).device
    if use_cache:
        what = f"the cache of a prompt of {longest} tokens takes at least {{}}"
        refuse_beyond_memory(cache_bytes(model, longest), what, device)
    free = available_bytes(device)
    row = SCORE_BYTES * model.config.vocab_size + (ROOM * cache_bytes(model, tokens) if use_cache else 0)
    if free is None or row * wanted <= free:
        return wanted
    rows = max(1, free // row)
    note(
        f"{rows} texts at a time instead of {wanted}: with its cache each takes up to {in_words(row)}, and "
        f"{in_words(free)} of memory are free"
    )
    return rows
