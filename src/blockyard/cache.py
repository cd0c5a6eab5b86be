"""The one cache protocol: what decoding keeps per layer, owned by the caller and never by a module.

A layer's cache is a set of named tensors that grow along their length axis, the last but one. It doubles when
full, so a generation copies each token about once; with `max_len` it is allocated once and an overflow is an
error. (Growing with `torch.cat` copies everything at every step.)
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.pages import empty

FIRST_CAPACITY = 64


class Snapshot:
    """A point to roll back to. It holds no data, and stops being valid when rows or older tokens change."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.valid = True


class LayerCache:
    """Named tensors of one layer, `[batch, *lead, length, width]`, appended to along the length.

    Args:
        batch: number of sequences.
        slots: name -> shape per token, `(*lead, width)`; `{"k": (8, 64)}` is stored as `[batch, 8, length, 64]`.
        max_len: capacity in tokens; None grows by doubling.
        dtype: floating type of the stored tensors (default: torch's default dtype).
        device: where they live.
        lengthwise: lay the values of one feature at all positions side by side in memory. Nothing changes to the
            eye; a product with a few features of many tokens reads whole rows.

    Raises:
        InputError: for a batch or `max_len` below 1.
    """

    def __init__(
        self,
        batch: int,
        slots: Mapping[str, tuple[int, ...]],
        *,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        lengthwise: bool = False,
    ) -> None:
        if batch < 1:
            raise InputError(f"batch={batch}: a cache needs at least one sequence")
        if max_len is not None and max_len < 1:
            raise InputError(f"max_len={max_len} should be at least 1, or None to grow on demand")
        self.batch = batch
        self.slots = dict(slots)
        self.max_len = max_len
        self.dtype = dtype or torch.get_default_dtype()
        self.device = torch.device(device or "cpu")
        self.lengthwise = lengthwise
        self.length = 0  # tokens seen
        self.capacity = 0
        self._buffers: dict[str, Tensor] = {}
        self._snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()
        # What the layer made of its weights for steps of one token; a new text, or a reset, drops it.
        self.prepared: dict[str, Any] = {}
        if max_len is not None:
            self._allocate(max_len)

    def append(self, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Store new tokens; return what every slot now shows them, in the order of the arguments, as views.

        That is the full contents, or in a windowed cache the part that the new tokens can see.

        Args:
            tensors: one `[batch, *lead, new, width]` tensor for each slot.

        Raises:
            InputError: for wrong names, shapes, dtype or device, an overflow of `max_len`, or a tensor that
                requires grad (the buffers are written in place, so a gradient would be lost).
        """
        if tensors.keys() != self.slots.keys():
            raise InputError(f"cache.append got {sorted(tensors)}; this cache holds {sorted(self.slots)}")
        new = next(iter(tensors.values())).shape[-2]
        if new > 1 and not self.length:
            self.prepared.clear()
        for name, tensor in tensors.items():
            *lead, width = self.slots[name]
            fits = tensor.shape == (self.batch, *lead, new, width) and tensor.dtype == self.dtype
            if not fits or tensor.requires_grad:
                self._check(name, tensor, new)
        return self._store(tensors, new)

    def _store(self, tensors: Mapping[str, Tensor], new: int) -> tuple[Tensor, ...]:
        self.reserve(new)
        end, shown = self.length + new, []
        for name, tensor in tensors.items():
            buffer = self._buffers[name]
            buffer.narrow(-2, self.length, new).copy_(tensor)
            shown.append(buffer.narrow(-2, 0, end))
        self.length = end
        return tuple(shown)

    def _check(self, name: str, tensor: Tensor, new: int) -> None:
        *lead, width = self.slots[name]
        expected = (self.batch, *lead, new, width)
        if tensor.shape != expected:
            raise InputError(
                f"cache slot {name!r} got shape {tuple(tensor.shape)}, expected {expected} [batch, ..., new, width]"
            )
        if tensor.dtype != self.dtype:
            raise InputError(f"cache slot {name!r} got {tensor.dtype}, but the cache holds {self.dtype}")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise InputError("a cache is for inference; call the model under torch.no_grad() or inference_mode()")

    @property
    def held(self) -> int:
        """Tokens stored: all that were seen, unless the cache drops what nothing will look at again."""
        return self.length

    def _stored(self) -> slice:
        """Where the held tokens lie in the buffers."""
        return slice(0, self.length)

    def __getitem__(self, name: str) -> Tensor:
        """The stored contents of a slot, `[batch, *lead, held, width]`, as a view."""
        stored = self._stored()
        # A third of the time of an index.
        return self._buffers[name].narrow(-2, stored.start, stored.stop - stored.start)

    def reserve(self, new: int) -> None:
        """Make room for `new` more tokens.

        Raises:
            InputError: when that exceeds `max_len`.
        """
        self._check_room(new)
        wanted = self.length + new
        if wanted > self.capacity or not self._buffers:
            self._allocate(max(wanted, 2 * self.capacity, FIRST_CAPACITY))

    def _check_room(self, new: int) -> None:
        if self.max_len is not None and self.length + new > self.max_len:
            raise InputError(f"the cache is full: {self.length} + {new} tokens exceed max_len={self.max_len}")

    def _allocate(self, capacity: int) -> None:
        old, stored = self._buffers, self._stored()
        # A buffer made inside inference_mode could not be written to outside of it.
        with torch.inference_mode(False):
            self._buffers = {name: self._empty(capacity, shape) for name, shape in self.slots.items()}
        for name, buffer in old.items():
            self._buffers[name][..., stored, :] = buffer[..., stored, :]
        self.capacity = capacity

    def _empty(self, capacity: int, shape: tuple[int, ...]) -> Tensor:
        *lead, width = shape
        last = (width, capacity) if self.lengthwise else (capacity, width)
        buffer = empty(self.batch, *lead, *last, dtype=self.dtype, device=self.device)
        return buffer.mT if self.lengthwise else buffer

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on.

        Raises:
            InputError: when `length` is negative or beyond what was seen.
        """
        self.check_crop(length)
        for snapshot in self._snapshots:
            snapshot.valid &= snapshot.length <= length
        self.length = length

    def check_crop(self, length: int) -> None:
        """Raise InputError unless `crop(length)` can be done."""
        if not 0 <= length <= self.length:
            raise InputError(f"crop({length}): the cache holds {self.length} tokens")

    def snapshot(self) -> Snapshot:
        """A token for `rollback`; costs nothing."""
        snapshot = Snapshot(self.length)
        self._snapshots.add(snapshot)
        return snapshot

    def rollback(self, snapshot: Snapshot) -> None:
        """Return to a snapshot.

        Raises:
            InputError: when rows were reordered, or tokens before the snapshot dropped, since it was taken.
        """
        if snapshot not in self._snapshots or not snapshot.valid:
            raise InputError("this snapshot is no longer valid: the cache was cropped below it, reordered or reset")
        self.crop(snapshot.length)

    def reorder(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i (beam search). index: LongTensor [batch].

        Only rows that change are copied; when none does, nothing happens.
        """
        if index.numel() != self.batch:
            raise InputError(f"reorder got {index.numel()} indices for a batch of {self.batch}; select() resizes")
        index = self._check_rows(index)
        moved = (index != torch.arange(self.batch, device=self.device)).nonzero().flatten()
        if not moved.numel():
            return
        self._invalidate()
        for name in self._buffers:
            rows = self[name]
            rows.index_copy_(0, moved, rows.index_select(0, index[moved]))

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, in that order; the batch becomes its length. index: LongTensor [n]."""
        index = self._check_rows(index)
        self._invalidate()
        self.batch = index.numel()
        old, self._buffers, stored = self._buffers, {}, self._stored()
        if old:
            self._allocate(self.capacity)
            for name, buffer in old.items():
                # Only the stored part is copied, straight to its place.
                torch.index_select(buffer[..., stored, :], 0, index, out=self._buffers[name][..., stored, :])

    def _check_rows(self, index: Tensor) -> Tensor:
        index = index.to(self.device)
        if index.numel() < 1 or int(index.min()) < 0 or int(index.max()) >= self.batch:
            raise InputError(f"select/reorder index {index.tolist()} is outside a batch of {self.batch}")
        return index

    def repeat(self, n: int) -> None:
        """Repeat every sequence n times, copies side by side (as `repeat_interleave`)."""
        if n < 1:
            raise InputError(f"repeat({n}) should be at least 1")
        self.select(torch.arange(self.batch).repeat_interleave(n))

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        self._invalidate()
        self.length = 0
        self.prepared.clear()

    def _invalidate(self) -> None:
        for snapshot in self._snapshots:
            snapshot.valid = False

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LayerCache:
        """Move or convert in place; returns self."""
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        self._buffers = {n: b.to(device=self.device, dtype=self.dtype) for n, b in self._buffers.items()}
        self.prepared.clear()
        return self

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token and sequence."""
        return sum(math.prod(shape) for shape in self.slots.values()) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tokens of all sequences."""
        return self.batch * self.held * self.bytes_per_token

    @property
    def allocated_nbytes(self) -> int:
        """Bytes held, including room not yet used."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def __repr__(self) -> str:
        size = f"batch={self.batch}, length={self.length}, slots={self.slots}, max_len={self.max_len}"
        return f"{type(self).__name__}({size})"


class ModelCache:
    """The caches of all layers of a model; every operation goes to each of them."""

    def __init__(self, layers: list[Any]) -> None:
        if not layers:
            raise InputError("a model cache needs at least one layer")
        self.layers = layers

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length

    @property
    def batch(self) -> int:
        return self.layers[0].batch

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def reserve(self, new: int) -> None:
        for layer in self.layers:
            layer.reserve(new)

    def crop(self, length: int) -> None:
        # All or none: a recurrent layer refuses most lengths, and those before it should not have been cut by then.
        for layer in self.layers:
            if hasattr(layer, "check_crop"):
                layer.check_crop(length)
        for layer in self.layers:
            layer.crop(length)

    def reorder(self, index: Tensor) -> None:
        for layer in self.layers:
            layer.reorder(index)

    def select(self, index: Tensor) -> None:
        for layer in self.layers:
            layer.select(index)

    def repeat(self, n: int) -> None:
        for layer in self.layers:
            layer.repeat(n)

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()

    def snapshot(self) -> list[Any]:
        return [layer.snapshot() for layer in self.layers]

    def rollback(self, snapshot: list[Any]) -> None:
        if len(snapshot) != len(self.layers):
            raise InputError(f"the snapshot has {len(snapshot)} layers, the cache {len(self.layers)}")
        for layer, point in zip(self.layers, snapshot):
            layer.rollback(point)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ModelCache:
        for layer in self.layers:
            layer.to(device, dtype)
        return self

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def allocated_nbytes(self) -> int:
        return sum(layer.allocated_nbytes for layer in self.layers)
