"""Whether a mixer knows in which order its positions stand: found out by changing the order.

Attention without positions sees which tokens came before, not where they stood. A model of such mixers alone reads a
bag of words, learns less from a text for that reason, and nothing in its losses says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.models.config import BlocksConfig
from blockyard.registry.pattern import LayerSpec
from blockyard.registry.register import Entry, describe, implementation

# One that any window reaches over, and one that several chunks of usual sizes share.
LENGTHS = (7, 131)
# Rounding of sums taken in another order, in units of 1 + the largest output.
ROUNDING = {torch.float64: 1e-7, torch.complex128: 1e-7}
COARSE_ROUNDING = 1e-4

# Width up to which a mixer that cannot be built small is tried as it is.
WIDEST = 2048

# What was found, by class, layer and shape: a mixer that was tried once need not be built again.
_tried: dict[tuple[Any, ...], bool | None] = {}


def tells_order(call: Callable[[Tensor], Tensor], sample: Callable[[int], Tensor]) -> bool:
    """Return whether an output depends on the order of the positions before its own.

    Attention to both sides would be equivariant, and causal attention leaves the last position everything before it:
    in either form the last output of a mixer without positions stays when the others change places.

    Args:
        call: [1, T, d_model] -> the same, with parameters that are not at their start (see `randomise`).
        sample: length -> a random input of that length.
    """
    for length in LENGTHS:
        x = sample(length)
        try:
            last = call(x)[:, -1]
        except Exception:
            if length == LENGTHS[0]:
                raise
            break  # longer than it can be
        places = torch.randperm(length - 1, generator=torch.Generator().manual_seed(length))
        for order in (places, torch.arange(length - 1).flip(0)):
            moved = (call(torch.cat([x[:, order], x[:, -1:]], dim=1))[:, -1] - last).abs().max().item()
            if moved > ROUNDING.get(x.dtype, COARSE_ROUNDING) * (1 + last.abs().max().item()):
                return True
    return False


def randomise(module: nn.Module) -> None:
    """Give every parameter a value that matters: matrices random, vectors moved off their start."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))


def layer_knows_order(config: BlocksConfig, spec: LayerSpec, *, declared: bool = True) -> bool | None:
    """Return whether a layer's mixer knows the order of positions by itself, in the form that a model has of it.

    Args:
        config: the model.
        spec: one of its layers.
        declared: take the word of the mixer's traits whatever its options: one that can know the order and is told not
            to (`rope=none`) is used as its user wants it. Otherwise their word counts for the options' defaults.

    Returns: None when it cannot be tried: it cannot be built or called by itself.
    """
    entry = implementation("attn", spec.attn)
    if entry.traits.order is not None and (declared or not spec.attn_options):
        return entry.traits.order
    key = (entry.cls, str(spec), config.d_model, config.n_heads, config.is_causal, config.is_complex)
    if key not in _tried:
        _tried[key] = _try(config, spec)
    return _tried[key]


@dataclass(frozen=True, kw_only=True)
class _Alone(BlocksConfig):
    """Blocks without a model around them, causal or not."""

    causal: bool

    @property
    def is_causal(self) -> bool:
        return self.causal


def mixer_knows_order(entry: Entry) -> bool | None:
    """Return `layer_knows_order` of a registered mixer by itself, its options at their defaults."""
    return layer_knows_order(_Alone(causal=entry.traits.causal), LayerSpec(entry.name, "swiglu"))


def described(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain data; a mixer whose traits do not say whether it knows the order of positions is
    tried."""
    description = describe(entry)
    if entry.kind == "attn":
        description["traits"]["order"] = mixer_knows_order(entry)
    return description


def knows_order(config: BlocksConfig, *, declared: bool = True) -> bool:
    """Return whether any layer of a model knows the order of positions by itself, or cannot be asked.

    One is enough: what it finds out about order, the layers above read from the residual stream.

    Args:
        config: the model.
        declared: as in `layer_knows_order`.
    """
    layers = {str(spec): spec for spec in config.layers}
    return any(layer_knows_order(config, spec, declared=declared) is not False for spec in layers.values())


def _try(config: BlocksConfig, spec: LayerSpec) -> bool | None:
    heads = min(config.n_heads, 2)
    small = replace(config, d_model=heads * min(config.d_model // config.n_heads, 32), n_heads=heads)
    # Beside a model that is being built, which may be one without memory; its random numbers are left alone.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.inference_mode(False), torch.no_grad():
        # The small form first; options may need more width.
        for shape in (small, config) if config.d_model <= WIDEST else (small,):
            torch.default_generator.manual_seed(0)
            try:
                return _try_block(shape, shape.build_block(spec))
            except Exception:
                # A foreign mixer may want more than a block gives it here; its training will say what that is.
                continue
    return None


def _try_block(config: BlocksConfig, block: Any) -> bool:
    randomise(block)
    block.eval()
    dtype = next((p.dtype for p in block.parameters()), torch.get_default_dtype())
    dtype = dtype.to_complex() if config.is_complex else dtype

    def sample(length: int) -> Tensor:
        return torch.randn(1, length, config.d_model, dtype=dtype)

    # The mixer alone where a block has one: its normalisation and FFN add rounding, and a mixture may do more.
    return tells_order(lambda x: block.mix(x, {}) if hasattr(block, "mix") else block(x)[0], sample)


def order_note(name: str, config: BlocksConfig) -> str:
    """Return what a report says of a choice none of whose mixers knows the order of positions; "" for all others.

    Args:
        name: the choice.
        config: its model.
    """
    if knows_order(config, declared=False) or not config.is_ordered:
        return ""
    found = f"{name} has no positions of its own: its mixers see which inputs there are, not in which order"
    if config.learns_positions:
        return f"{found}. The model gives it learned ones (model.positions={getattr(config, 'positions', '')})."
    remedy = "; --model.positions learned gives it some" if config.can_learn_positions else ""
    return f"{found}, and the model gives it none. That alone makes it worse where order matters{remedy}."
