"""`compare`: block choices trained side by side at an equal budget, measured, and reported.

The whole path in one place: check every name, load the data once, size the models, plan the steps, train in turns,
measure what they cost, report. What differs between tasks comes from the task's kind (`tasks/kind.py`) and its
parts of the report (`report/parts.py`). Everything before training either succeeds or says in one line what to change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from blockyard.compare import measure
from blockyard.compare.beside import check_beside
from blockyard.compare.confirm import SecondText, can_confirm, confirm, second_text
from blockyard.compare.costs import measurements, scaling
from blockyard.compare.earlier import earlier_answers
from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.launch import check_reachable
from blockyard.compare.live import Board, make_board
from blockyard.compare.output import load_report, write_report
from blockyard.compare.plan import (
    Planned,
    State,
    at_rate,
    base_run,
    configurations,
    folder_of,
    make_plan,
    task_on_meta,
    terms_of,
)
from blockyard.compare.provenance import machine_of, versions
from blockyard.compare.rates import rates_of, with_rates
from blockyard.compare.results import decisions_of
from blockyard.compare.seeds import train_seeds
from blockyard.compare.settings import CompareConfig, Groups
from blockyard.compare.sharing import Sharing
from blockyard.errors import InputError
from blockyard.files import check_writable, nothing_left
from blockyard.machine.launch import world_size
from blockyard.machine.memory import forcing
from blockyard.mirror import is_url, mirrored, place_of
from blockyard.models.config import BlocksConfig
from blockyard.models.inside import kernels_of
from blockyard.models.order import order_note
from blockyard.report import schema
from blockyard.report.parts import first_finished
from blockyard.tasks.kind import Run
from blockyard.tasks.run import load_run
from blockyard.tasks.sizes import check_data, check_training
from blockyard.training.config import as_dict
from blockyard.training.task import Task


def compare_lm(
    config: CompareConfig, groups: Groups | None = None, out: str | Path = "comparison", *, show: bool = True
) -> schema.Report:
    """Compare block choices as language models; see `compare`."""
    return compare("lm", config, groups, out, show=show)


def compare(
    task: str,
    config: CompareConfig,
    groups: Groups | None = None,
    out: str | Path = "comparison",
    *,
    show: bool = True,
    force: bool = False,
    notes: Sequence[str] = (),
    tell: bool = True,
) -> schema.Report:
    """Compare block choices on a task and write the report into a folder.

    The folder can be given again after a kill (the same terms go on where the last checkpoints are), or with more
    choices or seeds (only what is missing is run).

    Args:
        task: the kind of task, by name.
        config: the terms.
        groups: shared options: `model`, `train`, `data` (as `train` takes them) and `plugins`.
        out: folder of the runs and the report, or its URL.
        show: show progress on standard error.
        force: train also what by its estimate does not fit into memory.
        notes: sentences that a reader of the report should know first.
        tell: where progress is shown, end with the answer and the report's place.

    Returns: the report, as report.json holds it.

    Raises:
        InputError: for anything the user can put right, before anything is trained where it can be known.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    # Of this call alone: a comparison that is gone on with tells what the last part took.
    started = time.monotonic()
    # Two processes would each train every run; --workers is how a comparison takes several.
    if world_size() > 1:
        raise InputError("compare runs in one process; start it without torchrun")
    if config.join:
        raise InputError("join: a comparison is joined by `join_comparison`, which makes no report")
    if is_url(out):
        with mirrored(str(out)) as folder:
            return compare(task, config, groups, folder, show=show, force=force, notes=notes, tell=tell)
    # A copy, as the report names what was asked for.
    groups = dict(groups or {})
    out = Path(out)
    with forcing(force):
        base, choices = checked(task, config, groups)
    check_reachable(config)
    check_beside(config, base)
    before = earlier_answers(config, base)
    # Measurements are made in this process, with the threads that the runs have.
    if base.train.threads:
        torch.set_num_threads(base.train.threads)
    check_writable(out, folder=True)
    # After everything that can be refused: a table on the screen would bury the line that says why.
    board = make_board(show, base.kind.unit)
    try:
        data, second = base.kind.load_data(base.data, base.model), second_text(config, base)
        # A folder that was made for a comparison that never began goes with it.
        with nothing_left(out) as keep, closing(State(out)) as state, forcing(force), Sharing(out).leading():
            said: dict[str, Any] = {"notes": list(notes), **({"earlier": before} if before else {})}
            report = _compare(config, groups, out, base, choices, data, second, said, state, board, started, keep)
            if tell:
                board.say(report["verdict"]["headline"])
                board.say(f"report: {place_of(out / 'report.html')}")
            return report
    finally:
        board.close()


