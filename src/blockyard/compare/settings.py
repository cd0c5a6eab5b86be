"""What a comparison is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from blockyard.compare.budget import Budget
from blockyard.compare.engine import RAY, EngineConfig
from blockyard.errors import InputError, at_least, at_most, one_of
from blockyard.registry.pattern import split_choices
from blockyard.report.units import command_line
from blockyard.report.wants import parse_want

Groups = Mapping[str, Mapping[str, Any]]
# Fields whose names begin so are options of a group of that name.
BUDGET = "budget_"
# What a comparison or a search decides for every run by itself: options of the group `train` that neither has.
DECIDED = ("steps", "init", "eval_every", "save_every", "log_every", "keep", "save_best", "on_non_finite", "progress",
           "log", "tensorboard")  # fmt: skip

# Of what is listed or kept for each, more than anybody asks for.
MOST = {
    "seeds": 10_000,
    "most_seeds": 10_000,
    "evaluations": 1_000_000,
    "sample_tokens": 1_000_000,
}


@dataclass(frozen=True)
class CompareConfig(EngineConfig):
    """The terms of a comparison; what the models, the training and the data are comes as option groups beside it.

    Args:
        blocks: the choices, separated by `;` or (when none has brackets) `,`; the first is the reference.
        match: make all choices as large as the first in `params` or in `flops` per token, or `none`.
        budget_unit: what every run may spend: `tokens` (or whatever the task's input is counted in), `seconds` of
            training clock, or `flops` of training.
        budget_value: how much of it.
        rates: learning rates: `auto` finds every choice's own by short probes, at 1/2, 1 and 2 times the recipe's and
            further while the best is at an end; `one` trains all at the recipe's; or factors to try, such as 0.5,1,2,4.
        margin: differences that do not matter in the figure that ranks: choices shown to be as near are equivalent;
            none for 1 % of the best loss, or .01 of an accuracy.
        confirm: a second file or folder of data, as data.path takes it: every choice is trained on it too, with its
            rate and its seeds, and the report says whether the order is the same there.
        beside: folders of runs, imported models among them, that are evaluated on the same validation data as they are,
            without training, and shown beside the choices; language models in nats per byte, as tokenizers differ.
        earlier: folders of smaller comparisons of the same task that came before: the report says what they answered,
            and whether this one finds the same.
        want: conditions of a purpose, such as cache<1KiB,decode>=standard: the report also says which choice is best
            among those that meet them all. Figures: cache, decode, train, memory, parameters, flops.
        seeds: number of runs of each choice, with seeds train.seed, train.seed + 1, …; intervals need two or more.
            `auto` begins with 3 and adds more where the verdict is undecided.
        most_seeds: with `auto`, seeds that a choice has at most.
        slice_steps: steps a run makes before it is the next one's turn.
        evaluations: evaluations spread over each run.
        prompt: text that every model continues; none takes the beginning of the validation text.
        sample_tokens: tokens each model writes for the report.
        temperature: temperature of that sampling.
        measure_memory: measure peak memory, in a fresh process for each choice.
        lengths: lengths at which training speed and memory are measured too, with as many tokens in a batch; none for
            none.
        join: train runs of the comparison on these terms that another process leads in the same folder, on storage that
            both see, and end when there are no more; the leader makes the report.
    """

    blocks: str
    match: Literal["params", "flops", "none"] = "params"
    budget_unit: Literal["tokens", "seconds", "flops"] = "tokens"
    budget_value: float = 500_000
    rates: str = "auto"
    margin: float | None = None
    confirm: str | None = None
    beside: tuple[str, ...] | None = None
    earlier: tuple[str, ...] | None = None
    want: tuple[str, ...] | None = None
    seeds: int | Literal["auto"] = 3
    most_seeds: int = 12
    slice_steps: int = 25
    evaluations: int = 12
    prompt: str | None = None
    sample_tokens: int = 300
    temperature: float = 0.8
    measure_memory: bool = True
    lengths: tuple[int, ...] | None = None
    join: bool = False

    def __post_init__(self) -> None:
        # Checked here and not by the option's type alone: a comparison can be asked for from Python, too.
        self.check_engine()
        self.check_join(self.join)
        one_of(("params", "flops", "none"), match=self.match)
        one_of(("tokens", "seconds", "flops"), **{"budget.unit": self.budget_unit})
        if not 0 < self.budget_value < float("inf"):
            raise InputError(f"budget.value={self.budget_value} must be a number above 0")
        # None passes every bound: "auto" is no number.
        counts = {**vars(self), "seeds": None if self.seeds == "auto" else self.seeds}
        at_least(1, **{name: counts[name] for name in MOST})
        for name, most in MOST.items():
            at_most(most, **{name: counts[name]})
        at_least(1, slice_steps=self.slice_steps)
        at_least(2, ": one seed decides nothing", most_seeds=self.most_seeds)
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature={self.temperature} should be at least 0")
        if self.lengths is not None and (not self.lengths or min(self.lengths) < 1):
            raise InputError(f"lengths={','.join(map(str, self.lengths))} should be numbers of at least 1")
        check_margin(self.margin)
        # Read for its refusal: a bad list of factors is told before data are read.
        _ = self.ladder
        names = self.names
        for text in self.want or ():
            # For its refusal, too, and with the names: a wish may compare with a choice.
            parse_want(text, names)
        # Two lines of one name would be one folder; and comparing a block with itself needs only more seeds.
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise InputError(f"blocks names {twice!r} twice; every choice stands once")

    @property
    def names(self) -> list[str]:
        """The choices as written, the reference first."""
        # Without spaces, so that a choice has one name however it was typed, and one folder.
        return ["".join(choice.split()) for choice in split_choices(self.blocks)]

    @property
    def budget(self) -> Budget:
        """What every run may spend, and how runs take turns."""
        return Budget(self.budget_unit, self.budget_value, self.slice_steps, self)

    @property
    def ladder(self) -> tuple[float, ...] | None:
        """The factors on the recipe's rates that are asked for; None where they are not listed.

        Raises:
            InputError: for what is neither a list of numbers above 0 nor a known word.
        """
        if self.rates in ("auto", "one"):
            return None
        try:
            factors = tuple(sorted({float(word) for word in self.rates.split(",")}))
        except ValueError:
            factors = (0.0,)
        if not all(1e-6 <= factor <= 1e6 for factor in factors) or len(factors) > 100:
            raise InputError(f"rates={self.rates!r} should be auto, one, or factors such as 0.5,1,2")
        # Folders and reports tell factors by six digits.
        if len({f"{factor:g}" for factor in factors}) < len(factors):
            raise InputError(f"rates={self.rates!r} names two factors that are equal in six digits")
        return factors

    def command(self, task: str, groups: Groups, out: str) -> str:
        """Return the command line that asks for this comparison again."""
        return command_of(f"blockyard compare {task}", [("blocks", ";".join(self.names))], self, groups, out)


def command_of(command: str, first: list[tuple[str, Any]], config: Any, groups: Groups, out: str) -> str:
    """Write the command line that asks for a comparison or a search again.

    Args:
        command: its first words.
        first: options that are always given; those of `config` follow as far as they are not the defaults.
        config: the terms.
        groups: what all runs share.
        out: its folder.
    """
    known = {flag for flag, _ in first}
    # Only what differs from the defaults: a command that one can read, and that later defaults leave alone.
    changed = [(f.name, getattr(config, f.name)) for f in fields(config) if getattr(config, f.name) != f.default]
    words = first + [(flag(name), value) for name, value in changed if name not in known]
    for group, options in groups.items():
        if group == "plugins":
            words += [("plugin", module) for module in options]
        else:
            # Not none, which is a choice of some options and another one than no value.
            words += [(f"{group}.{key}", "null" if value is None else value) for key, value in options.items()]
    return command_line(command, [*words, ("out", out)])


def check_margin(margin: float | None) -> None:
    """Refuse a margin that is no number of at least 0.

    Raises:
        InputError: saying so.
    """
    if margin is not None and not 0 <= margin < float("inf"):
        raise InputError(f"margin={margin} should be a number of at least 0, in the unit of the figure that ranks")


def flag(field: str) -> str:
    """Return the option's name on the command line: `budget.unit`, not `budget_unit`."""
    for group in (BUDGET, RAY):
        if field.startswith(group):
            return field.replace("_", ".", 1)
    return field
