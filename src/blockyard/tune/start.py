"""What a search knows before anything is trained: its terms, the default configuration, the data, the figure."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from blockyard.compare.plan import State
from blockyard.errors import InputError
from blockyard.tasks.kind import Run, task_kind
from blockyard.tasks.run import DataCache
from blockyard.tasks.settings import resolve
from blockyard.training.config import FREE_ON_RESUME
from blockyard.tune.plan import make_plan
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import Space

STATE, LOCK = "search.json", "search.lock"
# Draws among which one must be a model that can be built, where the default configuration is none.
DRAWS = 30


class SearchState(State):
    """search.json: the terms of the search in a folder; one process at a time."""

    file, lock_file, schema, what = STATE, LOCK, "blockyard.tune-state/1", "search"
    empty: Mapping[str, Any] = {"seconds": 0.0}


class DefaultRun:
    """What is known before anything is trained: the default configuration, the data, the figure.

    Args:
        task: the kind of task, by name.
        space: what is searched.
        fixed: options that all trials share.
        config: the terms.

    Raises:
        InputError: when neither the default configuration nor any other can be made.
    """

    def __init__(self, task: str, space: Space, fixed: dict[str, Any], config: TuneConfig) -> None:
        self.task, self.space, self.fixed, self.config = task, space, fixed, config
        self.kind = task_kind(task)
        self.cache = DataCache()
        self.default: dict[str, Any] | None = space.defaults(fixed)
        self.notes: list[str] = []
        try:
            self.groups = space.defaults(fixed)
            run, data = self._built(self.groups)
        except InputError as error:
            # An option that is searched may have no default, or none that fits what is fixed.
            self.default = None
            self.groups, run, data = self._first_that_can_be_built()
            self.notes.append(f"There is no default configuration to compare with: {error}.")
        self.run, self.data = run, data
        self.threads = run.train.threads
        self.quality = run.kind.quality(data)
        own = [d.name for d in space.dimensions if d.group == "data"]
        if own:
            self.notes.append(
                f"{', '.join(own)} was searched: figures compare only as far as the validation data stay the same."
            )

    def _first_that_can_be_built(self) -> tuple[dict[str, Any], Run[Any, Any], Any]:
        errors = []
        for seed in range(DRAWS):
            try:
                groups, _ = self.space.draw(_Blind(seed), self.fixed)
                return groups, *self._built(groups)
            except InputError as error:
                errors.append(error)
        raise errors[0]

    def _built(self, groups: Mapping[str, Any]) -> tuple[Run[Any, Any], Any]:
        run, data = self.cache.fitted(resolve(groups, self.task))
        # Not by the clock: nothing is measured yet.
        config = replace(self.config, budget_unit="steps", budget_value=1.0)
        make_plan(run, data, config if self.config.budget_unit == "seconds" else self.config)
        return run, data


class _Blind:
    """Draws anything; the first time the first value of everything."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed) if seed else None

    def suggest_float(self, name: str, low: float, high: float, *, step: Any = None, log: bool = False) -> float:
        return self._random.choice([low, high]) if self._random else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._random.randrange(low, high + 1, step) if self._random else low

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._random.choice(list(choices)) if self._random else choices[0]


def terms_of(start: DefaultRun) -> dict[str, Any]:
    """Return everything that must stay the same for trials to belong to one search, as flat plain data."""
    config, searched = start.config, {d.name for d in start.space.dimensions}
    free = {f"train.{name}" for name in FREE_ON_RESUME} | {f"data.{name}" for name in start.kind.own_data_options}
    given = {
        f"{group}.{key}": value
        for group, options in start.fixed.items()
        if isinstance(options, Mapping)
        for key, value in options.items()
    }
    data = {key: value for key, value in start.kind.terms(start.run, start.data).items() if key not in searched}
    return {
        "task": start.task,
        "over": start.space.text,
        "budget.unit": config.budget_unit,
        "budget.value": config.budget_value,
        "evaluations": config.evaluations,
        "sampler": config.sampler,
        "pruner": config.pruner,
        "seed": config.seed,
        **data,
        **{key: value for key, value in given.items() if key not in free},
    }
