"""The cache of a sliding window that keeps the first tokens of every row, too: those that are seen from everywhere.

Which tokens are first is a matter of padding: of a row padded on the left they are the first that are kept, so they are
stored row by row, beside the window, with the places where they stood. They are never dropped, only cropped or reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.attention_masks import check_padding_mask
from blockyard.nn.attention_sinks import NOT_YET, places_of_first
from blockyard.protocol.cache_base import sent
from blockyard.protocol.cache_window import SLACK, WindowCache


class SinkCache(WindowCache):
    """A `WindowCache` that also holds the first `sinks` kept tokens of every row.

    `append` returns the window's part, as that one does; `first` what the new tokens see beside it.

    Args:
        batch: number of sequences.
        slots: name -> shape per token, as for `LayerCache`.
        window: tokens that a new token sees, itself included.
        sinks: tokens at the beginning of each row that are seen from everywhere.
        slack: tokens held beyond the window, to crop and roll back over.
        max_len: tokens that may be seen in all; None for any number.
        dtype: floating type of the stored tensors.
        device: where they live.

    Attributes:
        places: where the first tokens of each row stand, int64 [batch, sinks] on the CPU; `NOT_YET` for those still to
            come.
        rows_agree: whether they are 0, 1, … in every row, so that no step needs a mask for them.

    Raises:
        InputError: for sinks below 1, and as `WindowCache` says.
    """

    joins = True

    def __init__(
        self,
        batch: int,
        slots: Mapping[str, tuple[int, ...]],
        *,
        window: int,
        sinks: int,
        slack: int = SLACK,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if sinks < 1:
            raise InputError(f"sinks={sinks} should be at least 1; WindowCache keeps none")
        self.sinks = sinks
        super().__init__(batch, slots, window=window, slack=slack, max_len=max_len, dtype=dtype, device=device)
        # Zeros: what nobody sees has weight 0, and 0 times what an empty buffer may hold is not 0.
        self._first = {name: buffer.zero_() for name, buffer in self._made(batch, sinks).items()}
        self.places = torch.full((batch, sinks), NOT_YET, device="cpu")
        self.rows_agree = True

    @property
    def places(self) -> Tensor:
        # On the CPU whatever the device: they decide branches, and asking an accelerator would wait for it.
        return self._places

    @places.setter
    def places(self, places: Tensor) -> None:
        self._places = places
        # Beside the tokens, once they are asked for there.
        self._shown: Tensor | None = None
        self._complete = bool((places < NOT_YET).all())

    def append(self, *, padding_mask: Tensor | None = None, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Store new tokens; return the part of the window that they can see, as `WindowCache.append` does.

        Args:
            padding_mask: [batch, past + new], nonzero = keep; None = no padding.
            tensors: one `[batch, *lead, new, width]` tensor for each slot.

        Raises:
            InputError: as `LayerCache.append` says, and for a mask by which other tokens are the first than those
                that were kept when they came; on an accelerator the mask is not read again once all have come.
        """
        new, past = self._accept(tensors), self.length
        places = self._places_with(new, padding_mask)
        self.check_reserve(new)
        if places is not None:
            if not torch.equal(places, self.places):
                self._keep_first(tensors, places, past)
            self.rows_agree = torch.equal(places, self._places_of_first(None, past + new))
        return self._store(tensors, new)

    def _places_with(self, new: int, padding_mask: Tensor | None) -> Tensor | None:
        """Return where the first tokens will stand; None where nothing can change."""
        if padding_mask is None and self.rows_agree and self.length >= self.sinks:
            return None
        end = self.length + new
        if padding_mask is not None:
            check_padding_mask(padding_mask, self.batch, end)
            if self._complete and padding_mask.device.type != "cpu":
                # To read it would wait for the device, in every layer and for every token.
                return None
        places = self._places_of_first(padding_mask, end)
        if not torch.equal(torch.where(places < self.length, places, NOT_YET), self.places):
            what = "no padding_mask" if padding_mask is None else "the padding_mask"
            raise InputError(
                f"by {what} other tokens are the first of a row than the ones this cache has kept; every call should "
                "name the padding of all tokens so far"
            )
        return places

    def _places_of_first(self, padding_mask: Tensor | None, end: int) -> Tensor:
        mask = None if padding_mask is None else padding_mask.cpu()
        return places_of_first(mask, self.sinks, end, torch.device("cpu")).expand(self.batch, -1)

    def _keep_first(self, tensors: Mapping[str, Tensor], places: Tensor, past: int) -> None:
        fresh = (places >= past) & (places < NOT_YET)  # [batch, sinks]
        at = (places - past).clamp(0, next(iter(tensors.values())).shape[-2] - 1)
        fresh, at = sent(fresh, self.device), sent(at, self.device)
        for name, tensor in tensors.items():
            lead = [1] * (tensor.ndim - 3)
            index = at.view(self.batch, *lead, self.sinks, 1).expand(*tensor.shape[:-2], -1, tensor.shape[-1])
            chosen = fresh.view(self.batch, *lead, self.sinks, 1)
            self._first[name].copy_(torch.where(chosen, tensor.gather(-2, index), self._first[name]))
        self.places = places.clone()

    def first(self) -> tuple[dict[str, Tensor], Tensor] | None:
        """Return what the newest tokens see of the first ones beside the window, after `append`.

        Returns: the tensors by slot, [batch, *lead, n, width], and where they stand, int64 [batch, n] ([1, n] where all
            rows agree), counted from the text's beginning; None where the window still holds whatever they see.
        """
        # The last token's window has left so many tokens.
        left = self.length - self.window
        if left < 1:
            return None
        if self.rows_agree:
            count = min(self.sinks, left)
            return {name: t.narrow(-2, 0, count) for name, t in self._first.items()}, self._sent()[:1, :count]
        return self._first, self._sent()

    def _sent(self) -> Tensor:
        """Return the places beside the tokens, sent there once after every change."""
        if self._shown is None:
            self._shown = sent(self.places, self.device)
        return self._shown

    def crop(self, length: int) -> None:
        """Forget all tokens from position `length` on; raises as `WindowCache.crop` does."""
        super().crop(length)
        self._stand(torch.where(self.places < length, self.places, NOT_YET))

    def reorder(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i (beam search). index: LongTensor [batch]."""
        super().reorder(index)
        self._take(index)

    def _select(self, index: Tensor) -> None:
        super()._select(index)
        self._take(index)

    def _take(self, index: Tensor) -> None:
        made, here = self._made(len(index), self.sinks), index.to(self.device)
        for name, tensor in made.items():
            tensor.copy_(self._first[name][here])
        self._first = made
        self.places = self.places[index.cpu()]

    def _shift(self, columns: int) -> None:
        super()._shift(columns)
        self._stand(torch.where(self.places < NOT_YET, self.places + columns, NOT_YET))

    def _stand(self, places: Tensor) -> None:
        self.places = places
        self.rows_agree = torch.equal(places, self._places_of_first(None, self.length))

    def _put(self, rows: Tensor, source: Self) -> None:
        super()._put(rows, source)
        here, rows, places = rows.to(self.device), rows.cpu(), self.places.clone()
        for name, tensor in self._first.items():
            tensor[here] = source._first[name]
        places[rows] = torch.where(source.places < NOT_YET, source.places + self.length - source.length, NOT_YET)
        self._stand(places)

    def _copy(self, source: Self, index: Tensor, lengths: Sequence[int] | None) -> None:
        super()._copy(source, index, lengths)
        self._take(index)

    def reset(self) -> None:
        super().reset()
        self.places = torch.full((self.batch, self.sinks), NOT_YET, device="cpu")
        self.rows_agree = True

    def _move(self, device: torch.device, dtype: torch.dtype) -> None:
        super()._move(device, dtype)
        self._first = {name: tensor.to(device, dtype) for name, tensor in self._first.items()}
        self._shown = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tokens of all sequences; a first token that the window holds, too, counts once."""
        return super().nbytes + int((self.places < self._start).sum()) * self.bytes_per_token

    @property
    def allocated_nbytes(self) -> int:
        """Bytes held, including room not yet used."""
        return super().allocated_nbytes + sum(tensor.nbytes for tensor in self._first.values())
