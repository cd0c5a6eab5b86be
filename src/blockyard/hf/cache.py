"""Our caches behind transformers' interface: what `DynamicCache(config=…)` and `StaticCache(config=…)` are made of.

A `ModelCache` is one thing with many layers, transformers' cache a list of layers that are each told what to do. So the
first of them acts for all, and the others look on.

Assisted decoding takes tokens back. A cache of keys is cut; a running state is not: there the text is read again from
before the last piece. The state of that moment is kept, and the tokens that stay stand in front of the next piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from blockyard.errors import InputError, require
from blockyard.hf.config import LAYER
from blockyard.protocol.cache import LayerCache, ModelCache

if TYPE_CHECKING:
    from transformers.cache_utils import CacheLayerMixin, DynamicCache, StaticCache, StaticLayer
else:
    _utils = require("transformers.cache_utils", extra="hf")
    CacheLayerMixin, StaticLayer = _utils.CacheLayerMixin, _utils.StaticLayer
    DynamicCache, StaticCache = _utils.DynamicCache, _utils.StaticCache


class Past:
    """What a model has read: its cache, and tokens that it has to read again before any other.

    Args:
        cache: the model's own.
    """

    def __init__(self, cache: ModelCache) -> None:
        self.cache = cache
        self.again: Tensor | None = None
        # Of the last piece, when asked to record: the point before it, and its tokens.
        self.records = False
        self._before: list[Any] | None = None
        self._piece: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens read so far, those to be read again included."""
        return self.cache.length + (0 if self.again is None else self.again.shape[1])

    @property
    def cuts(self) -> bool:
        """Whether every layer goes back to any length, as plain keys and values do."""
        return all(type(layer) is LayerCache for layer in self.cache)

    def read(self, ids: Tensor) -> Tensor:
        """Return what to give the model for these new tokens: them, behind those that it has to read again."""
        piece = ids if self.again is None else torch.cat([self.again.to(ids.device), ids], dim=1)
        self.again = None
        if self.records:
            self._before, self._piece = self.cache.snapshot(), piece
        return piece

    def take_back(self, tokens: int) -> None:
        """Forget the last so many tokens.

        Raises:
            InputError: when the cache cannot go back so far.
        """
        length = self.length - tokens
        if length >= self.cache.length:
            if self.again is not None:
                self.again = self.again[:, : length - self.cache.length]
            return
        self.again = None
        try:
            self.cache.crop(length)
        except InputError:
            start = None if self._before is None else self._before[0].length
            if start is None or self._piece is None or length < start:
                raise
            # To before the last piece, of which the tokens that stay are read again with the next one.
            self.cache.rollback(self._before)  # type: ignore[arg-type]
            self.again = self._piece[:, : length - start]

    def choose(self, index: Tensor) -> None:
        """Take sequence `index[i]` as the new sequence i."""
        index = index.to(torch.int64)
        self.cache.select(index)
        if self.again is not None:
            self.again = self.again[index.to(self.again.device)]
        self._before = self._piece = None

    def reset(self) -> None:
        """Forget everything."""
        self.cache.reset()
        self.again = self._before = self._piece = None


