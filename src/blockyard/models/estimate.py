"""What a model would take, before it is built: its pattern once without memory, times how often it stands there.

Parameters are counted on torch's meta device. Modules that one option multiplies (a mixture's experts) could make even
that endless: the count stops as soon as it is beyond what the memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from blockyard.errors import InputError, is_out_of_memory
from blockyard.machine.memory import available_bytes, in_words, is_forced, refuse_beyond_memory
from blockyard.models.config import BlocksConfig
from blockyard.registry.options import options_of
from blockyard.registry.pattern import LayerSpec

T = TypeVar("T")
# Modules of one layer: a mixture of 4,000 experts has 16,000. And bytes that a module takes beside its parameters.
MOST_MODULES, MODULE_BYTES = 30_000, 3_000
PARAMETER_BYTES = 4


@dataclass(frozen=True)
class Count:
    """Parameters and modules of a model."""

    parameters: int
    modules: int

    @property
    def bytes(self) -> int:
        """Of the weights in float32, and of the modules that hold them."""
        return self.parameters * PARAMETER_BYTES + self.modules * MODULE_BYTES


class _TooLarge(Exception):
    """The count is beyond the memory already."""


def on_meta(build: Callable[[], T]) -> T:
    """Return what `build` makes, without memory; on the CPU for a foreign module that cannot be built so."""
    try:
        with torch.device("meta"):
            return build()
    except (NotImplementedError, RuntimeError):
        return build()


def meta_block(config: BlocksConfig, spec: LayerSpec) -> nn.Module:
    """Return the block of a layer without memory."""
    return on_meta(lambda: config.build_block(spec))


def count_model(config: BlocksConfig, build: Callable[[Any], nn.Module] | None, what: str = "the model") -> Count:
    """Count a model's parameters and modules without building all of it.

    Args:
        config: the model.
        build: what builds a model from a configuration; its `layers` are the blocks. None counts the blocks alone: what
            stands around them may follow from data that are not read yet.
        what: it, as the error names it.

    Raises:
        InputError: when it cannot be built, or not even be counted within the memory.
    """
    pattern = config.pattern
    # The pattern once; where it is longer than the model is deep, building says so.
    short = replace(config, n_layers=min(config.n_layers, len(pattern)))
    model = counted(lambda: _blocks(config) if build is None else build(short), what)
    parameters, modules = _own(model)
    layers = list(model if isinstance(model, nn.ModuleList) else getattr(model, "layers", []))
    if len(layers) == len(pattern):
        times, rest = divmod(config.n_layers, len(pattern))
        for number, layer in enumerate(layers):
            more = times - 1 + (number < rest)
            own = _own(layer)
            parameters, modules = parameters + more * own[0], modules + more * own[1]
    return Count(parameters, modules)


def _blocks(config: BlocksConfig) -> nn.ModuleList:
    return nn.ModuleList(config.build_block(spec) for spec in config.pattern)


def check_class(cls: type, options: Mapping[str, Any], what: str) -> None:
    """Refuse an instance of a class that the memory would not hold, before it is made.

    Raises:
        InputError: as `counted`, or what the class's constructor says.
    """
    if is_forced():
        return
    known = options_of(cls)
    if all(name in options for name, option in known.items() if option.required):
        module = counted(lambda: cls(**options), what)
        if isinstance(module, nn.Module):
            parameters, modules = _own(module)
            refuse_beyond_memory(Count(parameters, modules).bytes, what + " takes at least {}")


def counted(build: Callable[[], T], what: str) -> T:
    """Return what `build` makes, without memory, given up when its parameters would not fit into the machine's.

    Raises:
        InputError: when they would not, or there are more modules than any layer has.
    """
    try:
        with _watched(None if is_forced() else available_bytes()):
            return on_meta(build)
    except _TooLarge as error:
        raise InputError(f"{what} takes {error}: ask for less, or take the risk with --force (force=True)") from None
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        # A size beyond what an index can count, or a table that is made on the CPU.
        if not (is_out_of_memory(error) or isinstance(error, OverflowError) or "overflow" in str(error).lower()):
            raise
        raise InputError(f"{what} takes more memory than any machine has; ask for less") from None


@contextmanager
def _watched(most: int | None) -> Iterator[None]:
    """Within it, registering more than `most` bytes of parameters raises `_TooLarge`; None watches nothing."""
    held = made = 0

    def parameter(owner: nn.Module, name: str, value: nn.Parameter | None) -> None:
        nonlocal held
        held += 0 if value is None else value.numel() * PARAMETER_BYTES
        if most is not None and held > most:
            raise _TooLarge(f"more than {in_words(held)}, and this machine has {in_words(most)} free")

    def module(owner: nn.Module, name: str, value: nn.Module | None) -> None:
        nonlocal made
        made += 1
        if most is not None and made > MOST_MODULES:
            raise _TooLarge(f"more than {MOST_MODULES:,} modules in a layer")

    hooks = [
        torch_module.register_module_parameter_registration_hook(parameter),
        torch_module.register_module_module_registration_hook(module),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _own(module: nn.Module) -> tuple[int, int]:
    return sum(p.numel() for p in module.parameters()), sum(1 for _ in module.modules())
