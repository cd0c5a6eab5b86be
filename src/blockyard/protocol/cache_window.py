"""The cache of a sliding window: tokens that nothing will look at again are dropped.

A window of W lets a new token see itself and the W − 1 before it. The cache holds those and `slack` tokens more, so
that decoding can go back a little (rejected drafts, snapshots); going back further is refused. Positions stay those
of the whole text. Tokens are dropped in blocks: the buffer has twice the room, and when it is full the part still
held moves to its front, so that a token is copied about once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.protocol.cache import LayerCache

# A draft proposes at most a few dozen tokens, and going back over them is what slack is for.
SLACK = 64


class WindowCache(LayerCache):
    """A `LayerCache` that holds the last `window - 1 + slack` tokens; `length` still counts all that were seen.

    `append` returns the part that the new tokens can see, at most `window - 1` older tokens in front of them.

    Args:
        batch: number of sequences.
        slots: name -> shape per token, as for `LayerCache`.
        window: tokens that a new token sees, itself included.
        slack: tokens held beyond the window, to crop and roll back over.
        max_len: tokens that may be seen in all; None for any number.
        dtype: floating type of the stored tensors.
        device: where they live.

    Raises:
        InputError: for a window below 1 or a negative slack, and as `LayerCache` says.
    """

    joins = True

    def __init__(
        self,
        batch: int,
        slots: Mapping[str, tuple[int, ...]],
        *,
        window: int,
        slack: int = SLACK,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if window < 1 or slack < 0:
            raise InputError(f"window={window} should be at least 1, and slack={slack} at least 0")
        # Slack is a promise, not a cache of its own: what lies in it may be gone back over, no more.
        self.window, self.slack = window, slack
        self.most = max(1, window - 1 + slack)  # tokens held at most, between two calls
        self._start = 0  # position of the first token held
        self._base = 0  # position of the token at the buffers' index 0; never behind _start
        super().__init__(batch, slots, max_len=max_len, dtype=dtype, device=device)

    @property
    def held(self) -> int:
        return self.length - self._start

    @property
    def goes_back(self) -> bool:
        return False

    def _stored(self) -> slice:
        return slice(self._start - self._base, self.length - self._base)

    def _seen_from(self, position: int) -> int:
        """Return the first position that a token at `position` sees."""
        return max(0, position - self.window + 1)

    def _store(self, tensors: Mapping[str, Tensor], new: int) -> tuple[Tensor, ...]:
        self.check_reserve(new)
        first, end = self._seen_from(self.length), self.length + new
        # A prompt longer than the window: most of it would be dropped before anything else is read.
        if new >= self.most:
            shown = self._pass_through(tensors, first, end)
        else:
            self.reserve(new)
            for name, tensor in tensors.items():
                self._buffers[name][..., self.length - self._base : end - self._base, :] = tensor
            shown = tuple(self._buffers[name][..., first - self._base : end - self._base, :] for name in tensors)
        self.length = end
        # Dropped by moving a number; the tokens themselves go when the buffer is full.
        self._start = max(self._start, end - self.most)
        return shown

    def _pass_through(self, tensors: Mapping[str, Tensor], first: int, end: int) -> tuple[Tensor, ...]:
        """Return a chunk longer than what is held: it is shown as it came, behind what it can see, and its end is
        kept."""
        past = slice(first - self._base, self.length - self._base)
        shown = dict(tensors)
        if first < self.length:
            # The one copy of a long piece: its first tokens look back at the past.
            shown = {n: torch.cat([self._buffers[n][..., past, :], t], dim=-2) for n, t in tensors.items()}
        self._start = self._base = self.length = end - self.most
        self.reserve(self.most)
        for name, tensor in tensors.items():
            self._buffers[name][..., : self.most, :] = tensor[..., -self.most :, :]
        return tuple(shown[name] for name in tensors)

    def _make_room(self, new: int) -> None:
        new = min(new, self.most)
        # Twice what is held: the part still held moves once per `most` tokens, one copy per token.
        end, room = self.length + new, 2 * self.most
        if end - self._base > room:
            self._drop(min(self._seen_from(self.length), end - self.most))
        needed = end - self._base
        if needed > self.capacity or not self._buffers:
            self._allocate(self._grown(needed))

    def _drop(self, before: int) -> None:
        """Forget tokens in front of position `before`, which moves to the front of the buffers."""
        before = max(before, self._start)
        source = slice(before - self._base, self.length - self._base)
        for buffer in self._buffers.values():
            part = buffer[..., source, :]
            # A copy first where the two places overlap.
            overlap = source.start < part.shape[-2]
            buffer[..., : part.shape[-2], :] = part.clone() if overlap else part
        self._start = self._base = before

    def _allocate(self, capacity: int) -> None:
        super()._allocate(min(capacity, 2 * self.most))

    def nbytes_of(self, tokens: int) -> int:
        return min(tokens, self.most) * self.bytes_per_token

    def _shift(self, columns: int) -> None:
        held, stored = self.held, self._stored()
        self.length, self._base = self.length + columns, self._base + columns
        # Of what is dropped in front a part may still be held.
        self._start = max(0, self._start + columns)
        missing = min(self.most, self.length) - held
        if columns > 0 and missing > 0:
            # What the next token's window shows has to be there, padding or not.
            if missing > stored.start or not self._buffers:
                needed = missing + held
                capacity = self._capacity if needed <= self._capacity else min(self._grown(needed), 2 * self.most)
                made = self._made(self.batch, capacity)
                for name, buffer in self._buffers.items():
                    made[name][..., missing:needed, :] = buffer[..., stored, :]
                self._hold(made, capacity)
                self._base = self._start - missing
            self._start -= missing
            for buffer in self._buffers.values():
                buffer.narrow(-2, self._start - self._base, missing).zero_()
        if not self.length:
            self._start = self._base = 0

    def _put(self, rows: Tensor, source: Self) -> None:
        super()._put(rows, source)
        if source._start:
            # No row goes back further than each of them can.
            self._start = max(self._start, self.length - source.held)

    def check_crop(self, length: int) -> None:
        """Raise InputError unless `crop(length)` can be done: all that the next token sees should still be held."""
        super().check_crop(length)
        # Refused, not answered with what is left: the next token would attend to fewer tokens than its window has,
        # silently.
        if length and self._start > self._seen_from(length):
            raise InputError(
                f"crop({length}): of {self.length} tokens this cache holds the last {self.held} "
                f"(window={self.window}); it can go back to {self._start + self.window - 1}, or to 0"
            )

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on.

        Raises:
            InputError: when `length` is negative or beyond what was seen, or so far back that tokens which the next
                one would see are no longer held. Nothing is changed then.
        """
        super().crop(length)
        if length == 0:
            self._start = self._base = 0

    def reset(self) -> None:
        super().reset()
        self._start = self._base = 0
