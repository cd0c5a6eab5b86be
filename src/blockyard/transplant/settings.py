"""What a whole transplant is asked to do: its choices, its budget, its text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from blockyard.compare.engine import EngineConfig
from blockyard.compare.settings import flag
from blockyard.errors import InputError, at_least, one_of
from blockyard.registry.pattern import split_outside
from blockyard.text.config import TextFormat
from blockyard.transplant.heal import HealSettings
from blockyard.transplant.outputs import OutputSettings

# Fewer pieces of a kind say nothing of how much they differ; the first of them is spent on an order of layers.
LEAST_SELECT = 3
# Contexts beyond this take long to fill, whatever a model was trained for.
MOST_CONTEXT = 8192


@dataclass(frozen=True)
class Budget:
    """What a choice may cost: it decides which layers are taken, and widths that are left open.

    Args:
        loss: nats per token above the original's, held by the upper end of the 95 % interval on the selection text.
        cache: share of the original's cache bytes at `context`; among the choices within it the one of least loss.
        context: tokens at which caches are counted; none for the model's own context, 8,192 at most.
    """

    loss: float | None = None
    cache: float | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        if self.loss is not None and not 0 < self.loss < float("inf"):
            raise InputError(f"budget.loss={self.loss} should be a number of nats per token above 0")
        if self.cache is not None and not 0 < self.cache < 1:
            raise InputError(f"budget.cache={self.cache} should be a share of the original's cache, between 0 and 1")
        at_least(1, **{"budget.context": self.context})

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return self.loss is not None or self.cache is not None


@dataclass(frozen=True)
class Texts:
    """Which text is read. Every path is a kind of text: what is measured is told of each.

    Args:
        path: files, folders or patterns, separated by commas, each a kind of text with a name of its own if written
            NAME=PATH; none means the Python standard library's own source, which is one kind.
        format: how they are read, as for `train lm`.
        text_field: field (JSONL) or column (parquet, Arrow) that holds the text.
        max_bytes: read no more than so many bytes of each; none reads everything.
        cache_dir: where encoded tokens are kept; none means $BLOCKYARD_CACHE or ~/.cache/blockyard.
    """

    path: tuple[str, ...] | None = None
    format: TextFormat = "auto"
    text_field: str = "text"
    max_bytes: int | None = 8_000_000
    cache_dir: str | None = None


@dataclass(frozen=True)
class Pieces:
    """How much text is read for what. The three sets have no piece in common.

    Args:
        calibrate: tokens that fits are computed from, over all kinds.
        select: tokens that layers and widths are chosen on.
        report: tokens that are reported on, and used for nothing else.
        length: tokens of a piece, the context of use: how far heads look is measured on it; none for the model's own
            context, 1,024 at most.
        first: what every piece begins with: auto as the tokenizer begins a text (with a BOS or without), none without.
    """

    calibrate: int = 18_432
    select: int = 12_288
    report: int = 12_288
    length: int | None = None
    first: Literal["auto", "none"] = "auto"

    def __post_init__(self) -> None:
        for name in ("calibrate", "select", "report"):
            at_least(1, **{f"text.{name}": getattr(self, name)})
        at_least(8, ": heads look further than that", **{"text.length": self.length})
        one_of(("auto", "none"), **{"text.first": self.first})


# Where the work is done, which changes nothing of what comes out.
ENGINE = frozenset(flag(each.name) for each in fields(EngineConfig))


@dataclass(frozen=True)
class TransplantConfig(EngineConfig):
    """The terms of a transplant.

    Args:
        blocks: what is put in, choices separated by `;`. A choice is one mixer or FFN as `transplant` takes it, or
            several joined by `&` for several layers; `@` behind one names its layers:
            `mla[kv_rank=192,rope_dim=64]@0-9 & standard[window=256,sinks=4]`. A width may be `auto`.
        layers: of whatever names none itself: all, numbers and ranges such as 3,5,10-19, or auto, as the budget allows;
            none is auto with a budget and all without.
        budget: what a choice may cost.
        data: the text.
        text: how much of it is read for what.
        heal: how what was put in is trained afterwards; none leaves it as it was computed.
        outputs: how mixers that share nothing with attention are trained, where a choice has one. Research.
    """

    blocks: str
    layers: str | None = None
    budget: Budget = field(default_factory=Budget)
    data: Texts = field(default_factory=Texts)
    text: Pieces = field(default_factory=Pieces)
    heal: HealSettings | None = None
    outputs: OutputSettings = field(default_factory=OutputSettings)

    def __post_init__(self) -> None:
        self.check_engine()

    def as_request(self) -> dict[str, Any]:
        """Return it as plain data for a worker; `from_request` reads it back."""
        return asdict(self)

    @classmethod
    def from_request(cls, found: Mapping[str, Any]) -> TransplantConfig:
        """Return the terms that `as_request` gave away, from JSON."""
        path = found["data"]["path"]
        groups: dict[str, Any] = {
            "budget": Budget(**found["budget"]),
            "data": Texts(**{**found["data"], "path": None if path is None else tuple(path)}),
            "text": Pieces(**found["text"]),
            "heal": None if found["heal"] is None else HealSettings(**found["heal"]),
            "outputs": OutputSettings(**found["outputs"]),
        }
        return cls(**{**found, **groups})

    @property
    def names(self) -> list[str]:
        """The choices as written, without spaces.

        Raises:
            InputError: for an empty one, or the same twice.
        """
        found = ["".join(choice.split()) for choice in split_outside(self.blocks, ";")]
        if found and not found[-1]:
            # A separator at the end is a habit, not a choice.
            found.pop()
        if not found or not all(found):
            raise InputError(f"blocks={self.blocks!r} holds an empty choice; write e.g. 'standard[window=256,sinks=4]'")
        twice = next((name for name in found if found.count(name) > 1), None)
        if twice:
            raise InputError(f"blocks names {twice!r} twice; every choice stands once")
        return found


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a configuration as `group.option` -> value."""
    found: dict[str, Any] = {}
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            found |= flat(value, f"{prefix}{each.name}.")
        else:
            found[prefix + flag(each.name)] = value
    return found