class BlockyardLayer(CacheLayerMixin):
    """One layer of transformers' cache; the model fills it with what all layers share when it first reads."""

    _layer_type = LAYER
    supports_early_init = False
    is_sliding = False

    def __init__(self, **kwargs: Any) -> None:
        # By name: of the static one, `super()` would be transformers' own static layer, which sets up keys.
        CacheLayerMixin.__init__(self, **kwargs)
        self.past: Past | None = None
        self.leads = False
        self.record_past = False
        self.most: int | None = None

    def hold(self, past: Past, leads: bool) -> None:
        """Hold what the layers share; one of them leads."""
        self.past, self.leads, self.is_initialized = past, leads, True
        past.records = past.records or self.record_past

    @property
    def batch_size(self) -> int:
        """Sequences; an AttributeError, which transformers asks for, before the first is read."""
        if self.past is None:
            raise AttributeError("nothing was read yet")
        return self.past.cache.batch

    @property
    def is_croppable(self) -> bool:  # type: ignore[override]
        """Whether any number of tokens can be taken back."""
        return self.past is not None and self.past.cuts

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError("this cache holds what blocks of blockyard keep; no other model can write keys into it")

    def get_seq_length(self) -> int:
        return 0 if self.past is None else self.past.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1 if self.most is None else self.most

    # The name of older versions.
    def get_max_cache_shape(self) -> int:
        return self.get_max_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Take back tokens, as many as the number is below 0; above it, it is the length that stays (older versions).

        Raises:
            InputError: when the cache cannot go back so far.
        """
        if self.past is None or not self.leads or not tokens_to_remove:
            return
        surplus = -tokens_to_remove if tokens_to_remove < 0 else self.past.length - tokens_to_remove
        if surplus > 0:
            self.past.take_back(surplus)

    def reset(self) -> None:
        if self.past is not None and self.leads:
            self.past.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.past is not None and self.leads:
            # Rows may be named by a mask; beams name them by number.
            if indices.dtype == torch.bool:
                indices = indices.nonzero().flatten()
            self.past.choose(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.past is not None and self.leads:
            self.past.choose(torch.arange(self.past.cache.batch).repeat_interleave(repeats))

    def activate_past_recording(self) -> None:
        """Prepare to take tokens back, whatever the mixers keep."""
        self.record_past = True
        if self.past is not None:
            self.past.records = True

    def offload(self) -> NoReturn:
        raise InputError("a cache of blockyard is not offloaded; use cache_implementation dynamic or static")

    def prefetch(self) -> NoReturn:
        self.offload()


class StaticBlockyardLayer(BlockyardLayer, StaticLayer):  # type: ignore[override]
    """The same with room for a number of tokens from the beginning."""

    _layer_type = LAYER
    # Lengths are numbers of Python's, which a compiled graph would take for constants.
    is_compileable = False

    def __init__(self, max_cache_len: int, **kwargs: Any) -> None:
        BlockyardLayer.__init__(self, **kwargs)
        self.most = self.max_cache_len = max_cache_len


def past_of(cache: Any, model: Any, ids: Tensor) -> Past:
    """Return what transformers' cache holds for this model, made when it is first used.

    Args:
        cache: transformers' cache.
        model: our model, which makes its own.
        ids: new tokens [B, T].

    Raises:
        InputError: for a cache of other layers, or of another number of sequences.
    """
    if type(cache) in (DynamicCache, StaticCache) and not cache.get_seq_length():
        _adopt(cache, len(model.layers))
    layers = getattr(cache, "layers", None) or []
    ours = [layer for layer in layers if isinstance(layer, BlockyardLayer)]
    if not ours or len(ours) != len(layers) or len(ours) != len(model.layers):
        raise InputError(
            f"past_key_values is a {type(cache).__name__} of other layers than this model's: what its mixers keep has "
            "no place there, and they would see the last token alone; use DynamicCache(config=model.config)"
        )
    if getattr(cache, "offloading", False):
        ours[0].offload()
    past = ours[0].past
    if past is None:
        # Where the tokens are: weights may lie elsewhere, and be fetched when they are needed.
        past = Past(model.new_cache(ids.shape[0], ours[0].most, device=ids.device))
        for number, layer in enumerate(ours):
            layer.hold(past, leads=not number)
        # Older versions take tokens back without a word before.
        past.records = past.records or not hasattr(cache, "activate_past_recording")
    if past.cache.batch != ids.shape[0]:
        raise InputError(f"the cache holds {past.cache.batch} sequences, input_ids {ids.shape[0]}")
    return past


def _adopt(cache: Any, count: int) -> None:
    """Give an empty cache of transformers layers of ours: made without the configuration, or by a version that does not
    ask it."""
    if any(isinstance(layer, BlockyardLayer) for layer in cache.layers):
        return
    if isinstance(cache, StaticCache):
        static: list[Any] = cache.layers
        cache.layers = [StaticBlockyardLayer(layer.max_cache_len) for layer in static]
    else:
        cache.layers = [BlockyardLayer() for _ in range(count)]
    cache.layer_class_to_replicate = None
