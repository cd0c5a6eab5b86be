"""Decoding with a cache: read the prompts once, then one token per row and step.

Rows of different length are padded on the left, so that every row's next token stands in the last column. A
row's tokens are a function of its own prompt and seed: neither its neighbours nor their lengths change them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.generation.sampling import Sampler, SamplingConfig
from blockyard.nn.rotary import RotaryPositionalEmbedding

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM
    from blockyard.protocol.cache import ModelCache

PastContext = Literal["slide", "stop"]
# Prompt tokens read at a time: what a long prompt takes in memory beside its cache is that of one chunk.
PREFILL_CHUNK = 2048


def check_chunk(chunk: int | None) -> int | None:
    """The chunk length, or InputError below 1."""
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
    """Logits [B, last, V] of the last positions of new tokens; with a cache, long ones are read in chunks.

    Args:
        model: in eval mode, gradients off.
        ids: [B, T].
        cache: holds what came before, and receives the new tokens; None when ids are all there is.
        mask: padding mask [B, past + T].
        chunk: most tokens read at a time; None reads all at once.
        last: number of positions to score.
    """
    start, length = 0, ids.shape[1]
    while cache is not None and chunk is not None and length - start > max(chunk, last):
        # What is left for the end is at least as long as what is scored.
        end = min(start + chunk, length - last)
        seen = None if mask is None else mask[:, : cache.length + end - start]
        model(ids[:, start:end], padding_mask=seen, cache=cache, last=0)
        start = end
    return model(ids[:, start:], padding_mask=mask, cache=cache, last=last).logits


def has_cache(model: TransformerLM, note: Callable[[str], None]) -> bool:
    """Return whether every mixer of the model has a cache; if not, the user is told what that means."""
    try:
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
        ids = torch.zeros(2, 2, dtype=torch.long, device=device)
        read(model, ids, cache, mask=torch.tensor([[0, 1], [1, 1]], device=device) > 0)


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Dropout off and gradients off inside; every module's own mode is put back afterwards.

    Args:
        modules: all modules of a model (walking through it for every token would cost as much as a layer).
    """
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
    """(ids [B, T], padding mask [B, T] with 1 = keep, or None when no row is shorter)."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
    if min(map(len, rows)) == longest:
        return ids, None
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) >= longest - lengths[:, None]


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
        note: receives a line when the context is passed.

    Raises:
        InputError: for an empty or out-of-vocabulary prompt, or one longer than the context under "stop".
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
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        if past_context not in ("slide", "stop"):
            raise InputError(f"past_context={past_context!r} is not known; use 'slide' or 'stop'")
        self.model, self.past_context, self.note = model, past_context, note
        self._modules = list(model.modules())
        self.use_cache = use_cache and has_cache(model, note)
        self._chunk = check_chunk(prefill_chunk)
        self.context, vocabulary = model.config.context, model.config.vocab_size
        self.device = next(model.parameters()).device
        self.windows = [self._fit(check_prompt(prompt, vocabulary)) for prompt in prompts]
        self.live = list(range(len(prompts)))
        self.sampler = Sampler(sampling, len(prompts))
        # Everything a row has read and written, slid out of the window or not: what "repetition" means.
        self._seen = torch.zeros(len(prompts), vocabulary, dtype=torch.bool, device=self.device)
        for row, prompt in enumerate(prompts):
            self._seen[row, torch.tensor(list(prompt), device=self.device)] = True
        self._cache: ModelCache | None = None
        self._mask: Tensor | None = None
        self._noted = False
        ropes = (module for module in self._modules if isinstance(module, RotaryPositionalEmbedding))
        self._scalings = {rope.scaling for rope in ropes if rope.scaling is not None and rope.scaling.by_length}

    def step(self) -> dict[int, int]:
        """Draw the next token of every live row: {row: token}."""
        logits = self._logits()
        live = torch.tensor(self.live, device=self.device)
        tokens = self.sampler(logits, self.live, self._seen[live])
        self._seen[live, tokens] = True
        drawn = dict(zip(self.live, tokens.tolist()))
        for row, token in drawn.items():
            self.windows[row].append(token)
        return drawn

    def full(self, row: int) -> bool:
        """Return whether the row cannot go on because its tokens fill the context and `past_context` is "stop"."""
        return self.past_context == "stop" and len(self.windows[row]) > self.context

    def finish(self, rows: Sequence[int]) -> None:
        """Take rows out of the batch."""
        keep = [place for place, row in enumerate(self.live) if row not in rows]
        if len(keep) == len(self.live):
            return
        self.live = [self.live[place] for place in keep]
        index = torch.tensor(keep, dtype=torch.long, device=self.device)
        if self._cache is not None and keep:
            self._cache.select(index)
        if self._mask is not None:
            self._mask = self._mask[index]

    def _logits(self) -> Tensor:
        """Logits [live rows, V] of each live row's next token."""
        slid = [row for row in self.live if len(self.windows[row]) > self.context]
        for row in slid:
            self._slide(row)
        if self._cache is None or slid or any(self._parts(len(self.windows[row])) for row in self.live):
            return self._read()
        ids = torch.tensor([self.windows[row][-1:] for row in self.live], device=self.device)
        return self._forward(ids, self._cache.length + 1)

    def _read(self) -> Tensor:
        """Read all live windows from their beginning, into a new cache."""
        ids, mask = pad_left([self.windows[row] for row in self.live], self.device)
        # Nothing is padded after the prompts: one mask with room for the whole context serves every step.
        room = self.context + 1 - ids.shape[1]
        self._mask = None if mask is None else F.pad(mask, (0, room), value=True)
        self._cache = self.model.new_cache(len(self.live)) if self.use_cache else None
        return self._forward(ids, ids.shape[1])

    def _parts(self, length: int) -> bool:
        """Return whether a row of this length is turned otherwise than when it was a token shorter, so that what its
        cache holds is of no use."""
        return any(scaling.parts(length - 1, length) for scaling in self._scalings)

    def _forward(self, ids: Tensor, length: int) -> Tensor:
        mask = None if self._mask is None else self._mask[:, :length]
        # Such a row is read as a whole: its first chunk alone would be turned as a short row.
        whole = any(length > scaling.original for scaling in self._scalings)
        with evaluating(self._modules):
            return read(self.model, ids, self._cache, mask=mask, chunk=None if whole else self._chunk)[:, -1]

    def _fit(self, prompt: list[int]) -> list[int]:
        if len(prompt) <= self.context:
            return prompt
        if self.past_context == "stop":
            raise InputError(
                f"the prompt has {len(prompt)} tokens and the model's context is {self.context}; "
                "shorten it or use past_context='slide'"
            )
        self.note(f"the prompt has {len(prompt)} tokens: only the last {self.context}, the context, are read")
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
    """The prompt as a list of known token ids, or InputError."""
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
