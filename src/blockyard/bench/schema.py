"""The shape of bench.json, as types. docs/benchmarks.md is the same in words, with units.

One schema for every kind of benchmark: rows differ only in which measurements they hold.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from blockyard.report.schema import Spread

SCHEMA = "blockyard.bench/1"


class Measured(TypedDict):
    """One timed quantity: seconds per unit of work, units per second, and the speed relative to the reference."""

    wall_seconds: Spread
    cpu_seconds: Spread
    per_second: Spread
    speedup: Spread | None  # the reference's wall seconds / these, paired by round; null without a reference
    speedup_cpu: Spread | None
    word: NotRequired[str]  # beside the reference, by `report.stats.speed_word`; absent without a reference
    # Of a unit of work, and how near it comes to what the machine can do; absent without a roofline.
    flops: NotRequired[float]
    bytes: NotRequired[float]
    least_seconds: NotRequired[float]
    share: NotRequired[Spread]
    limit: NotRequired[str]  # "products" or "memory"


class Row(TypedDict):
    """One choice at one size."""

    choice: str
    length: int  # tokens in the cache, or in the sequence
    batch: int
    times: dict[str, Measured]  # by what was timed: "decode"; "forward", "backward", ...
    facts: dict[str, float | int | None]  # what was counted, such as cache_bytes
    note: str  # why something is missing, or ""


class Reading(TypedDict):
    """How fast a buffer is read again and again."""

    bytes: int
    bytes_per_second: float


class Roofline(TypedDict):
    """What this machine reaches, in the dtype of the run and with its threads."""

    flops_per_second: float  # of the fastest square matrix product
    side: int  # of that product's matrices
    seconds: str  # "cpu" (one thread) or "wall": the clock that rates and shares go by
    reading: list[Reading]


class Choice(TypedDict):
    """What a choice is."""

    name: str
    blocks: str
    layers: int  # of one repetition of its pattern; all figures are per layer
    parameters: int  # of what was timed, per layer


class Bench(TypedDict):
    """The whole of bench.json."""

    schema: str
    kind: str  # "decode"
    created: str
    title: str
    reference: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    command: str
    seconds: float
    choices: list[Choice]
    rows: list[Row]
    notes: list[str]
    roofline: NotRequired[Roofline | None]
