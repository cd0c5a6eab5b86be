"""The one cache protocol: what decoding keeps per layer, owned by the caller and never by a module.

A layer's cache is a set of named tensors that grow along their length axis, the last but one. It doubles when
full, so a generation copies each token about once; with `max_len` it is allocated once and an overflow is an
error. (Growing with `torch.cat` copies everything at every step.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.machine.pages import empty
from blockyard.protocol.cache_base import Cache, Snapshot


class LayerCache(Cache[Snapshot]):
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

    joins = True

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
        super().__init__(batch, max_len, dtype, device)
        self.slots = dict(slots)
        self.lengthwise = lengthwise
        self._capacity = 0
        # The buffers' column where the text begins: columns in front of it were dropped (`align`).
        self._front = 0
        # Made with the first token: a cache that is only counted, or moved to a device, takes no memory.
        self._buffers: dict[str, Tensor] = {}
        # Those are the first `batch` rows of what is held: rows that left make room for others without an allocation.
        self._room: dict[str, Tensor] = {}
        # What the layer made of its weights for steps of one token; a new text, or a reset, drops it.
        # It lives here and not on the module, so that two texts read by one module never share it.
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
        return self._store(tensors, self._accept(tensors))

    def _accept(self, tensors: Mapping[str, Tensor]) -> int:
        """Return how many new tokens these are, or InputError where they do not fit."""
        if tensors.keys() != self.slots.keys():
            raise InputError(f"cache.append got {sorted(tensors)}; this cache holds {sorted(self.slots)}")
        new = next(iter(tensors.values())).shape[-2]
        # A new text: weights may have changed since the last one was written.
        if new > 1 and not self.length:
            self.prepared.clear()
        for name, tensor in tensors.items():
            *lead, width = self.slots[name]
            # One comparison for what is nearly always right; which part is wrong is looked for only then.
            fits = tensor.shape == (self.batch, *lead, new, width) and tensor.dtype == self.dtype
            if not fits or tensor.requires_grad:
                self._check(name, tensor, new)
        return new

    def _store(self, tensors: Mapping[str, Tensor], new: int) -> tuple[Tensor, ...]:
        # Before the loop, for all slots alike: keys without their values would be worse than an error.
        self.reserve(new)
        front, end, shown = self._front, self.length + new, []
        for name, tensor in tensors.items():
            buffer = self._buffers[name]
            # A view that is copied into, and one that is shown: no step allocates.
            buffer.narrow(-2, front + self.length, new).copy_(tensor)
            shown.append(buffer.narrow(-2, front, end))
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
        self.refuse_gradient(tensor)

    @property
    def held(self) -> int:
        """Tokens stored: all that were seen, unless the cache drops what nothing will look at again."""
        return self.length

    def _stored(self) -> slice:
        """Return where the held tokens lie in the buffers."""
        return slice(self._front, self._front + self.length)

    def __getitem__(self, name: str) -> Tensor:
        """Return the stored contents of a slot, `[batch, *lead, held, width]`, as a view."""
        stored = self._stored()
        # A third of the time of an index.
        return self._buffers[name].narrow(-2, stored.start, stored.stop - stored.start)

    @property
    def capacity(self) -> int:
        return self._capacity

    def _make_room(self, new: int) -> None:
        wanted = self.length + new
        if self._front + wanted <= self._capacity and self._buffers:
            return
        if self._buffers and wanted <= self._capacity and (self._front >= self.length or self.max_len is not None):
            # Half of the room is columns that were dropped: the rest moves there, once for as many tokens as it holds.
            stored, overlap = self._stored(), self._front < self.length
            for buffer in self._buffers.values():
                part = buffer[..., stored, :]
                buffer[..., : self.length, :] = part.clone() if overlap else part
            self._front = 0
        else:
            self._allocate(self._grown(wanted))

    def _allocate(self, capacity: int) -> None:
        made, stored = self._made(self.batch, capacity), self._stored()
        for name, buffer in self._buffers.items():
            # Room that was never written is not copied.
            made[name][..., stored.start - self._front : stored.stop - self._front, :] = buffer[..., stored, :]
        self._hold(made, capacity)
        self._front = 0

    def _hold(self, room: dict[str, Tensor], capacity: int) -> None:
        """Take buffers, whose first rows are the sequences."""
        self._room, self._capacity = room, capacity
        self._buffers = {name: buffer.narrow(0, 0, self.batch) for name, buffer in room.items()}

    def _made(self, batch: int, capacity: int) -> dict[str, Tensor]:
        """Return new buffers, [batch, *lead, capacity, width] by slot."""
        # Not results of inference_mode, which could not be written to outside of it.
        with torch.inference_mode(False):
            return {name: self._empty(batch, capacity, shape) for name, shape in self.slots.items()}

    def _empty(self, batch: int, capacity: int, shape: tuple[int, ...]) -> Tensor:
        *lead, width = shape
        # Thin heads: a product along the 4 numbers of a token fills no vector register. Lengthwise it runs along
        # tokens, sixteen at a time.
        last = (width, capacity) if self.lengthwise else (capacity, width)
        buffer = empty(batch, *lead, *last, dtype=self.dtype, device=self.device)
        return buffer.mT if self.lengthwise else buffer

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on.

        Raises:
            InputError: when `length` is negative or beyond what was seen.
        """
        self.check_crop(length)
        self._forget_snapshots_beyond(length)
        self.length = length

    def snapshot(self) -> Snapshot:
        """Return a token for `rollback`; costs nothing."""
        # Older tokens are never written to, so a length is all there is to remember.
        return self._keep(Snapshot(self.length))

    def check_rollback(self, snapshot: Snapshot) -> None:
        super().check_rollback(snapshot)
        self.check_crop(snapshot.length)

    def rollback(self, snapshot: Snapshot) -> None:
        """Return to a snapshot.

        Raises:
            InputError: when rows changed, or tokens before the snapshot were dropped, since it was taken.
        """
        self.check_rollback(snapshot)
        self.crop(snapshot.length)

    def reorder(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i (beam search). index: LongTensor [batch].

        Only rows that change are copied; when none does, nothing happens.
        """
        self.check_reorder(index)
        index = index.to(self.device)
        # Most rows of a beam search stay where they are: their keys, megabytes each, are not copied.
        moved = (index != torch.arange(self.batch, device=self.device)).nonzero().flatten()
        if not moved.numel():
            return
        # Rows are others now, of which a snapshot knows nothing.
        self._invalidate()
        for name in self._buffers:
            rows = self[name]
            rows.index_copy_(0, moved, rows.index_select(0, index[moved]))

    def _select(self, index: Tensor) -> None:
        # Before the first token there is nothing to copy, and the batch may change all the same.
        index, before = index.to(self.device), self.batch
        self.batch = index.numel()
        if not self._buffers:
            return
        stored = self._stored()
        if self.batch > next(iter(self._room.values())).shape[0]:
            # Of the same capacity: a batch that is widened in the middle of a text goes on growing from there.
            made = self._made(self.batch, self._capacity)
            for name, buffer in self._buffers.items():
                # Only the stored part is copied, straight to its place.
                torch.index_select(buffer[..., stored, :], 0, index, out=made[name][..., stored, :])
        else:
            # Rows that leave take none of the others along: only those that move are copied.
            moved = (index != torch.arange(self.batch, device=self.device)).nonzero().flatten()
            made, chosen = self._room, index[moved]
            for buffer in made.values() if moved.numel() else ():
                rows = buffer[:before, ..., stored, :].index_select(0, chosen)
                buffer[..., stored, :].index_copy_(0, moved, rows)
        self._hold(made, self._capacity)

    def _shift(self, columns: int) -> None:
        length, stored = self.length + columns, self._stored()
        if columns > self._front or (columns > 0 and not self._buffers):
            capacity = self._capacity if length <= self._capacity else self._grown(length)
            made = self._made(self.batch, capacity)
            for name, buffer in self._buffers.items():
                made[name][..., columns:length, :] = buffer[..., stored, :]
            self._hold(made, capacity)
            self._front = columns
        self._front, self.length = (self._front - columns, length) if length else (0, 0)
        for buffer in self._buffers.values() if columns > 0 else ():
            # Zeros: what nobody sees has weight 0, and 0 times what an empty buffer may hold is not 0.
            buffer.narrow(-2, self._front, columns).zero_()

    def _put(self, rows: Tensor, source: Self) -> None:
        rows, held = rows.to(self.device), min(self.held, source.held)
        for name, buffer in self._buffers.items() if held else ():
            end = self._stored().stop
            buffer[..., end - held : end, :].index_copy_(0, rows, source[name][..., source.held - held :, :])

    def check_fork(self, index: Tensor, lengths: Sequence[int] | None = None) -> None:
        if lengths is None or not self.goes_back:
            super().check_fork(index, lengths)
            return
        self.check_select(index)
        if len(lengths) != index.numel() or not 0 <= min(lengths) <= max(lengths) <= self.length:
            raise InputError(f"fork() to lengths {list(lengths)} of {self.length} tokens and {index.numel()} sequences")

    @property
    def goes_back(self) -> bool:
        """Whether any number of tokens can be taken back."""
        return True

    def _copy(self, source: Self, index: Tensor, lengths: Sequence[int] | None) -> None:
        self.prepared, self._buffers, self._room, self._capacity = {}, {}, {}, 0
        self.batch, index, stored = index.numel(), index.to(self.device), source._stored()
        if lengths is not None:
            self.length = max(lengths)
        if not source._buffers:
            return
        capacity = source._capacity
        self._hold(self._made(self.batch, capacity), capacity)
        for name, buffer in self._buffers.items():
            kept = source._buffers[name]
            if lengths is None or min(lengths) == source.length:
                torch.index_select(kept[..., stored, :], 0, index, out=buffer[..., stored, :])
                continue
            end = self._front + self.length
            buffer.narrow(-2, self._front, self.length).zero_()
            for row, (origin, length) in enumerate(zip(index.tolist(), lengths)):
                first = kept[origin, ..., stored.start : stored.start + length, :]
                buffer[row, ..., end - length : end, :] = first

    def reset(self) -> None:
        """Forget everything; the memory is kept."""
        super().reset()
        self._front = 0
        self.prepared.clear()

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        # What was prepared are weights in the old type, in the old place.
        self._hold({name: buffer.to(device, dtype) for name, buffer in self._room.items()}, self._capacity)
        self.prepared.clear()

    @property
    def bytes_per_token(self) -> int:
        """Bytes per token and sequence."""
        # What is stored, not what room is held: the figure that reports compare is a property of the mixer.
        return sum(math.prod(shape) for shape in self.slots.values()) * self.dtype.itemsize

    def nbytes_of(self, tokens: int) -> int:
        """Return bytes that so many tokens of a sequence take when they are stored."""
        return tokens * self.bytes_per_token

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tokens of all sequences."""
        return self.batch * self.held * self.bytes_per_token

    @property
    def allocated_nbytes(self) -> int:
        """Bytes held, including room not yet used."""
        return sum(buffer.nbytes for buffer in self._room.values())

    def __repr__(self) -> str:
        size = f"batch={self.batch}, length={self.length}, slots={self.slots}, max_len={self.max_len}"
        return f"{type(self).__name__}({size})"


class ModelCache:
    """The caches of all layers of a model; every operation goes to each of them, or is refused and changes none.

    Raises:
        InputError: for no layer; every operation raises what one of the layers raises.
    """

    def __init__(self, layers: list[Any]) -> None:
        if not layers:
            raise InputError("a model cache needs at least one layer")
        self.layers = layers

    @property
    # The first layer speaks for all: an operation is done by all of them or by none.
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
        """Make room for `new` more tokens in every layer."""
        self._all("reserve", new)

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on."""
        self._all("crop", length)

    def reorder(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i. index: LongTensor [batch]."""
        self._all("reorder", index)

    def select(self, index: Tensor) -> None:
        """Keep the sequences `index`, in that order. index: LongTensor [n]."""
        self._all("select", index)

    def repeat(self, n: int) -> None:
        """Repeat every sequence n times, copies side by side."""
        self._all("repeat", n)

    def align(self, length: int) -> None:
        """Make the text so many columns long at its front, where padding comes or goes (`Cache.align`)."""
        self._all("align", length)

    def put(self, rows: Tensor, source: ModelCache) -> None:
        """Replace sequences by those of another cache, which end at the last column (`Cache.put`)."""
        if len(source) != len(self):
            raise InputError(f"put() of a cache of {len(source)} layers into one of {len(self)}")
        self._each("put", [(rows, layer) for layer in source])

    def fork(self, index: Tensor, lengths: Sequence[int] | None = None) -> ModelCache:
        """Return a new cache with copies of sequences, or of their beginnings (`Cache.fork`)."""
        for layer in self.layers:
            layer.check_fork(index, lengths)
        return ModelCache([layer.fork(index, lengths) for layer in self.layers])

    @property
    def joins(self) -> bool:
        """Whether sequences can come and go one by one: a cache of foreign make need not have what that takes."""
        return all(isinstance(layer, Cache) and layer.joins for layer in self.layers)

    @property
    def goes_back(self) -> bool:
        """Whether any number of tokens can be taken back, in every layer."""
        return all(getattr(layer, "goes_back", False) for layer in self.layers)

    def reset(self) -> None:
        """Forget everything."""
        self._all("reset")

    def snapshot(self) -> list[Any]:
        """Return a point to roll back to: a snapshot of every layer."""
        # Nothing refuses a snapshot, so there is nothing to ask beforehand.
        return [layer.snapshot() for layer in self.layers]

    def rollback(self, snapshot: list[Any]) -> None:
        """Return to a snapshot."""
        # Of another model, then: rolling back some layers would leave texts of two lengths in one cache.
        if len(snapshot) != len(self.layers):
            raise InputError(f"the snapshot has {len(snapshot)} layers, the cache {len(self.layers)}")
        self._each("rollback", [(point,) for point in snapshot])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ModelCache:
        """Move or convert every layer; returns self."""
        self._all("to", device, dtype)
        return self

    def _all(self, operation: str, *arguments: Any) -> None:
        self._each(operation, [arguments] * len(self.layers))

    def _each(self, operation: str, arguments: list[tuple[Any, ...]]) -> None:
        """Do one operation on every layer, with arguments for each: all of them, or none if one refuses.

        A layer says beforehand whether it would refuse, by `check_<operation>`. A cache of foreign make need not have
        that; such layers go first, so that one that refuses leaves the others as they were.
        """
        blind: list[tuple[Any, tuple[Any, ...]]] = []
        sure: list[tuple[Any, tuple[Any, ...]]] = []
        for layer, given in zip(self.layers, arguments):
            check = getattr(layer, f"check_{operation}", None)
            if check is not None:
                check(*given)
            (blind if check is None else sure).append((layer, given))
        # Those that were not asked first: if one of them refuses, no other has changed yet.
        for layer, given in (*blind, *sure):
            getattr(layer, operation)(*given)

    @property
    def bytes_per_token(self) -> int:
        return sum(layer.bytes_per_token for layer in self.layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def allocated_nbytes(self) -> int:
        return sum(layer.allocated_nbytes for layer in self.layers)
