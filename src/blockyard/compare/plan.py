"""What will be run: every choice as a configuration of the reference's size and a number of steps, before training.

The plan is kept in compare.json in the output folder. The same command finds it again and goes on; other terms in the
same folder are refused, except more choices and more seeds, which only add runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from blockyard.compare.budget import expected_steps
from blockyard.compare.match import match
from blockyard.compare.settings import CompareConfig, Groups
from blockyard.errors import InputError
from blockyard.files import parse_json, write_atomically
from blockyard.models.config import BlocksConfig
from blockyard.models.estimate import on_meta
from blockyard.registry.pattern import format_choice, parse_choice
from blockyard.report import schema
from blockyard.report.ranking import plan_looks
from blockyard.tasks.kind import DEFAULT, Run
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.config import FREE_ON_RESUME, TrainConfig, as_dict
from blockyard.training.folder import locked_folder
from blockyard.training.task import Task, check_task

STATE, LOCK = "compare.json", "compare.lock"
STATE_SCHEMA = "blockyard.compare-state/1"
# Curves of more points than this only make the report larger.
CURVE_POINTS = 400


@dataclass(frozen=True)
class Planned:
    """One choice, ready to be trained.

    Args:
        name: the choice as the user wrote it.
        model: its configuration, sized to the reference.
        match: how it was sized.
        steps: steps of each run; with a budget in seconds, the most it may make.
        seconds_per_step: training clock of a step as measured when the plan was made (budgets in seconds only).
        rate: factor on the recipe's learning rates.
    """

    name: str
    model: BlocksConfig
    match: schema.Match
    steps: int
    seconds_per_step: float | None
    rate: float = 1.0

    @property
    def blocks(self) -> str:
        """All layers as text, with the hidden widths that the match chose."""
        return format_choice(
            parse_choice(self.model.blocks) if isinstance(self.model.blocks, str) else self.model.blocks
        )


def base_run(task: str, groups: Groups) -> Run[Any, Any]:
    """Return the shared options of a task, checked: model, train, data and plugins.

    Raises:
        InputError: for an unknown group or option, or a wrong type.
    """
    for name in groups:
        if name not in ("model", "train", "data", "plugins"):
            raise InputError(
                f"{name}.*: compare takes the options of blocks in brackets behind their name, as in "
                "--blocks 'standard;standard[window=64]'"
            )
    # A pattern is what is compared; as a shared option it would be all choices at once.
    if (groups.get("model") or {}).get("pattern"):
        raise InputError("model.pattern: compare takes its layers from --blocks")
    return resolve(groups, task)


def configurations(config: CompareConfig, base: Run[Any, Any]) -> dict[str, Any]:
    """Return every choice as a model configuration, unmatched.

    Raises:
        InputError: for an unknown name or option in a choice.
    """
    # The FFN of a choice that names none is the task's to say: a complex task has a complex one.
    ffn = base.kind.choice_ffn
    return {name: replace(base.model, blocks=tuple(parse_choice(name, ffn))) for name in config.names}


def make_plan(
    config: CompareConfig,
    choices: Mapping[str, BlocksConfig],
    base: Run[Any, Any],
    data: Any,
    known: Mapping[str, Any],
    seconds_per_step: Callable[[dict[str, BlocksConfig]], dict[str, float]],
) -> list[Planned]:
    """Size every choice and count its steps.

    Args:
        config: the terms.
        choices: name -> configuration, the reference first.
        base: the shared options.
        data: the task's data.
        known: what compare.json holds of a plan made before, by name: its steps and speeds are kept.
        seconds_per_step: measures the training clock of a step for the choices that need it, in turns.

    Raises:
        InputError: when a choice cannot be built or the budget is less than a step.
    """
    # The first as written: a reader compares with what they have now.
    reference = next(iter(choices.values()))
    matched = {name: match(reference, model, config.match) for name, model in choices.items()}
    # Kept ones are not measured again: their runs were planned by them.
    speeds: dict[str, float | None] = {name: known.get(name, {}).get("seconds_per_step") for name in choices}
    # Timed at their matched size, which is what will be trained.
    missing = {name: matched[name].config for name in choices if name not in known}
    if config.budget_unit == "seconds" and missing:
        speeds.update(seconds_per_step(missing))
    planned = []
    for name, found in matched.items():
        steps = known.get(name, {}).get("steps")
        if not steps:
            task = task_on_meta(replace(base, model=found.config), data)
            steps = config.budget.steps(task, speeds[name])
        planned.append(Planned(name, found.config, found.record, steps, speeds[name]))
    return planned


def task_on_meta(run: Run[Any, Any], data: Any) -> Task:
    """Return the task of a run with a model that takes no memory: what a step counts, what the model's size is."""
    # The task's own numbers and no estimate: what a step counts is what the run will count.
    task = on_meta(lambda: run.kind.make_task(run, data))
    check_task(task)
    return task