def checked(task: str, config: CompareConfig, groups: Groups) -> tuple[Run[Any, Any], dict[str, BlocksConfig]]:
    """Return the shared options, and the choices by name, with all refused that can be before data are read.

    Raises:
        InputError: for that.
    """
    base = base_run(task, groups)
    if config.lengths is not None and base.kind.at_length(base.model, 1) is None:
        raise InputError(f"lengths: models of the task {task!r} have one length (its TaskKind gives no at_length)")
    # Names and options of all choices before any data are read: a typo in the last one is told in a second.
    choices = configurations(config, base)
    # Estimates first: a model that cannot fit is refused before a text of a gigabyte is read.
    check_data(base)
    for name, model in choices.items():
        check_training(replace(base, model=model), f"the model of {name}", fitted=False)
    for model in choices.values():
        _ = model.layers  # every layer's options, before any data are read
    return base, choices


def _compare(
    config: CompareConfig,
    groups: Groups,
    out: Path,
    base: Run[Any, Any],
    choices: Mapping[str, BlocksConfig],
    data: Any,
    second: SecondText | None,
    said: Mapping[str, Any],
    state: State,
    board: Board,
    started: float,
    keep: Callable[[], None],
) -> schema.Report:
    # What follows from data, a vocabulary above all, is part of a model's size and has to be there before sizes are
    # matched.
    choices = {name: base.kind.fit(model, data.assets) for name, model in choices.items()}
    for name, model in choices.items():
        # Once more: a vocabulary's size follows from the data.
        check_training(replace(base, model=model), f"the model of {name}", fitted=True)
    # Before anything is measured: a folder of other terms holds runs that this report must not mix in.
    state.agree(terms_of(config, base, data))

    def pace(models: dict[str, BlocksConfig]) -> dict[str, float]:
        board.say(f"measuring the speed of {', '.join(models)}")
        runs = {name: replace(base, model=model) for name, model in models.items()}
        return measure.seconds_per_step(runs, data, config.budget_value)

    # Steps are planned once per choice: a continued comparison that measured its speed again would change the schedule
    # of runs that have begun.
    plan = make_plan(config, choices, base, data, state.data["plan"], pace)
    state.keep_plan(plan)
    keep()
    for planned in plan:
        board.say(f"{planned.name}: {planned.steps} steps, {planned.match['got']:,} ({planned.match['miss']:+.2%})")
    plan = with_rates(plan, config, base, data, state, board, out)
    # The verdict's runs; everything after them only looks at what they left.
    results, looks = train_seeds(plan, config, base, data, board, out)
    confirmation = confirm(second, plan, results, config, state, board, out) if second is not None else None
    Sharing(out).finish()
    # The system took their process, twice: measuring them here would take this one.
    killed = {name for (name, _), run in results.items() if run["status"] == "killed"}
    measured = measurements(config, base, plan, data, state, board, out, killed)
    scalings = scaling(config, base, plan, state, board, killed)
    report = _report(config, groups, out, base, plan, data, results, measured, time.monotonic() - started)
    for choice, found in zip(report["choices"], scalings):
        choice["scaling"] = found
    if can_confirm(base):
        report["confirmation"] = confirmation
    if looks is not None:
        report["looks"] = looks
    report["notes"] = [*said["notes"], *report["notes"]]
    if "earlier" in said:
        report["earlier"] = said["earlier"]
    _add_rates(report, plan, state, base)
    write_report(report, out)
    # Read back, not returned as made: what a caller gets is what the file holds, rounded and checked.
    return load_report(out)


def _add_rates(report: schema.Report, plan: list[Planned], state: State, base: Run[Any, Any]) -> None:
    """Put into the report at which rates the choices ran, and what the search for them found."""
    found = rates_of(plan, state, -1 if report["quality"]["better"] == "higher" else 1)
    if found is None:
        return
    # The search's price is told beside the runs it served; a reader should know what fairness cost.
    spent = sum(run["seconds"] for choice in report["choices"] for run in choice["runs"])
    # mypy: found as plain data, in the shape of the schema.
    report["rates"] = {**found, "cost": found["seconds"] / spent if spent else None}  # type: ignore[typeddict-item]
    for planned, choice in zip(plan, report["choices"]):
        probes = state.data["rates"][planned.name]
        train = at_rate(base.train, planned.rate)
        choice["rate"] = {
            "factor": planned.rate,
            "lr": train.adamw_lr,
            "matrix_lr": train.matrix_lr if train.optimizer == "muon" else None,
            "factors": probes["factors"],
            "figures": probes["figures"],
        }


