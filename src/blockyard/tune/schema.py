"""The shape of tune.json, as types. docs/tuning.md is the same in words."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

SCHEMA = "blockyard.tune/1"


class Curve(TypedDict):
    """A run's figure while it trained, as columns of equal length."""

    tokens: list[int]
    part: list[float]  # of the budget
    value: list[float | None]


class Trial(TypedDict):
    """One trial of the search."""

    number: int
    status: str  # "finished" | "pruned" | "diverged" | "failed" | "unfinished"
    settings: dict[str, Any]  # what was drawn, by option; an option of a block that was not used is absent
    value: float | None  # at the end of the budget, with the search's own seed; of a pruned one, where it was stopped
    part: float  # of the budget that was spent
    same_as: int | None  # the trial whose settings it drew again, and whose figures these are
    steps: int
    tokens: int
    seconds: float
    cpu_seconds: float
    flops: float
    parameters: int | None
    note: str
    curve: Curve | None
    folder: str


class FinalRun(TypedDict):
    """One run with a fresh seed."""

    seed: int
    status: str  # "finished" | "diverged"
    value: float | None
    steps: int
    tokens: int
    seconds: float
    note: str
    folder: str


class Final(TypedDict):
    """One configuration with fresh seeds."""

    name: str  # "default" | "trial 7"
    trial: int | None
    settings: dict[str, Any]  # of the options searched: the trial's draw, or the defaults
    blocks: str  # all layers as text
    parameters: int | None
    search_value: float | None  # the figure that the search saw
    runs: list[FinalRun]
    mean: float | None
    half_width: float | None  # of the 95 % interval over seeds
    diverged: int
    difference: float | None  # mean minus the default's
    difference_half_width: float | None  # all intervals of a search hold at once
    verdict: str  # against the default: a word of `report.stats.Word`; "" for the default itself
    more_seeds: NotRequired[int | None]  # where undecided: seeds to add to each that should decide; null when many


class Importance(TypedDict):
    """How much of the order of the trials an option explains alone."""

    name: str
    share: float  # 0 to 1
    n: int  # trials that drew it


class Best(TypedDict):
    """The configuration in best.yaml."""

    name: str
    trial: int | None
    settings: dict[str, Any]
    value: float | None  # mean over fresh seeds; of the trial itself where none were run
    half_width: float | None
    seeds: int  # fresh seeds that it was run with


class Verdict(TypedDict):
    """What may be said."""

    # as `verdict.judge` gives them: "better", "worse", "equivalent", "undecided", "none", "one_seed", "search_only", …
    kind: str
    headline: str
    details: list[str]


class Tuning(TypedDict):
    """The whole of tune.json."""

    schema: str
    status: str  # "searching" | "running again" | "complete"
    created: str
    task: str
    title: str
    input_unit: str
    quality: dict[str, Any]  # metric, unit, key, better, margin
    budget: dict[str, Any]  # unit, value
    search: dict[str, Any]  # the terms: trials, sampler, pruner, seed, …
    space: list[dict[str, Any]]
    fixed: dict[str, Any]
    trials: list[Trial]
    importance: list[Importance]
    seeds: list[int]  # of the finals
    finals: list[Final]
    best: Best | None
    verdict: Verdict
    provenance: dict[str, Any]
    notes: NotRequired[list[str]]
