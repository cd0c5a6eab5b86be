"""The record of a transplant, `transplant.json`: everything its report says, so that the page can be made again.

Facts alone, as measured; what follows from them (headline, warnings, what is slower) is worked out when the page is
made. Fields and units stand in the docstrings; a number that does not exist is null in the file.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, Union

from blockyard.errors import InputError
from blockyard.files import plain, without_nan, write_atomically
from blockyard.report.write import read_record
from blockyard.transplant.measure import Difference

NAME = "transplant.json"
SCHEMA = "blockyard.transplant/1"
# All kinds of text together, in `Measures.above`.
ALL = "all"

Made = TypeVar("Made")


@dataclass(frozen=True)
class TextSet:
    """One kind of text in its three roles, which share no token.

    Attributes:
        kind: its name: a file, a folder, or what the user calls it.
        sources: where it came from.
        calibrate: tokens that the moments were gathered on.
        select: tokens that layers and ranks were chosen on.
        report: tokens that losses are reported on.
    """

    kind: str
    sources: tuple[str, ...]
    calibrate: int
    select: int
    report: int


@dataclass(frozen=True)
class Decode:
    """What one more token costs behind a cache of so many, batch 1.

    Attributes:
        context: tokens in the cache.
        ms_per_token: CPU milliseconds (on CUDA the device's), the median over rounds.
        low, high: quartiles of these.
        speed: how many times as fast as the original in the same round, the median; 1 for the original.
        word: what may be said of that: better, worse, equivalent, undecided, unknown; "" for the original.
        cache_bytes: bytes that the cache holds in all layers.
        layer_bytes: the same by layer.
    """

    context: int
    ms_per_token: float
    low: float
    high: float
    speed: float
    word: str
    cache_bytes: int
    layer_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Recall:
    """A copy test: a text, other text, the same text again.

    Attributes:
        kind: of the text that is read twice.
        between: kind of the text between.
        copied: tokens of the text that is read twice.
        apart: tokens between its copies.
        first, second: nats per token of the two copies.
    """

    kind: str
    between: str
    copied: int
    apart: int
    first: float
    second: float


@dataclass(frozen=True)
class Sample:
    """What a model writes after a prompt, always the likeliest token.

    Attributes:
        kind: of the text that the prompt is from.
        prompt: what it read.
        text: what it wrote.
    """

    kind: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Measures:
    """What was measured of one model, the original or a choice.

    Attributes:
        loss: nats per token by kind of text.
        above: how much more that is than the original's, by kind and over all ("all"), paired by pieces; None for the
            original itself.
        recall: the copy tests; the original's are the same ones in the same order.
        decode: costs of a token, by rising context.
        parameters: of the whole model, tied ones once.
        parameter_bytes: their size in memory.
        samples: continuations; the same prompts for all models.
    """

    loss: dict[str, float]
    above: dict[str, Difference] | None
    recall: tuple[Recall, ...]
    decode: tuple[Decode, ...]
    parameters: int
    parameter_bytes: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class LayerRow:
    """One layer of a choice.

    Attributes:
        layer: from 0 on.
        block: its mixer and FFN, as written in a choice.
        changed: whether it is another than the original's.
        numbers: numbers that its cache stores per token.
        alone: loss above the original's on the choosing text with this layer alone transplanted; None where that was
            not measured.
    """

    layer: int
    block: str
    changed: bool
    numbers: int
    alone: Difference | None = None


@dataclass(frozen=True)
class Tried:
    """A choice that was measured on the choosing text while choosing.

    Attributes:
        blocks: what stood in the layers.
        layers: those transplanted.
        cost: loss above the original's on the text that decides.
        cache_bytes: what its cache holds at the record's context; None where that was not worked out.
    """

    blocks: str
    layers: tuple[int, ...]
    cost: Difference
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Healed:
    """A point of a healing.

    Attributes:
        tokens: trained on so far.
        loss: nats per token by kind of text, on the choosing text.
    """

    tokens: int
    loss: dict[str, float]


@dataclass(frozen=True)
class Choice:
    """One choice, made or refused.

    Attributes:
        name: what it is called; no two are called alike.
        blocks: what was asked for.
        run: its run folder, relative to the transplant's; None for one that was refused.
        layers: those transplanted.
        rows: every layer of the model.
        trials: what was measured to choose layers and ranks.
        measures: None for one that was refused.
        refused: why it was, in one line; None for one that was made.
        notes: what else a reader should know of it.
        healing: the course of its healing; None where there was none.
        cpu_seconds: by stage of the work (fit, choose, heal, measure).
    """

    name: str
    blocks: str
    run: str | None = None
    layers: tuple[int, ...] = ()
    rows: tuple[LayerRow, ...] = ()
    trials: tuple[Tried, ...] = ()
    measures: Measures | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()
    healing: tuple[Healed, ...] | None = None
    cpu_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """A whole transplant.

    Attributes:
        model: the original, as the user named it.
        layers: how many it has.
        d_model: its width.
        texts: kinds of text and their roles.
        piece_length: tokens of a piece of every role.
        first_token: whether every piece begins with the model's first token.
        budget_loss: most nats above the original that were allowed; None without such a budget.
        budget_cache: largest share of the original's cache that was allowed; None without such a budget.
        context: tokens at which caches are compared; one of those of `Measures.decode`.
        original: what was measured of it.
        choices: in the order asked for.
        warnings: what was said on the way.
        command: what makes it again.
        created: when, ISO 8601.
        seconds: of the whole, by the wall clock.
        cpu_seconds: by stage, of what all choices share (texts, moments, the original's measures).
        peak_bytes: highest resident size of the process, with all models that it held
            (`blockyard.compare.peak_memory.status_bytes("VmHWM")`); None where the system does not tell.
        environment: versions and machine, as `describe_environment` gives them.
        settings: options as they were decided.
    """

    model: str
    layers: int
    d_model: int
    texts: tuple[TextSet, ...]
    piece_length: int
    first_token: bool
    budget_loss: float | None
    budget_cache: float | None
    context: int
    original: Measures
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...] = ()
    command: str = ""
    created: str = ""
    seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: int | None = None
    environment: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


def to_json(record: Record) -> dict[str, Any]:
    """Return the contents of transplant.json."""
    found: dict[str, Any] = without_nan(plain({"schema": SCHEMA, **dataclasses.asdict(record)}))
    return found


def from_json(found: object) -> Record:
    """Return a record from what a file holds.

    Raises:
        InputError: for another schema, naming the first thing that is missing, unknown or of another type.
    """
    known = found.get("schema") if isinstance(found, dict) else None
    if not isinstance(found, dict) or known != SCHEMA:
        raise InputError(f"this is no record of a transplant: it has schema {known!r}, and {SCHEMA!r} is read")
    return made_from(Record, {name: value for name, value in found.items() if name != "schema"})


def save_record(record: Record, out: str | Path) -> Path:
    """Write transplant.json into a folder, made if missing; returns its path.

    Raises:
        InputError: when it cannot be written.
    """
    path = Path(out) / NAME
    write_atomically(path, json.dumps(to_json(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_record(path: str | Path) -> Record:
    """Read transplant.json, or that of a folder.

    Raises:
        InputError: when it is missing, no JSON, of another schema, or holds what a record does not.
    """
    return from_json(read_record(path, NAME, SCHEMA, "record of a transplant"))


def made_from(cls: type[Made], found: object, where: str = NAME) -> Made:
    """Make a dataclass of this file from plain data; it is how a state file holds parts of a record, too.

    Args:
        cls: the dataclass.
        found: what `dataclasses.asdict` and JSON made of one.
        where: what the error calls it.

    Raises:
        InputError: naming the first thing that is missing, unknown or of another type.
    """
    made: Made = _value(cls, found, where)
    return made


def _value(wanted: Any, found: Any, where: str) -> Any:
    """Return plain data as a value of a type that a record has."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, types.UnionType):
        # Every union here is "or none".
        return None if found is None else _value(next(a for a in inner if a is not type(None)), found, where)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type) and isinstance(found, dict):
        return _dataclass(wanted, found, where)
    if origin is tuple and isinstance(found, list | tuple):
        return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(found))
    if origin is dict and isinstance(found, dict) and all(isinstance(key, str) for key in found):
        return {key: _value(inner[1], item, f"{where}[{key!r}]") for key, item in found.items()}
    if wanted is float and (found is None or (isinstance(found, int | float) and not isinstance(found, bool))):
        # JSON has no word for what is not a number: the half width over a single piece.
        return float("nan") if found is None else float(found)
    if wanted is object or (isinstance(wanted, type) and type(found) is wanted):
        return found
    raise InputError(f"{where} is {found!r:.60}, which is no {getattr(wanted, '__name__', wanted)}")


def _dataclass(wanted: Any, found: dict[str, Any], where: str) -> Any:
    fields, hints = {f.name: f for f in dataclasses.fields(wanted)}, typing.get_type_hints(wanted)
    odd = [name for name in found if name not in fields]
    missing = [
        name
        for name, f in fields.items()
        if name not in found and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if odd or missing:
        what = f"has {odd[0]!r}, which is not known" if odd else f"has no {missing[0]!r}"
        raise InputError(f"{where} {what}")
    return wanted(**{name: _value(hints[name], item, f"{where}: {name}") for name, item in found.items()})
