"""What every cache of a layer has in common: rows, limits, snapshots, and saying beforehand what it would refuse.

Every operation that can be refused has a `check_<operation>` that refuses it without changing anything; the caches of a
model ask all layers first, so that an operation is done by all of them or by none.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import ClassVar, Generic, Self, TypeVar

import torch
from torch import Tensor

from blockyard.errors import InputError

# Tokens that there is room for at first. Fewer would double before a line is written.
# 64 tokens of the largest block here (12 heads of 64, float32) are 400 kB.
FIRST_CAPACITY = 64


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return what the CPU keeps of a cache on the cache's device; nobody waits for it to arrive."""
    return tensor.to(device, non_blocking=True)


class Snapshot:
    """A point to roll back to. It stops being valid when rows or older tokens change."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.valid = True


S = TypeVar("S", bound=Snapshot)


class Cache(Generic[S]):
    """Base of the caches of a layer.

    Args:
        batch: number of sequences.
        max_len: most tokens that will be seen; None for any number.
        dtype: floating type of what is stored (default: torch's default dtype).
        device: where it lives.

    Attributes:
        length: tokens seen, padding included.

    Raises:
        InputError: for a batch or `max_len` below 1.
    """

    # Whether sequences come and go one by one (`align`, `put`, `fork`). Not inherited: a class that keeps more than its
    # base should say that these take it along.
    joins: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "joins" not in cls.__dict__:
            cls.joins = False

    def __init__(
        self, batch: int, max_len: int | None, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> None:
        if batch < 1:
            raise InputError(f"batch={batch}: a cache needs at least one sequence")
        if max_len is not None and max_len < 1:
            raise InputError(f"max_len={max_len} should be at least 1, or None to grow on demand")
        self.batch, self.max_len = batch, max_len
        # The caller decides, by the parameters' type; this default is for a cache that is made by hand.
        self.dtype = dtype or torch.get_default_dtype()
        self.device = torch.device(device or "cpu")
        self.length = 0
        # By weak reference: a snapshot that nobody holds any more costs nothing.
        # A draft takes one every round, so a list would grow with the text.
        self._snapshots: weakref.WeakSet[S] = weakref.WeakSet()

    # What would be refused.

    def check_reserve(self, new: int) -> None:
        """Raise InputError unless there is or can be made room for `new` more tokens."""
        # A promise kept to the caller: what was allocated once does not move, and no later token pays for growth.
        if self.max_len is not None and self.length + new > self.max_len:
            raise InputError(f"the cache is full: {self.length} + {new} tokens exceed max_len={self.max_len}")

    def check_crop(self, length: int) -> None:
        """Raise InputError unless `crop(length)` can be done."""
        if not 0 <= length <= self.length:
            raise InputError(f"crop({length}): the cache holds {self.length} tokens")

    def check_rollback(self, snapshot: S) -> None:
        """Raise InputError unless the snapshot is this cache's, and still valid."""
        # Another cache's snapshot would be a length that means nothing here.
        if snapshot not in self._snapshots or not snapshot.valid:
            raise InputError("this snapshot is no longer valid: the cache was cropped below it, reordered or reset")

    def check_select(self, index: Tensor) -> None:
        """Raise InputError unless the index is a LongTensor [n] of sequences, n at least 1."""
        if index.ndim != 1 or index.dtype != torch.int64:
            raise InputError(f"select/reorder index is {index.dtype} {tuple(index.shape)}, expected int64 [n]")
        # Negative indices would count from the end on a CPU and read foreign memory on an accelerator.
        if not index.numel() or int(index.min()) < 0 or int(index.max()) >= self.batch:
            raise InputError(f"select/reorder index {index.tolist()} is outside a batch of {self.batch}")

    def check_reorder(self, index: Tensor) -> None:
        """Raise InputError unless the index is a LongTensor [batch] of sequences."""
        if index.numel() != self.batch:
            raise InputError(f"reorder got {index.numel()} indices for a batch of {self.batch}; select() resizes")
        self.check_select(index)

    def check_repeat(self, n: int) -> None:
        """Raise InputError unless n is at least 1."""
        if n < 1:
            raise InputError(f"repeat({n}) should be at least 1")

    def check_align(self, length: int) -> None:
        """Raise InputError unless the text can be made so many columns long."""
        if length < 0 or (self.max_len is not None and length > self.max_len):
            raise InputError(f"align({length}): expected 0 to max_len={self.max_len} columns")

    def check_put(self, rows: Tensor, source: Cache[S]) -> None:
        """Raise InputError unless `source` is of the same kind, one sequence for each of `rows`, and no longer."""
        self.check_select(rows)
        if type(source) is not type(self) or source.dtype != self.dtype or source.device != self.device:
            raise InputError(f"put() of {source!r} into {self!r}: the two should be alike")
        if source.batch != rows.numel() or len(set(rows.tolist())) != source.batch:
            raise InputError(f"put() of {source.batch} sequences into rows {rows.tolist()}; expected one row for each")
        if source.length > self.length:
            raise InputError(f"put() of {source.length} columns into a text of {self.length}; align() it first")

    def check_fork(self, index: Tensor, lengths: Sequence[int] | None = None) -> None:
        """Raise InputError unless such copies can be made: shorter ones only where a cache goes back to any length."""
        self.check_select(index)
        if lengths is not None and (len(lengths) != index.numel() or set(lengths) != {self.length}):
            raise InputError(
                f"fork() to lengths {list(lengths)}: this cache copies its {self.length} tokens as a whole"
            )

    def check_to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        """Raise InputError unless the device is there and the dtype floating."""
        if dtype is not None and not dtype.is_floating_point:
            raise InputError(f"dtype={dtype}: a cache holds a floating type")
        try:
            # Asked of torch, which alone knows what this build and machine have.
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device={device}: {str(error).splitlines()[0]}") from error

    def check_reset(self) -> None:
        """Refuse nothing: a reset is never refused."""

    @staticmethod
    def refuse_gradient(tensor: Tensor) -> None:
        """Raise InputError for a tensor that learns: it is written in place, so its gradient would be lost."""
        # Under no_grad a parameter may come as it is: nothing is recorded.
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError("a cache is for inference; call the model under torch.no_grad() or inference_mode()")

    # Room, and places.

    @property
    def goes_back(self) -> bool:
        """Whether any number of tokens can be taken back."""
        return False

    @property
    def capacity(self) -> int:
        """Tokens that there is room for now."""
        raise NotImplementedError

    def reserve(self, new: int) -> None:
        """Make room for `new` more tokens.

        Raises:
            InputError: when that exceeds `max_len`.
        """
        self.check_reserve(new)
        self._make_room(new)

    def _make_room(self, new: int) -> None:
        raise NotImplementedError

    def _grown(self, wanted: int) -> int:
        """Return the capacity to allocate for so many tokens: doubling copies each token about once, however long the
        text."""
        # 1 + 1/2 + 1/4 + … copies for each token that is held in the end: two at most.
        return max(wanted, 2 * self.capacity, FIRST_CAPACITY)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move or convert in place; returns self. Snapshots stay valid.

        Raises:
            InputError: for a device that is not there, or a dtype that is not floating.
        """
        self.check_to(device, dtype)
        device = torch.device(device) if device is not None else self.device
        dtype = dtype or self.dtype
        # What is made inside inference_mode could not be written to outside of it.
        with torch.inference_mode(False):
            # Snapshots go along: they are lengths, or share the tensors that are moved.
            self._move(device, dtype)
        self.device, self.dtype = device, dtype
        return self

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring what is stored there."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget everything."""
        self._invalidate()
        self.length = 0

    # Rows.

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, in that order; the batch becomes its length. index: LongTensor [n].

        When that changes no row, nothing happens.
        """
        self.check_select(index)
        # Beams that stay as they are then copy nothing, and keep their snapshots.
        if index.tolist() == list(range(self.batch)):
            return
        self._select(index)
        self._invalidate()

    def _select(self, index: Tensor) -> None:
        raise NotImplementedError

    def reorder(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i (beam search). index: LongTensor [batch].

        When that changes no row, nothing happens.
        """
        self.check_reorder(index)
        self.select(index)

    def repeat(self, n: int) -> None:
        """Repeat every sequence n times, copies side by side (as `repeat_interleave`)."""
        self.check_repeat(n)
        # Side by side, as beams and samples of one prompt are rows beside one another.
        self.select(torch.arange(self.batch).repeat_interleave(n))

    # Rows of texts that begin at different times: all end at the same column, with padding in front of shorter ones.

    def align(self, length: int) -> None:
        """Make the text so many columns long at its front: columns of padding come there, or columns go.

        What goes should be padding in every row; it is forgotten without a look. Masks are then of the new columns.

        Raises:
            InputError: for a negative length, or one beyond `max_len`.
        """
        self.check_align(length)
        if length == self.length:
            return
        self._invalidate()
        self._shift(length - self.length)

    def _shift(self, columns: int) -> None:
        """Add columns of padding in front, or drop as many as the number is below 0; `length` changes with them."""
        raise NotImplementedError

    def put(self, rows: Tensor, source: Self) -> None:
        """Replace sequences by those of another cache, which end at this one's last column.

        Columns in front of them are padding from then on, and should be masked: what they hold is finite, no more.

        Args:
            rows: which, LongTensor [n].
            source: of n sequences and no more columns; it is only read.

        Raises:
            InputError: for another kind of cache, dtype or device, other rows, or more columns.
        """
        self.check_put(rows, source)
        self._invalidate()
        self._put(rows, source)

    def _put(self, rows: Tensor, source: Self) -> None:
        raise NotImplementedError

    def fork(self, index: Tensor, lengths: Sequence[int] | None = None) -> Self:
        """Return a new cache with copies of the sequences `index`; this one stays as it is.

        Args:
            index: LongTensor [n].
            lengths: how many tokens of each, its first ones, which all end at the same column; None = all. The
                sequences should then have no padding.

        Raises:
            InputError: for rows that are not there, or lengths that it cannot go back to.
        """
        self.check_fork(index, lengths)
        made = copy.copy(self)
        # Of its own: what happens to one of the two is nothing to the other's points.
        made._snapshots = weakref.WeakSet()
        made._copy(self, index, lengths)
        return made

    def _copy(self, source: Self, index: Tensor, lengths: Sequence[int] | None) -> None:
        """Replace everything that is shared with `source` by copies of its sequences `index`."""
        raise NotImplementedError

    # Snapshots.

    def _keep(self, snapshot: S) -> S:
        self._snapshots.add(snapshot)
        return snapshot

    def _invalidate(self) -> None:
        for snapshot in self._snapshots:
            snapshot.valid = False

    def _forget_snapshots_beyond(self, length: int) -> None:
        for snapshot in self._snapshots:
            # What lay beyond is about to be overwritten; a snapshot before it still finds its tokens.
            snapshot.valid &= snapshot.length <= length
