"""What every model of blocks has between its embedding and its head: the blocks by layer pattern, and the last norm."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blockyard.errors import InputError
from blockyard.models.config import BlocksConfig
from blockyard.models.positions import takes_positions
from blockyard.models.table import model_table
from blockyard.nn.derivatives import transformed
from blockyard.nn.rotary import RotaryPositionalEmbedding
from blockyard.nn.segments import Segments
from blockyard.protocol.block import Aux
from blockyard.protocol.cache import ModelCache
from blockyard.protocol.costs import Cost
from blockyard.registry.register import accepted_arguments


class Trunk(nn.Module):
    """Base of the models: a model adds its embedding before and its head after.

    A model's constructor makes its modules in the order in which data pass through them and calls `build_blocks` and,
    last, `start_as_identity`. Activations are [B, T, d_model], real or, with blocks for them, complex.

    Args:
        config: the blocks.
    """

    def __init__(self, config: BlocksConfig) -> None:
        super().__init__()
        self.config = config
        # Recompute each block in the backward pass instead of keeping its activations.
        self.checkpoint_activations = False

    def build_blocks(self) -> None:
        """Make `layers` and `ln_final`.

        Raises:
            InputError: for a mixer that cannot be causal where the model is, or options that do not fit.
        """
        self.layers: Any = nn.ModuleList(self.config.build_block(spec) for spec in self.config.layers)
        self.ln_final = self.config.build_final_norm(self.layers[-1])

    def start_as_identity(self) -> None:
        """Make every block the identity if the configuration says so, and compute rotary tables once for all."""
        if self.config.zero_init_outputs:
            for layer in self.layers:
                if hasattr(layer, "zero_init_output"):
                    layer.zero_init_output()
        for module in self.modules():
            if isinstance(module, RotaryPositionalEmbedding):
                module.prepare(self.config.length)

    def through_blocks(
        self,
        x: Tensor,
        *,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: ModelCache | None = None,
        last: int | None = None,
        segments: Segments | None = None,
    ) -> tuple[Tensor, Aux | None]:
        """Pass activations through the blocks and the last norm.

        Args:
            x: [B, T, d_model].
            padding_mask: [B, T], nonzero = keep; with a cache [B, past + T].
            positions: [T] or [B, T]; by default from the cache and the padding mask.
            cache: from `new_cache`.
            last: return only the last so many positions; all by default.
            segments: documents in the rows, each mixed as if it were alone; the mixers are causal.

        Returns: [B, T, d_model], and `{"losses": {name: sum over layers}, "stats": {"layers.0": …}}` when a block has
            something to say.
        """
        # Transforms of torch.func cannot recompute.
        recompute = self.checkpoint_activations and torch.is_grad_enabled() and cache is None and not transformed()
        collected: list[tuple[int, Aux]] = []
        # What was added to x says them to mixers that do not take any; elsewhere those refuse.
        optional = positions is not None and getattr(self, "position_embeddings", None) is not None
        for i, layer in enumerate(self.layers):
            arguments: dict[str, Any] = {
                "padding_mask": padding_mask,
                "positions": None if optional and not takes_positions(layer) else positions,
                "cache": None if cache is None else cache[i],
            }
            if segments is not None:
                # Named only where it is asked for: a block of a user's own need not know the word.
                check_takes_segments(layer)
                arguments = {"segments": segments}
            if recompute:
                x, aux = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=True, **arguments)
            else:
                x, aux = layer(x, **arguments)
            if aux:
                collected.append((i, aux))
        if last is not None:
            x = x[:, max(0, x.shape[1] - last) :]
        return self.ln_final(x), _merge_aux(collected)

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ModelCache:
        """Return an empty cache of every layer, owned by the caller.

        Args:
            batch: number of sequences.
            max_len: capacity in tokens; None grows on demand.
            dtype: floating type, by default that of the parameters.
            device: by default that of the parameters.

        Raises:
            InputError: when a layer's mixer has no cache.
        """
        return ModelCache([layer.new_cache(batch, max_len, dtype, device) for layer in self.layers])

    def blocks_cost(self, length: int) -> Cost:
        """Return parameters and cache bytes per position of blocks and last norm; forward FLOPs for one row of
        `length`."""
        total = Cost(sum(p.numel() for p in self.ln_final.parameters()))
        for layer in self.layers:
            total = total + layer.cost(length)
        return total

    def cost(self, length: int) -> Cost:
        """Return the same of the whole model, embedding and head included."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the layers, their parameters and what decoding keeps, as a small table."""
        return model_table(self, self.config, self.layers)

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of the blocks and norms: without the embedding and the head."""
        return sum(p.numel() for m in (self.layers, self.ln_final) for p in m.parameters())


def check_takes_segments(layer: Any) -> None:
    """Raise InputError for a block that cannot mix documents apart: one of another's making, FFN and mixer in one."""
    if "segments" not in accepted_arguments(layer.forward):
        raise InputError(
            f"{type(layer).__name__} does not take segments, by which documents in a row are kept apart: name the "
            "argument in its forward and mix by `segments.apart`, or register its mixer and its FFN apart"
        )


def turned_alike(model: nn.Module) -> int | None:
    """Return up to which length rows of any length are turned alike by rotary embedding; None for any length."""
    scalings = (module.scaling for module in model.modules() if isinstance(module, RotaryPositionalEmbedding))
    return min((scaling.original for scaling in scalings if scaling is not None and scaling.by_length), default=None)


def _merge_aux(collected: list[tuple[int, Aux]]) -> Aux | None:
    if not collected:
        return None
    losses: dict[str, Tensor] = {}
    stats: dict[str, Any] = {}
    for i, aux in collected:
        for name, value in aux.get("losses", {}).items():
            losses[name] = losses[name] + value if name in losses else value
        if aux.get("stats"):
            stats[f"layers.{i}"] = aux["stats"]
    return {"losses": losses, "stats": stats}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it, what torch draws is a function of the seed; afterwards the random state is as it was."""
    state, python_state = torch.get_rng_state(), random.getstate()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
        random.setstate(python_state)
