"""What a search is asked to do."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from blockyard.compare.budget import Budget
from blockyard.compare.engine import EngineConfig
from blockyard.compare.settings import Groups, check_margin, command_of, flag
from blockyard.errors import InputError, at_least, at_most, one_of

# Steps between two looks at whether a signal came.
SLICE_STEPS = 10
# Trials drawn blindly before the sampler learns from what it has seen.
STARTUP = 10
# Of what a search keeps in memory for each, starts at once, or hands to samplers with seeds of 32 bits.
MOST = {
    "trials": 1_000_000,
    "evaluations": 1_000_000,
    "finalists": 1_000,
    "seeds": 1_000,
    "seed": 2**32 - 1,
}


@dataclass(frozen=True)
class TuneConfig(EngineConfig):
    """The terms of a search; what is searched and what is fixed come beside it.

    Args:
        trials: trials in all; given again with more, the search goes on.
        budget_unit: what every run may spend: `tokens` (or whatever the task's input is counted in), `steps`,
            `seconds` of training clock, or `flops` of training.
        budget_value: how much of it.
        evaluations: evaluations spread over each run, where a poor trial may be stopped.
        sampler: `tpe` (tree-structured Parzen estimator: learns from the trials before) or `random`.
        pruner: stop trials early that are worse than the `median` of the finished ones at the same part of the budget,
            or outside the best third at each rung of `hyperband`; or `none`.
        seed: seed of the search's draws; train.seed is that of the training.
        finalists: how many of the best trials are run again with fresh seeds, beside the default configuration.
        seeds: fresh seeds of each; 0 runs nothing again, and then nothing is claimed.
        storage: URL of a database that several machines search in together, such as sqlite:////shared/search.db or
            postgresql://NAME@HOST/DATABASE; none keeps the trials in the folder alone.
        join: make trials of the search on these terms that another machine leads, and end when there are no more; the
            leader makes the report.
        margin: differences in the figure that do not matter: what is shown to be as near is equivalent; none for 1 % of
            the best loss, or .01 of an accuracy.
    """

    trials: int = 30
    budget_unit: Literal["tokens", "steps", "seconds", "flops"] = "tokens"
    budget_value: float = 500_000
    evaluations: int = 12
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["none", "median", "hyperband"] = "median"
    seed: int = 0
    finalists: int = 3
    seeds: int = 3
    storage: str | None = None
    join: bool = False
    margin: float | None = None

    def __post_init__(self) -> None:
        self.check_engine()
        choices = {
            "budget_unit": ("tokens", "steps", "seconds", "flops"),
            "sampler": ("tpe", "random"),
            "pruner": ("none", "median", "hyperband"),
        }
        for name, allowed in choices.items():
            one_of(allowed, **{flag(name): getattr(self, name)})
        if not 0 < self.budget_value < float("inf"):
            raise InputError(f"budget.value={self.budget_value} must be a number above 0")
        if self.join and self.storage is None:
            raise InputError("join: name the database of the search, too: --storage URL")
        self.check_join(self.join)
        at_least(1, **{name: getattr(self, name) for name in ("trials", "evaluations", "finalists")})
        at_least(0, seeds=self.seeds, seed=self.seed)
        check_margin(self.margin)
        for name, most in MOST.items():
            at_most(most, **{name: getattr(self, name)})

    @property
    def budget(self) -> Budget:
        """What every run may spend, and how runs take turns."""
        return Budget(self.budget_unit, self.budget_value, SLICE_STEPS, self)

    @property
    def public(self) -> TuneConfig:
        """The terms as a report may tell them: without the password of a database."""
        return replace(self, storage=None if self.storage is None else hidden(self.storage))

    def command(self, task: str, over: str, groups: Groups, out: str) -> str:
        """Return the command line that asks for this search again."""
        return command_of(f"blockyard tune {task}", [("over", over)], self.public, groups, out)


def hidden(text: str) -> str:
    """Return a text without the passwords of the URLs in it."""
    # To the last @ of it: a password that was not escaped has one, too.
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    # Drivers take it behind the question mark as well.
    return re.sub(r"([?&][^=&\s]*(?:pass|pwd)[^=&\s]*=)[^&\s'\"]*", r"\1***", text, flags=re.IGNORECASE)


def plain_groups(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy whose groups may be written to."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in groups.items()}
