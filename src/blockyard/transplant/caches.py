"""Bytes that caches hold at a context, asked of the caches themselves: a window drops tokens, a latent is narrow."""

from __future__ import annotations

from typing import Any

import torch

from blockyard.bench.decode import MOST_STEPS
from blockyard.errors import InputError
from blockyard.models.estimate import on_meta
from blockyard.models.lm import TransformerLM
from blockyard.nn.parity import evaluating
from blockyard.protocol.cache import LayerCache
from blockyard.registry.pattern import LayerSpec
from blockyard.transplant.settings import MOST_CONTEXT


def cache_bytes(model: TransformerLM, context: int) -> tuple[int, ...]:
    """Return the bytes of each layer's cache behind `context` tokens of one text, in the type of the weights."""
    dtype = next(model.parameters()).dtype
    known: dict[str, int] = {}
    found = []
    for spec, block in zip(model.config.layers, model.layers):
        # Layers of one kind hold as much; whichever frequencies they turn by.
        kind = str(without_frequencies(spec))
        if kind not in known:
            known[kind] = block_bytes(block, model.config.d_model, context, dtype)
        found.append(known[kind])
    return tuple(found)


def counted_context(model: TransformerLM, asked: int | None) -> int:
    """Return the tokens at which caches are counted and steps are timed: as asked for, or the model's own context,
    MOST_CONTEXT at most.

    Raises:
        InputError: for more than a model with learned positions reads, with the steps that are timed behind them.
    """
    if not model.config.learns_positions:
        return asked or min(model.config.context, MOST_CONTEXT)
    most = model.config.context - MOST_STEPS
    if (asked or 1) > most:
        raise InputError(
            f"budget.context={asked or 1} and the {MOST_STEPS} steps that are timed behind it are beyond the "
            f"{model.config.context} positions that the model has learned"
        )
    return asked or min(most, MOST_CONTEXT)


def spec_bytes(model: TransformerLM, spec: LayerSpec, context: int) -> int:
    """Return the bytes of a layer that the model does not have yet; nothing is built."""
    block = on_meta(lambda: model.config.build_block(without_frequencies(spec)))
    return block_bytes(block, model.config.d_model, context, next(model.parameters()).dtype)


def block_bytes(block: Any, d_model: int, context: int, dtype: torch.dtype) -> int:
    """Return the bytes of a block's cache behind `context` tokens."""
    cache = block.new_cache(1, None, dtype, "cpu")
    if not isinstance(cache, LayerCache):
        # A state is there once something was read, whatever that says.
        with evaluating(block):
            block(torch.zeros(1, context, d_model, dtype=dtype), cache=cache)
        return int(cache.nbytes)
    cache.append(
        **{name: torch.zeros(1, *lead, context, width, dtype=dtype) for name, (*lead, width) in cache.slots.items()}
    )
    return int(cache.nbytes)


def without_frequencies(spec: LayerSpec) -> LayerSpec:
    """Return a layer without its table of rotary frequencies, which holds no bytes of a cache."""
    options = {name: value for name, value in spec.attn_options.items() if name != "rope_frequencies"}
    return LayerSpec(spec.attn, spec.ffn, options, spec.ffn_options)
