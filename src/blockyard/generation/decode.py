"""Decoding with a cache: read the prompts, then one token per row and step, and a further prompt where a row has ended.

All rows end at the last column of the cache, with padding in front of the shorter ones, so that every row's next token
stands in one column. A row that ends leaves its place to the next prompt (continuous batching, Orca, OSDI 2022). A
row's tokens are a function of its own prompt and seed: neither its neighbours nor their lengths change them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.generation.beginnings import Beginning, shared_beginnings
from blockyard.generation.reading import (
    PREFILL_CHUNK,
    Piece,
    Reader,
    check_chunk,
    check_padding,
    evaluating,
    has_cache,
    keep_last,
    pad_left,
    read,
)
from blockyard.generation.room import rows_in_memory
from blockyard.generation.sampling import Sampler, SamplingConfig
from blockyard.nn.rotary import RotaryPositionalEmbedding

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM
    from blockyard.protocol.cache import ModelCache

PastContext = Literal["slide", "stop"]
# Rows at a time unless told otherwise.
BATCH_SIZE = 64
# Prompts come in when so many places of a batch are free: read together they take less time than one by one.
FREE_SHARE = 16


class Decoder:
    """The rows still being written, their windows onto the model's context, and the cache that serves them.

    Args:
        model: a language model of this library.
        prompts: token ids, one list per row, none empty.
        sampling: how tokens are drawn.
        past_context: what happens when a row's tokens fill the trained context. "slide" keeps the last half
            of them, reads that half again from position 0 and goes on; "stop" ends the row.
        use_cache: False reads the whole window again for each token (slow; the cache's own proof).
        prefill_chunk: prompt tokens read at a time; None reads a prompt at once.
        batch_size: most rows at a time; fewer where memory does not hold their caches.
        new_tokens: the most that any row may get, for that estimate.
        note: receives a line when the context is passed, or rows have to wait for one another.

    Raises:
        InputError: for an empty or out-of-vocabulary prompt, one longer than the context under "stop", or one whose
            cache the memory would not hold.
    """

    def __init__(
        self,
        model: TransformerLM,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        past_context: PastContext = "slide",
        use_cache: bool = True,
        prefill_chunk: int | None = PREFILL_CHUNK,
        batch_size: int = BATCH_SIZE,
        new_tokens: int = 0,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        if past_context not in ("slide", "stop"):
            raise InputError(f"past_context={past_context!r} is not known; use 'slide' or 'stop'")
        at_least(1, batch_size=batch_size)
        self.model, self.past_context, self.note = model, past_context, note
        # Listed once; see `evaluating`.
        self._modules = list(model.modules())
        self.use_cache = use_cache and has_cache(model, note)
        self._chunk = check_chunk(prefill_chunk)
        # What it was trained on: positions beyond it were never seen, and few models make sense of them.
        self.context, vocabulary = model.config.context, model.config.vocab_size
        self.device = next(model.parameters()).device
        # Every prompt is checked before any is read: one bad line of a thousand is told at once.
        self.windows = [self._fit(check_prompt(prompt, vocabulary)) for prompt in prompts]
        self.sampler = Sampler(sampling)
        ropes = (module for module in self._modules if isinstance(module, RotaryPositionalEmbedding))
        self._scalings = {rope.scaling for rope in ropes if rope.scaling is not None and rope.scaling.by_length}
        lengths = [len(window) for window in self.windows]
        longest = max(lengths)
        most = min(self.context, longest + new_tokens)
        wanted = min(batch_size, len(prompts))
        self._new_tokens = new_tokens
        self._most = rows_in_memory(model, wanted, longest, most, note, self.use_cache)
        # Rows come and go one by one only in caches that can take them in, and stand beside longer ones only where a
        # mixer knows padding.
        self._joins = not self.use_cache or model.new_cache(1).joins
        together = len(set(lengths)) == 1 and self._most == len(prompts)
        self._pads = self._most == 1 or together or self._takes_padding()
        self.waiting = deque(range(len(prompts)))
        # By place in the cache; None where a row has ended.
        self._places: list[int | None] = []
        # What each row has read and written, slid out of the window or not: what "repetition" means.
        self._prompts, self._seen = prompts, dict[int, Tensor]()
        # Made with the first step: a decoder that is only asked for its seed takes no memory.
        self._cache: ModelCache | None = None
        self._reader: Reader | None = None
        self._noted = False

    @property
    def live(self) -> list[int]:
        """Rows that are being written."""
        return [row for row in self._places if row is not None]

    @property
    def tokens_read(self) -> int:
        """Tokens of prompts that went through the model so far, those of shared beginnings once."""
        return 0 if self._reader is None else self._reader.tokens

    def step(self) -> dict[int, int]:
        """Draw the next token of every live row: {row: token}."""
        logits = self._logits(self._admit())
        rows = self.live
        tokens = self.sampler.read(logits, rows, self._seen_by(rows))
        # By row and not by place: rows leave, and a caller knows them by number.
        for row, token in zip(rows, tokens):
            self.windows[row].append(token)
            if row in self._seen:
                self._seen[row][token] = True
        return dict(zip(rows, tokens))

    def full(self, row: int) -> bool:
        """Return whether the row cannot go on because its tokens fill the context and `past_context` is "stop"."""
        # Above and not at: the token that a full context predicts is still a prediction of the whole context.
        return self.past_context == "stop" and len(self.windows[row]) > self.context

    def finish(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch; their places go to others with the next step."""
        gone = set(rows)
        self._places = [None if row in gone else row for row in self._places]
        for row in gone:
            self._seen.pop(row, None)
            self.sampler.forget(row)
            # Nobody reads it again, and there may be a hundred thousand.
            self.windows[row] = []

    def skip(self, rows: Sequence[int]) -> None:
        """Take rows from those that wait to come in."""
        gone = set(rows)
        self.waiting = deque(row for row in self.waiting if row not in gone)

    def _admit(self) -> list[int]:
        """Return prompts that come in with this step."""
        live = self.live
        free = self._most - len(live)
        if live and (not self._joins or free * FREE_SHARE < self._most):
            return []
        if self._pads:
            return [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        # Side by side stand rows of one length, which advance together.
        length = len(self.windows[(live or self.waiting)[0]]) if live or self.waiting else 0
        chosen = [row for row in self.waiting if len(self.windows[row]) == length][:free]
        self.skip(chosen)
        return chosen

    def _logits(self, new: list[int]) -> Tensor:
        """Return logits [live rows, V] of each live row's next token."""
        for row in new:
            if self.sampler.config.repetition_penalty != 1:
                self._seen[row] = self._tokens_of(row)
        fresh = dict.fromkeys(new)
        for row in self.live:
            length = len(self.windows[row])
            if length > self.context:
                self._slide(row)
                fresh[row] = None
            elif any(scaling.parts(length - 1, length) for scaling in self._scalings):
                # Turned otherwise than when it was a token shorter: what the cache holds of it is of no use.
                fresh[row] = None
        if not self.use_cache:
            self._places = [*self.live, *new]
            ids, mask = pad_left([self.windows[row] for row in self.live], self.device)
            with evaluating(self._modules):
                return read(self.model, ids, None, mask=mask)[:, -1]
        if fresh and not self._joins:
            # What cannot take a row in is read again as a whole.
            fresh = dict.fromkeys((*self.live, *new))
        stay = [row for row in self.live if row not in fresh]
        pieces = self._read(list(fresh)) if fresh else []
        logits = [self._forward(stay)] if stay else []
        self._join(stay, pieces)
        return torch.cat([*logits, *(piece.logits for piece in pieces)])

    def _read(self, rows: list[int]) -> list[Piece]:
        """Read the windows of rows from their beginnings."""
        if self._reader is None:
            self._reader = Reader(self.model, self._modules, self._chunk, self._beginnings(), max(4, self._most // 4))
        texts = {row: self.windows[row] for row in rows}
        # Such a row is read as a whole: its first chunk alone would be turned as a short row.
        whole = frozenset(row for row in rows if self._by_length(row))
        return self._reader.read(texts, whole=whole, together=not self._joins)

    def _by_length(self, row: int) -> bool:
        return any(len(self.windows[row]) > scaling.original for scaling in self._scalings)

    def _beginnings(self) -> list[Beginning | None]:
        if not self._joins:
            return [None] * len(self.windows)
        return shared_beginnings([[] if self._by_length(row) else text for row, text in enumerate(self.windows)])

    def _forward(self, rows: list[int]) -> Tensor:
        """Return logits [rows, V] behind the last token of rows that the cache holds, which then holds no others."""
        assert self._cache is not None
        if self._places != rows:
            # Only what has to move does: rows from the end take the places that are free.
            kept: list[int | None] = [row if row in set(rows) else None for row in self._places]
            index = [place for place, row in enumerate(kept) if row is not None]
            ends = [place for place in index if place >= len(index)]
            index = [place if kept[place] is not None else ends.pop() for place in range(len(index))]
            self._cache.select(torch.tensor(index))
            rows[:] = [row for place in index if (row := kept[place]) is not None]
            if self._joins:
                # The longest row holds all but its last token.
                self._cache.align(max(len(self.windows[row]) for row in rows) - 1)
        lengths = [len(self.windows[row]) for row in rows]
        ids = torch.tensor([[self.windows[row][-1]] for row in rows], device=self.device)
        mask = keep_last(lengths, self._cache.length + 1, self.device)
        with evaluating(self._modules):
            return read(self.model, ids, self._cache, mask=mask)[:, -1]

    def _join(self, stay: list[int], pieces: list[Piece]) -> None:
        """Bring rows that were read into the cache, behind those that it holds."""
        self._places = [*stay, *(row for piece in pieces for row in piece.rows)]
        if not pieces:
            return
        if not stay and len(pieces) == 1:
            self._cache = pieces[0].cache
            return
        longest = max(len(self.windows[row]) for row in self.live)
        if not stay:
            self._cache = self.model.new_cache(len(self._places))
            # Room for what is read and as much again: memory that is new costs more than what is written into it.
            self._cache.reserve(longest + min(self._new_tokens, longest))
        assert self._cache is not None
        if stay:
            # Places for them, copies of the first row until they come.
            self._cache.select(torch.tensor([*range(len(stay)), *[0] * (len(self._places) - len(stay))]))
        self._cache.align(longest)
        start = len(stay)
        for piece in pieces:
            end = start + len(piece.rows)
            self._cache.put(torch.arange(start, end), piece.cache)
            start = end

    def _takes_padding(self) -> bool:
        try:
            check_padding(self.model)
        except InputError as error:
            self.note(f"{error}: only texts of equal length are written together")
            return False
        return True

    def _tokens_of(self, row: int) -> Tensor:
        """Return which tokens the prompt of a row has, bool [V]."""
        seen = torch.zeros(self.model.config.vocab_size, dtype=torch.bool, device=self.device)
        seen[torch.tensor(list(self._prompts[row]), device=self.device)] = True
        return seen

    def _seen_by(self, rows: list[int]) -> Tensor | None:
        """Return what a repetition penalty counts, bool [rows, V]; None without one."""
        return torch.stack([self._seen[row] for row in rows]) if self._seen else None

    def _fit(self, prompt: list[int]) -> list[int]:
        if len(prompt) <= self.context:
            return prompt
        if self.past_context == "stop":
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.context}; "
                "shorten it or use past_context='slide'"
            )
        self.note(f"the prompt has {len(prompt)} tokens: only the last {self.context}, the context, are read")
        # The end of it, from which the text goes on.
        return prompt[-self.context :]

    def _slide(self, row: int) -> None:
        # Half is a compromise: keeping more would slide (and read again) more often, keeping less forgets
        # more.
        keep = max(1, self.context // 2)
        self.windows[row] = self.windows[row][-keep:]
        if not self._noted:
            self._noted = True
            self.note(
                f"past the context of {self.context} tokens: going on with the last {keep} of them "
                "(past_context='stop' would end here)"
            )


def check_prompt(prompt: Sequence[int], vocabulary: int) -> list[int]:
    """Return the prompt as a list of known token ids, or InputError."""
    ids = [int(token) for token in prompt]
    if not ids:
        raise InputError("the prompt is empty; give at least one token to begin with")
    unknown = [token for token in ids if not 0 <= token < vocabulary]
    if unknown:
        raise InputError(
            f"token {unknown[0]} of the prompt is outside the model's vocabulary of {vocabulary}; "
            "was it encoded by another tokenizer?"
        )
    return ids