def run_of(planned: Planned, base: Run[Any, Any], config: CompareConfig, seed: int) -> Run[Any, Any]:
    """Return one run: the planned model with one seed, evaluated and saved at even distances."""
    expected = expected_steps(config.budget_unit, planned.steps)
    # By expected steps: a run that the clock ends makes a third of those that are allowed.
    every = max(1, expected // config.evaluations)
    train = watched(at_rate(base.train, planned.rate), planned.steps, expected, every, seed)
    return replace(base, model=planned.model, train=train)


def at_rate(train: TrainConfig, factor: float) -> TrainConfig:
    """Return the training options with every peak learning rate times a factor; systems' own factors stay."""
    if factor == 1:
        return train
    return replace(train, lr=train.adamw_lr * factor, matrix_lr=train.matrix_lr * factor)


def watched(train: TrainConfig, steps: int, expected: int, every: int, seed: int) -> TrainConfig:
    """Return training options of a run that the workbench advances, judges and keeps.

    Args:
        train: the shared options.
        steps: the most it may make.
        expected: how many it will make, as far as known; its curve is to have `CURVE_POINTS` points.
        every: steps between two evaluations, each with a checkpoint.
        seed: the run's.
    """
    return replace(
        train,
        steps=steps,
        seed=seed,
        eval_every=every,
        save_every=every,
        log_every=max(1, expected // CURVE_POINTS),
        keep=1,
        save_best=False,
        # A choice that diverges is to be told, not nursed past its bad batches.
        on_non_finite="stop",
        progress=False,
        log=None,
        tensorboard=False,
    )


def folder_of(out: Path, name: str, seed: int) -> Path:
    """Return where a run lives: runs/CHOICE/seed-N."""
    return out / "runs" / slug_of(name) / f"seed-{seed}"


def slug_of(name: str) -> str:
    """Return a choice's name reduced to what every file system takes."""
    # Brackets, stars and equals signs mean something to shells and are forbidden on some disks.
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
    if slug != name:  # two choices may reduce to the same letters
        slug = f"{slug[:60]}-{sha256(name.encode()).hexdigest()[:6]}"
    return slug


def differing_terms(before: Mapping[str, Any] | None, terms: Mapping[str, Any]) -> list[str]:
    """Return how terms differ from those that a folder was begun with, as words; nothing where it has none."""
    # As the file gives them back: tuples are lists there, and would differ from themselves.
    terms = json.loads(json.dumps(terms))
    if before is None:
        return []
    # Folders from before rates were searched for have one rate for all.
    if "rates" in terms:
        before = {"rates": "one", **before}
    return [
        f"{key} was {before.get(key)!r}, now {terms.get(key)!r}"
        for key in {**before, **terms}
        if before.get(key) != terms.get(key)
    ]


class State:
    """compare.json: the terms and plan of the comparison in a folder, and what was measured; one process at a time.

    Args:
        out: the comparison's folder, made if missing.

    Raises:
        InputError: when the folder cannot be written, is in use, or holds a damaged or foreign state.
    """

    file, lock_file, schema, what = STATE, LOCK, STATE_SCHEMA, "comparison"
    empty: Mapping[str, Any] = {"plan": {}, "measured": {}}

    def __init__(self, out: Path) -> None:
        self.path = out / self.file
        # Two comparisons in one folder would each take the other's runs for killed ones.
        self.lock = locked_folder(out, self.lock_file, str(out), self.what)
        try:
            self.data = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"schema": self.schema, "terms": None, **deepcopy(dict(self.empty))}
        try:
            data = parse_json(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path} cannot be read ({error}); remove it to plan again") from error
        if not isinstance(data, dict) or data.get("schema") != self.schema:
            raise InputError(f"{self.path} is not of this version ({self.schema}); use another --out")
        # What an older version did not write is empty, not missing.
        data = {**deepcopy(dict(self.empty)), **data}
        kinds = {name: dict if isinstance(empty, dict) else int | float for name, empty in self.empty.items()}
        wrong = [name for name, kind in kinds.items() if not isinstance(data[name], kind)]
        if wrong or not isinstance(data.get("terms"), dict | None):
            raise InputError(f"{self.path} is damaged at {(wrong or ['terms'])[0]!r}; remove it to plan again")
        return data

    def agree(self, terms: dict[str, Any]) -> None:
        """Check the terms against those the folder was begun with, or note them in a new folder.

        Raises:
            InputError: naming what differs.
        """
        different = differing_terms(self.data["terms"], terms)
        if self.data["terms"] is None:
            self.data["terms"] = json.loads(json.dumps(terms))
            return
        if different:
            raise InputError(
                f"{self.path.parent} holds a {self.what} on other terms: {'; '.join(different)}; "
                "use its own terms or another --out"
            )

    def keep_plan(self, plan: list[Planned]) -> None:
        """Remember steps and speeds, so that a continued comparison does not measure (and decide) anew."""
        for planned in plan:
            self.data["plan"][planned.name] = {
                "blocks": planned.blocks,
                "steps": planned.steps,
                "seconds_per_step": planned.seconds_per_step,
            }
        self.save()

    def save(self) -> None:
        """Write the state as a whole."""
        # Indented: people look into it to see what was planned.
        write_atomically(self.path, json.dumps(self.data, indent=1) + "\n")

    def close(self) -> None:
        """Let the folder go."""
        self.lock.close()


def terms_of(config: CompareConfig, base: Run[Any, Any], data: Any) -> dict[str, Any]:
    """Return everything that must stay the same for runs to belong to one comparison, as flat plain data."""
    groups = as_groups(base)
    # The layers are the choices, each with its own runs: adding one changes no term.
    model = {key: value for key, value in groups["model"].items() if key != "pattern"}
    free = FREE_ON_RESUME | {"steps", "eval_every"}  # planned per choice
    train = {key: value for key, value in as_dict(base.train).items() if key not in free}
    terms: dict[str, Any] = {
        "match": config.match,
        "budget.unit": config.budget_unit,
        "budget.value": config.budget_value,
        "evaluations": config.evaluations,
        "rates": config.rates,
        **base.kind.terms(base, data),
    }
    if config.seeds == "auto":
        # Other looks would spend the error twice.
        terms["looks"] = [look["seeds"] for look in plan_looks(config.most_seeds)]
    if base.task != DEFAULT:  # folders from before there were several tasks do not name it
        terms["task"] = base.task
    if config.match != "none":
        terms["first choice (the reference)"] = config.names[0]
    # Folders from before an option existed do not name it; each kept run is asked what it came to there.
    terms |= {f"model.{key}": value for key, value in model.items() if key not in base.model.older}
    return terms | {f"train.{key}": value for key, value in train.items()}
