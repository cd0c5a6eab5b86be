"""Reading prompts into caches: those of similar length side by side, and what they begin with alike once for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.generation.beginnings import Beginning

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM
    from blockyard.protocol.cache import ModelCache

# Prompt tokens read at a time: what a long prompt takes in memory beside its cache is that of one chunk.
# At 2,048 tokens the scores of twelve heads are 200 MB in float32; all of a long prompt would be the square of it.
PREFILL_CHUNK = 2048
# Rows are read side by side as long as padding is at most this part of what is read: on a CPU a token of a prompt costs
# the same in a pass over 100 of them and over 2,000 (135 million parameters, AMD EPYC Zen 4), so that padding is lost.
MOST_PADDING = 0.125
# Up to this many columns padding is cheaper than another pass, which reads all weights again.
SHORT = 16


def check_chunk(chunk: int | None) -> int | None:
    """Return the chunk length, or InputError below 1."""
    # 0 tokens at a time would never end.
    at_least(1, ", or none to read a prompt at once", prefill_chunk=chunk)
    return chunk


def read(
    model: TransformerLM,
    ids: Tensor,
    cache: ModelCache | None,
    *,
    mask: Tensor | None = None,
    chunk: int | None = None,
    last: int = 1,
) -> Tensor:
    """Return logits [B, last, V] of the last positions of new tokens; with a cache, long ones are read in chunks.

    Args:
        model: in eval mode, gradients off.
        ids: [B, T].
        cache: holds what came before, and receives the new tokens; None when ids are all there is.
        mask: padding mask [B, past + T].
        chunk: most tokens read at a time; None reads all at once.
        last: number of positions to score.
    """
    start, length = 0, ids.shape[1]
    # Without a cache nothing would be left of a chunk when the next one is read.
    while cache is not None and chunk is not None and length - start > max(chunk, last):
        # What is left for the end is at least as long as what is scored.
        end = min(start + chunk, length - last)
        seen = None if mask is None else mask[:, : cache.length + end - start]
        # No logits of the chunks in between: a vocabulary is wider than the model.
        model(ids[:, start:end], padding_mask=seen, cache=cache, last=0)
        start = end
    return model(ids[:, start:], padding_mask=mask, cache=cache, last=last).logits


def has_cache(model: TransformerLM, note: Callable[[str], None]) -> bool:
    """Return whether every mixer of the model has a cache; if not, the user is told what that means."""
    try:
        # Asked by trying: a mixer from elsewhere declares nothing, and an empty cache costs nothing.
        model.new_cache(1)
    except InputError as error:
        # A mixer from elsewhere may have none; its model still writes, in quadratic time.
        note(f"{error}: the whole text is read again for every token")
        return False
    return True


def check_padding(model: TransformerLM) -> None:
    """Raise the model's InputError if it cannot read rows of unequal length side by side; tried with two tokens."""
    device = next(model.parameters()).device
    with evaluating(list(model.modules())):
        cache = model.new_cache(2) if has_cache(model, lambda line: None) else None
        # Two rows, one of them shorter: the smallest batch that has padding.
        ids = torch.zeros(2, 2, dtype=torch.long, device=device)
        read(model, ids, cache, mask=torch.tensor([[0, 1], [1, 1]], device=device) > 0)


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Turn dropout and gradients off inside; every module's own mode is put back afterwards.

    Args:
        modules: all modules of a model (walking through it for every token would cost as much as a layer).
    """
    # Only those are touched: a frozen part that is in eval mode within a training model stays so.
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return (ids [B, T], padding mask [B, T] with 1 = keep, or None when no row is shorter)."""
    # On the left: the newest token of every row then stands in the last column, where one product scores them all.
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    return ids, keep_last([len(row) for row in rows], longest, device)


def keep_last(lengths: Sequence[int], columns: int, device: torch.device) -> Tensor | None:
    """Return the padding mask [B, columns] of rows that end at the last column; None where no row is shorter."""
    # No mask where none is needed: the kernels without one are faster.
    if min(lengths) >= columns:
        return None
    starts = columns - torch.tensor(lengths, device=device)
    return torch.arange(columns, device=device) >= starts[:, None]


@dataclass
class Piece:
    """Rows that were read together.

    Attributes:
        rows: their numbers.
        cache: what was read, all rows ending at the last column.
        logits: [rows, V] of their next tokens.
    """

    rows: list[int]
    cache: ModelCache
    logits: Tensor