def _report(
    config: CompareConfig,
    groups: Groups,
    out: Path,
    base: Run[Any, Any],
    plan: list[Planned],
    data: Any,
    results: Mapping[tuple[str, int], schema.Run],
    measured: Mapping[str, Any],
    seconds: float,
) -> schema.Report:
    kind, parts = base.kind, base.kind.report()
    # Of all choices together: with `--seeds auto` some have more than others.
    seeds = sorted({seed for _, seed in results})
    # Models without memory: sizes and formulas are all that a report asks of them.
    tasks = {p.name: task_on_meta(replace(base, model=p.model), data) for p in plan}
    choices, notes = [], []
    for planned in plan:
        runs = [results[(planned.name, seed)] for seed in seeds if (planned.name, seed) in results]
        choice = _choice(planned, runs, measured[planned.name], tasks[planned.name])
        if measured[planned.name].get("failed"):
            notes.append(f"The speed of {planned.name} could not be measured: {measured[planned.name]['failed']}.")
        shown = first_finished(runs)
        if shown is not None:
            folder = folder_of(out, planned.name, shown["seed"])
            try:
                choice["sample"] = parts.sample(config, folder, data)
                choice["attention"] = parts.attention(folder, data)
                choice["kernels"] = _kernels(folder, tasks[planned.name].model)
            except Exception as error:
                # Its runs ended well; what cannot be shown of them takes nothing from the rest.
                if is_of_the_machine(error):
                    raise
                notes.append(f"{planned.name} could not be looked into: {keep_failure(error, folder)}.")
        choices.append(choice)
    # Decided for each run or of no matter to its numbers: the settings that a reader sees are those shared by all.
    free = (
        "steps",
        "seed",
        "eval_every",
        "save_every",
        "log_every",
        "keep",
        "save_best",
        "progress",
        "log",
        "tensorboard",
    )
    model = {k: v for k, v in asdict(plan[0].model).items() if k != "blocks"}
    quality = kind.quality(data)
    beside = [kind.beside(Path(folder), base, data) for folder in config.beside or ()]
    read = {p.name: p.steps * tasks[p.name].tokens_per_step for p in plan}
    return {
        "schema": schema.SCHEMA,
        "status": "complete",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": kind.name,
        "title": kind.title,
        # A figure per token of a task that reads windows would be per something else: words follow the task.
        "input_unit": kind.unit,
        "reference": plan[0].name,
        "budget": {"unit": config.budget_unit, "value": config.budget_value},
        "match": config.match,
        "seeds": seeds,
        "quality": {
            "metric": quality.metric,
            "unit": quality.unit,
            "key": quality.key,
            "better": quality.better,
            "loss_unit": quality.loss_unit or quality.unit,
            "margin": quality.margin,
            **quality.facts,
            **kind.references(data),
            **({"beside": beside} if beside else {}),
        },
        "settings": {
            "model": model,
            "train": {k: v for k, v in as_dict(base.train).items() if k not in free},
            "data": asdict(base.data),
            "compare": {k: v for k, v in asdict(config).items() if k != "blocks"},
        },
        "provenance": {
            "command": config.command(base.task, groups, place_of(out)),
            "versions": versions(),
            "data": data.fingerprint,
            "machine": machine_of(base),
            # Precision and compilation differ between machines and change numbers, so the page says them.
            "decisions": {p.name: decisions_of(folder_of(out, p.name, seeds[0])) for p in plan},
            "seconds_total": seconds,
        },
        "notes": [
            *filter(None, (order_note(p.name, p.model) for p in plan)),
            *parts.notes(config, data, read),
            *_clock_notes(config, plan, results),
            *notes,
        ],
        "choices": choices,
    }


def _choice(planned: Planned, runs: list[schema.Run], measured: Mapping[str, Any], task: Task) -> schema.Choice:
    model: Any = task.model
    return {
        "name": planned.name,
        "blocks": planned.blocks,
        "shape": {key: getattr(planned.model, key) for key in ("d_model", "n_layers", "n_heads")},
        "parameters": sum(p.numel() for p in model.parameters()),
        # What is matched: an embedding grows with the vocabulary and says nothing of a block.
        "parameters_core": model.non_embedding_parameters,
        # A step is three forward passes: one, and two for the gradients.
        "flops_per_token": task.flops_per_step / 3 / task.tokens_per_step,
        "cache_bytes_per_token": measured["cache_bytes_per_token"],
        "match": planned.match,
        "speed": measured["speed"],
        "memory": measured["memory"],
        "sample": None,
        "attention": None,
        "kernels": None,
        "runs": runs,
    }


def _kernels(folder: Path, model: Any) -> list[dict[str, Any]] | None:
    """Return what the filtering layers of a finished run learnt; None when there are none.

    Args:
        folder: the run's.
        model: the same model without memory, asked before the trained one is read.
    """
    # Asked of the model without memory, so that a comparison without filters reads no weights.
    if not any(hasattr(getattr(layer, "attn", None), "kernels") for layer in model.layers):
        return None
    return kernels_of(load_run(folder).model)


def _clock_notes(
    config: CompareConfig, plan: list[Planned], results: Mapping[tuple[str, int], schema.Run]
) -> list[str]:
    """Return which choices did not meet a budget in seconds."""
    found = []
    if config.budget_unit == "seconds":
        for planned in plan:
            ended = [run for (name, _), run in results.items() if name == planned.name]
            spent = [run["seconds"] for run in ended if run["status"] == "finished"]
            if not spent:
                continue
            mean = sum(spent) / len(spent)
            # A clock is looked at between slices: some per cent beyond it are no news.
            if abs(mean / config.budget_value - 1) > 0.05:
                found.append(f"{planned.name} used {mean:.1f} of {config.budget_value:g} seconds on average.")
    return found
