"""The cache of a mixer whose memory is bounded: a small state, and where it wants them the ring of its last values.

It obeys the protocol of `LayerCache` with one difference: its past cannot be cut at any length, because the state of
that moment is gone. It crops to where a snapshot was taken (and is still held), to where it is, and to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.protocol.cache_base import Cache, Snapshot, sent


class RingSnapshot(Snapshot):
    """A point to roll back to. It shares the cache's tensors, which are copied once when next written to."""

    def __init__(self, length: int, ring: Tensor, counts: Tensor, state: dict[str, Tensor]) -> None:
        super().__init__(length)
        self.ring, self.counts, self.state = ring, counts, state


class RingCache(Cache[RingSnapshot]):
    """Named state tensors, and the last `window` values of every sequence, `[batch, width, ≤ window]`.

    Rows count their own tokens: padding is never stored, and token number n of a row lies in slot n mod window. A mixer
    with a state alone leaves width and window out, and says by `advance` how many tokens it has read.

    Args:
        batch: number of sequences.
        width: numbers per token; 0 = no ring.
        window: tokens that are kept, 0 without a ring; the ring doubles until it has that size.
        derived: names of the state's entries that follow from the others: an owner that misses one makes it anew.
        max_len: most tokens that will be written; None = any number.
        dtype: floating type of the ring (default: torch's default dtype).
        device: where it lives.

    Attributes:
        length: tokens seen, padding included.
        counts: tokens stored so far per row, int64 [batch], on the CPU.
        state: name -> tensor [batch, ...]; the owner replaces entries and never writes into them.

    Raises:
        InputError: for a batch or `max_len` below 1, or a width or window below 1 where the other is not 0.
    """

    joins = True

    def __init__(
        self,
        batch: int,
        width: int = 0,
        window: int = 0,
        *,
        derived: Sequence[str] = (),
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(batch, max_len, dtype, device)
        if (width, window) != (0, 0) and min(width, window) < 1:
            raise InputError(f"width={width} and window={window} should be at least 1, or both 0 for a state alone")
        # Neither is a state alone: a causal filter that is a recurrence keeps sums and no values.
        self.width, self.window, self.derived = width, window, tuple(derived)
        self._clear()
        if max_len is not None:
            self._grow(max_len)

    def _clear(self) -> None:
        # On the CPU whatever the device: they decide slots and branches, and asking an accelerator would wait for it.
        self.counts = torch.zeros(self.batch, dtype=torch.int64, device="cpu")
        self.state: dict[str, Tensor] = {}
        self.ring = torch.zeros(self.batch, self.width, 0, dtype=self.dtype, device=self.device)
        self._shared = False

    @property
    def capacity(self) -> int:
        return self.ring.shape[2]

    @property
    def uniform(self) -> bool:
        """Whether all rows have stored the same number of tokens."""
        return bool((self.counts == self.counts[0]).all())

    def write(self, values: Tensor, new: Tensor | None = None, seen: int | None = None) -> None:
        """Store new tokens and advance.

        Args:
            values: [batch, width, T], a row's real tokens first.
            new: how many of a row's T are real, int64 [batch] on the CPU; None = all.
            seen: tokens by which `length` advances: those of the piece before its padding was taken out; None = T.

        Raises:
            InputError: for a wrong shape, an overflow of `max_len`, or values that require grad.
        """
        if values.ndim != 3 or values.shape[:2] != (self.batch, self.width):
            raise InputError(
                f"cache.write got shape {tuple(values.shape)}, expected ({self.batch}, {self.width}, new) "
                "[batch, width, new]"
            )
        # Gradient first, room next, and only then is anything written.
        self.refuse_gradient(values)
        tokens = values.shape[2]
        # Before anything is stored: a cache that refuses is left as it was.
        self.check_reserve(tokens if seen is None else seen)
        if self.width:
            self._store(values, new)
        self._count(tokens, new, seen)

    def advance(self, tokens: int, new: Tensor | None = None, seen: int | None = None) -> None:
        """Count tokens that were read into the state; `write` does it for those that it stores.

        Args:
            tokens: how many of each row.
            new: how many of a row's are real, int64 [batch] on the CPU; None = all.
            seen: tokens by which `length` advances, as for `write`; None = `tokens`.

        Raises:
            InputError: for an overflow of `max_len`.
        """
        self.check_reserve(tokens if seen is None else seen)
        self._count(tokens, new, seen)

    def _count(self, tokens: int, new: Tensor | None, seen: int | None) -> None:
        self.counts = self.counts + (tokens if new is None else new)
        self.length += tokens if seen is None else seen

    def _store(self, values: Tensor, new: Tensor | None) -> None:
        tokens = values.shape[2]
        self._make_room(tokens)
        if self._shared:
            # A snapshot holds these values. (A copy made inside inference_mode could not be written to outside of it.)
            with torch.inference_mode(False):
                self.ring, self._shared = self.ring.clone(), False
        values = values.to(self.dtype)
        # Rows in step share a slot: one copy for the batch in place of one for each row.
        if new is None and self.uniform:
            self._write_rows(slice(None), values, int(self.counts[0]))
        elif tokens == 1:
            self._write_one(values, torch.ones_like(self.counts) if new is None else new)
        else:
            for row in range(self.batch):
                size = tokens if new is None else int(new[row])
                self._write_rows(slice(row, row + 1), values[row : row + 1, :, :size], int(self.counts[row]))

    def _write_rows(self, rows: slice, values: Tensor, at: int) -> None:
        """Write values [rows, width, n] as tokens number `at` and on."""
        capacity = self.capacity
        if values.shape[2] > capacity:
            # Of more values than there are slots the last ones stay; the others would be overwritten in the same call.
            at += values.shape[2] - capacity
            values = values[..., -capacity:]
        slot = at % capacity
        # In two parts where the ring's end lies between them.
        fits = min(values.shape[2], capacity - slot)
        self.ring[rows, :, slot : slot + fits] = values[..., :fits]
        self.ring[rows, :, : values.shape[2] - fits] = values[..., fits:]

    def _write_one(self, values: Tensor, new: Tensor) -> None:
        """Write one token to each row's own slot; rows whose token is padding keep what they have."""
        slot = sent(self.counts % self.capacity, self.device)[:, None, None].expand(-1, self.width, 1)
        keep = sent(new > 0, self.device)[:, None, None]
        self.ring.scatter_(2, slot, torch.where(keep, values, self.ring.gather(2, slot)))

    def ages(self) -> Tensor:
        """Return how many tokens ago each slot was written, the newest being 0: int64 [batch, capacity].

        Slots that were never written hold 0 and have ages beyond a row's count.
        """
        slots = torch.arange(self.capacity, device=self.device)
        return (sent(self.counts, self.device)[:, None] - 1 - slots) % max(1, self.capacity)

    def last(self, columns: int, rows: Tensor | None = None) -> Tensor:
        """Return the last tokens in order, [rows, width, columns]; 0 before a row's first and beyond the window.

        Args:
            columns: how many.
            rows: which sequences, int64 [n]; None = all.
        """
        counts = self.counts if rows is None else self.counts[rows]
        ring = self.ring if rows is None else self.ring[sent(rows, self.device)]
        # Token numbers and not slots: what lies before a row's first token is told by being negative.
        counts = sent(counts, self.device)
        number = counts[:, None] - columns + torch.arange(columns, device=self.device)
        index = (number % max(1, self.capacity))[:, None].expand(-1, self.width, -1)
        known = ((number >= 0) & (number >= counts[:, None] - self.window))[:, None]
        return torch.where(known, ring.gather(2, index), 0) if self.capacity else index.to(self.dtype) * 0

    def _make_room(self, new: int) -> None:
        wanted = int(self.counts.max()) + new
        if wanted > self.capacity and self.capacity < self.window:
            self._grow(self._grown(wanted))

    def _grow(self, capacity: int) -> None:
        old = self.ring
        # A buffer made inside inference_mode could not be written to outside of it.
        with torch.inference_mode(False):
            size = min(capacity, self.window)
            self.ring = torch.zeros(self.batch, self.width, size, dtype=self.dtype, device=self.device)
        # Below the window nothing has wrapped around yet, so tokens keep their slots.
        self.ring[..., : old.shape[2]] = old
        self._shared = False

    def snapshot(self) -> RingSnapshot:
        """Return a token for `rollback`; the ring is copied when it is next written to."""
        # Copied on writing: a draft that is accepted costs one copy of the ring, one that is not taken none.
        self._shared = True
        return self._keep(RingSnapshot(self.length, self.ring, self.counts, dict(self.state)))

    def rollback(self, snapshot: RingSnapshot) -> None:
        """Return to a snapshot.

        Raises:
            InputError: when rows changed, or the cache went back beyond the snapshot, since it was taken.
        """
        self.check_rollback(snapshot)
        self.length, self.counts, self.state = snapshot.length, snapshot.counts, dict(snapshot.state)
        self.ring, self._shared = snapshot.ring, True
        self._forget_snapshots_beyond(self.length)

    def _point(self, length: int) -> RingSnapshot | None:
        return next((s for s in self._snapshots if s.valid and s.length == length), None)

    def check_crop(self, length: int) -> None:
        """Raise InputError unless `crop(length)` can be done."""
        super().check_crop(length)
        if length not in (0, self.length) and self._point(length) is None:
            raise InputError(
                f"crop({length}): this cache keeps a running state of {self.length} tokens and cannot go back to "
                f"{length}; take a snapshot() there and roll back to it"
            )

    def crop(self, length: int) -> None:
        """Go back to where a snapshot was taken and is still held, or to nothing.

        Raises:
            InputError: for any other length below the present one.
        """
        self.check_crop(length)
        if length == self.length:
            return
        # The state of that moment is not in the ring: it is either kept or gone.
        point = self._point(length)
        if point is not None:
            self.rollback(point)
            return
        self.reset()

    def _select(self, index: Tensor) -> None:
        here = index.to(self.device)
        with torch.inference_mode(False):
            # Not a result of inference_mode, which could not be written to outside of it.
            ring = torch.empty(index.numel(), *self.ring.shape[1:], dtype=self.dtype, device=self.device)
        ring.copy_(self.ring[here])
        self.state = {name: tensor[here] for name, tensor in self.state.items()}
        self.batch, self.counts = index.numel(), self.counts[index.cpu()]
        self.ring, self._shared = ring, False

    def _shift(self, columns: int) -> None:
        # Padding is counted and not stored.
        self.length += columns

    def check_put(self, rows: Tensor, source: Cache[RingSnapshot]) -> None:
        super().check_put(rows, source)
        if not isinstance(source, RingCache) or (source.width, source.window) != (self.width, self.window):
            raise InputError(f"put() of {source!r} into {self!r}: the two should be alike")
        known, given = ({*cache.state} - {*cache.derived} for cache in (self, source))
        if known != given and self.counts.any() and source.counts.any():
            raise InputError(f"put(): one state has {sorted(known)}, the other {sorted(given)}")

    def _put(self, rows: Tensor, source: Self) -> None:
        here = rows.to(self.device)
        # Before a ring has its full size nothing has wrapped around in it: a larger one has tokens in the same slots.
        if self.capacity < source.capacity:
            self._grow(source.capacity)
        with torch.inference_mode(False):
            self.ring, self._shared = (self.ring.clone() if self._shared else self.ring), False
        self.ring[here] = 0
        self.ring[here, :, : source.capacity] = source.ring
        self.counts = self.counts.clone()
        self.counts[rows.cpu()] = source.counts
        state: dict[str, Tensor] = {}
        for name, like in {**source.state, **self.state}.items():
            if name in self.derived:
                continue
            # Without a token there is no state yet, and each entry starts at 0.
            own = self.state.get(name, like.new_zeros(self.batch, *like.shape[1:])).clone()
            own[here] = source.state.get(name, like.new_zeros(len(here), *like.shape[1:]))
            state[name] = own
        self.state = state

    def _copy(self, source: Self, index: Tensor, lengths: Sequence[int] | None) -> None:
        self._select(index)

    def reset(self) -> None:
        super().reset()
        self._clear()

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the ring in the cache's dtype, the state in its own. Snapshots go along."""
        # Snapshots share tensors with the cache and with one another, and should go on doing so.
        moved: dict[int, Tensor] = {}

        def converted(tensor: Tensor, to: torch.dtype) -> Tensor:
            return moved.setdefault(id(tensor), tensor.to(device=device, dtype=to))

        holders: list[RingSnapshot | RingCache] = [*self._snapshots, self]
        for held in holders:
            held.ring = converted(held.ring, dtype)
            held.state = {name: converted(tensor, tensor.dtype) for name, tensor in held.state.items()}

    @property
    def bytes_per_token(self) -> int:
        """Bytes that a token adds per sequence, until the window is full."""
        return self.width * self.dtype.itemsize

    def nbytes_of(self, tokens: int) -> int:
        """Return bytes that so many tokens of a sequence take in the ring."""
        return min(tokens, self.window) * self.bytes_per_token

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tokens and of the state, of all sequences."""
        stored = int(self.counts.clamp(max=self.window).sum())
        return stored * self.bytes_per_token + sum(tensor.nbytes for tensor in self.state.values())

    @property
    def allocated_nbytes(self) -> int:
        """Bytes held, including room not yet used."""
        return self.ring.nbytes + sum(tensor.nbytes for tensor in self.state.values())

    def __repr__(self) -> str:
        return f"RingCache(batch={self.batch}, length={self.length}, width={self.width}, window={self.window})"