class Reader:
    """Reads the texts of rows from their beginning.

    Args:
        model: a language model with caches.
        modules: all modules of it.
        chunk: tokens of a row read at a time; None reads a row at once.
        beginnings: what each row shares with others (`shared_beginnings`).
        keeps: most beginnings whose caches are kept at a time.

    Attributes:
        tokens: prompt tokens that went through the model so far, padding left out.
    """

    def __init__(
        self,
        model: TransformerLM,
        modules: Sequence[nn.Module],
        chunk: int | None,
        beginnings: Sequence[Beginning | None],
        keeps: int,
    ) -> None:
        self.model, self.chunk, self.tokens = model, chunk, 0
        self._modules, self._keeps = modules, keeps
        self._device = next(model.parameters()).device
        self._beginnings, self._kept = list(beginnings), list[Beginning]()

    def read(self, texts: dict[int, list[int]], *, whole: frozenset[int], together: bool = False) -> list[Piece]:
        """Return what was read of the texts, in pieces of rows that suited one another.

        Args:
            texts: by row, none empty.
            whole: rows that have to be read without chunks or a beginning that was read before.
            together: read all rows in one piece, whatever padding that takes.
        """
        if together:
            return [self._group(None, list(texts), texts, bool(whole))]
        shared: dict[int | None, list[int]] = {}
        places: dict[int | None, Beginning | None] = {None: None}
        for row in texts:
            node = None if row in whole else self._beginnings[row]
            key = None if node is None else id(node)
            places[key] = node
            shared.setdefault(key, []).append(row)
        pieces = []
        for key, rows in shared.items():
            for alone in (True, False):
                some = [row for row in rows if (row in whole) == alone]
                for group in self._alike(places[key], some, texts) if some else ():
                    pieces.append(self._group(places[key], group, texts, alone))
        for row in texts:
            self._done(row)
        return pieces

    def _alike(self, node: Beginning | None, rows: list[int], texts: dict[int, list[int]]) -> Iterator[list[int]]:
        """Yield rows that are read side by side: of similar length, so that little of it is padding."""
        past, group, tokens = 0 if node is None else node.length, list[int](), 0
        # Only where the beginning can be copied without its end may rows go on from it at different places.
        equal = node is not None and not self._held(node, texts[rows[0]]).goes_back
        for row in sorted(rows, key=lambda row: -len(texts[row])):
            new = len(texts[row]) - past
            if group:
                most = len(texts[group[0]]) - past
                area = most * (len(group) + 1)
                wasted = area - tokens - new > (0 if equal else MOST_PADDING * area)
                if (wasted and (equal or most > SHORT)) or area > (self.chunk or PREFILL_CHUNK):
                    yield group
                    group, tokens = [], 0
            group.append(row)
            tokens += new
        if group:
            yield group

    def _group(self, node: Beginning | None, rows: list[int], texts: dict[int, list[int]], whole: bool) -> Piece:
        lengths = [len(texts[row]) for row in rows]
        if node is None:
            cache, new = self.model.new_cache(len(rows)), max(lengths)
        else:
            new = max(lengths) - node.length
            # All rows are as long in what is new: a shorter text reads the end of its beginning again.
            held = [max(0, length - new) for length in lengths]
            cache = self._held(node, texts[rows[0]]).fork(torch.zeros(len(rows), dtype=torch.long), held)
        ids, _ = pad_left([texts[row][-new:] for row in rows], self._device)
        mask = keep_last(lengths, cache.length + new, self._device)
        return Piece(rows, cache, self._through(ids, cache, mask, None if whole else self.chunk, sum(lengths)))

    def _through(self, ids: Tensor, cache: ModelCache, mask: Tensor | None, chunk: int | None, most: int) -> Tensor:
        self.tokens += min(most, ids.numel())
        with evaluating(self._modules):
            return read(self.model, ids, cache, mask=mask, chunk=chunk)[:, -1]

    def _held(self, node: Beginning, text: list[int]) -> ModelCache:
        """Return the cache of a beginning of the text, read where it was not."""
        if node.cache is None:
            past = 0 if node.parent is None else node.parent.length
            if node.parent is None:
                cache = self.model.new_cache(1)
            else:
                cache = self._held(node.parent, text).fork(torch.zeros(1, dtype=torch.long))
            self._through(
                torch.tensor([text[past : node.length]], device=self._device), cache, None, self.chunk, node.length
            )
            self._keep(node)
            node.cache = cache
        return node.cache

    def _keep(self, node: Beginning) -> None:
        """Count a beginning whose cache is kept; where there are too many, an older one is forgotten."""
        path = node.path()
        self._kept = [each for each in self._kept if each.cache is not None]
        if len(self._kept) >= self._keeps:
            old = next((each for each in self._kept if each not in path), None)
            if old is not None:
                # Whoever still waits for it will read it again.
                old.cache = None
        self._kept.append(node)

    def _done(self, row: int) -> None:
        """Take a row from those that wait for its beginning: whatever it reads later begins elsewhere."""
        node, self._beginnings[row] = self._beginnings[row], None
        for each in [] if node is None else node.path():
            each.waiting -= 1
            if not each.waiting:
                each.cache = None
