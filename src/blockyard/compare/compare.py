"""`compare`: block choices trained side by side at an equal budget, measured, and reported.

The whole path in one place: check every name, load the data once, size the models, plan the steps, train in turns,
measure what they cost, report. What differs between tasks comes from the task's kind (`tasks/kind.py`) and its
parts of the report (`report/parts.py`). Everything before training either succeeds or says in one line what to change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from blockyard.compare import measure
from blockyard.compare.beside import check_beside
from blockyard.compare.confirm import SecondText, can_confirm, confirm, second_text
from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.live import Board, make_board
from blockyard.compare.output import write_report
from blockyard.compare.plan import (
    Planned,
    State,
    at_rate,
    base_run,
    configurations,
    folder_of,
    make_plan,
    run_of,
    task_on_meta,
    terms_of,
)
from blockyard.compare.provenance import machine_of, versions
from blockyard.compare.rates import rates_of, with_rates
from blockyard.compare.results import decisions_of
from blockyard.compare.seeds import train_seeds
from blockyard.compare.settings import CompareConfig, Groups
from blockyard.errors import InputError
from blockyard.files import check_writable, nothing_left
from blockyard.machine.launch import world_size
from blockyard.machine.memory import forcing
from blockyard.models.config import BlocksConfig
from blockyard.models.inside import kernels_of
from blockyard.models.order import order_note
from blockyard.report import schema
from blockyard.report.parts import first_finished
from blockyard.report.write import load_report
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
) -> schema.Report:
    """Compare block choices on a task and write the report into a folder.

    The folder can be given again after a kill (the same terms go on where the last checkpoints are), or with more
    choices or seeds (only what is missing is run).

    Args:
        task: the kind of task, by name.
        config: the terms.
        groups: shared options: `model`, `train`, `data` (as `train` takes them) and `plugins`.
        out: folder of the runs and the report.
        show: show progress on standard error.
        force: train also what by its estimate does not fit into memory.

    Returns: the report, as report.json holds it.

    Raises:
        InputError: for anything the user can put right, before anything is trained where it can be known.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    started = time.monotonic()
    if world_size() > 1:
        raise InputError("compare runs in one process; start it without torchrun")
    groups = dict(groups or {})
    out = Path(out)
    base = base_run(task, groups)
    if config.lengths is not None and base.kind.at_length(base.model, 1) is None:
        raise InputError(f"lengths: models of the task {task!r} have one length (its TaskKind gives no at_length)")
    choices = configurations(config, base)
    with forcing(force):
        check_data(base)
        for name, model in choices.items():
            check_training(replace(base, model=model), f"the model of {name}", fitted=False)
    check_beside(config, base)
    for model in choices.values():
        _ = model.layers  # every layer's options, before any data are read
    if base.train.threads:
        torch.set_num_threads(base.train.threads)
    check_writable(out, folder=True)
    board = make_board(show, base.kind.unit)
    try:
        data, second = base.kind.load_data(base.data, base.model), second_text(config, base)
        with nothing_left(out) as keep, closing(State(out)) as state, forcing(force):
            return _compare(config, groups, out, base, choices, data, second, state, board, started, keep)
    finally:
        board.close()


def _compare(
    config: CompareConfig,
    groups: Groups,
    out: Path,
    base: Run[Any, Any],
    choices: Mapping[str, BlocksConfig],
    data: Any,
    second: SecondText | None,
    state: State,
    board: Board,
    started: float,
    keep: Callable[[], None],
) -> schema.Report:
    choices = {name: base.kind.fit(model, data.assets) for name, model in choices.items()}
    for name, model in choices.items():
        # Once more: a vocabulary's size follows from the data.
        check_training(replace(base, model=model), f"the model of {name}", fitted=True)
    state.agree(terms_of(config, base, data))

    def pace(models: dict[str, BlocksConfig]) -> dict[str, float]:
        board.say(f"measuring the speed of {', '.join(models)}")
        runs = {name: replace(base, model=model) for name, model in models.items()}
        return measure.seconds_per_step(runs, data, config.budget_value)

    plan = make_plan(config, choices, base, data, state.data["plan"], pace)
    state.keep_plan(plan)
    keep()
    for planned in plan:
        board.say(f"{planned.name}: {planned.steps} steps, {planned.match['got']:,} ({planned.match['miss']:+.2%})")
    plan = with_rates(plan, config, base, data, state, board, out)
    results, looks = train_seeds(plan, config, base, data, board, out)
    confirmation = confirm(second, plan, results, config, state, board, out) if second is not None else None
    killed = {name for (name, _), run in results.items() if run["status"] == "killed"}
    measured = _measurements(config, base, plan, data, state, board, out, killed)
    scaling = _scaling(config, base, plan, state, board, killed)
    report = _report(config, groups, out, base, plan, data, results, measured, time.monotonic() - started)
    for choice, found in zip(report["choices"], scaling):
        choice["scaling"] = found
    if can_confirm(base):
        report["confirmation"] = confirmation
    if looks is not None:
        report["looks"] = looks
    _add_rates(report, plan, state, base)
    files = write_report(report, out)
    board.say(f"report: {files['html']}")
    return load_report(out)


def _measurements(
    config: CompareConfig,
    base: Run[Any, Any],
    plan: list[Planned],
    data: Any,
    state: State,
    board: Board,
    out: Path,
    killed: set[str],
) -> dict[str, Any]:
    """Speed, cache and memory of every choice; measured together, so again for all when a choice is added.

    Args:
        killed: choices that took their processes with them: they would take this one, too, and are left out.
    """
    kept = state.data["measured"]
    complete = not config.measure_memory or all(k["memory"] for k in kept.values())
    # What failed may have been mended since, as a failed run is tried again.
    failed_before = any(kept[p.name].get("failed") for p in plan if p.name in kept)
    if set(kept) >= {p.name for p in plan} and complete and not failed_before:
        return kept
    board.say("measuring speed, cache and memory" if base.kind.decodes else "measuring speed and memory")
    seed = base.train.seed
    runs = {p.name: run_of(p, base, config, seed) for p in plan if p.name not in killed}
    compiled = {p.name: measure.compiled_in(decisions_of(folder_of(out, p.name, seed))) for p in plan}
    failed = dict.fromkeys(killed, "it took its process with it in training")
    speeds = measure.training_speed(runs, data, compiled, failed=failed)
    decoded = measure.decoding(runs, failed=failed)
    memory = measure.peak_memory(runs) if config.measure_memory else {}
    state.data["measured"] = {
        p.name: {
            "speed": {**speeds[p.name], "decode_wall": _first(decoded.get(p.name))} if p.name in speeds else None,
            "failed": failed.get(p.name, ""),
            "cache_bytes_per_token": _second(decoded.get(p.name)),
            "memory": memory.get(p.name),
        }
        for p in plan
    }
    state.save()
    return state.data["measured"]


def _scaling(
    config: CompareConfig, base: Run[Any, Any], plan: list[Planned], state: State, board: Board, killed: set[str]
) -> list[schema.Scaling]:
    """Training speed and memory over length of every choice, if asked for; measured together, so again for all."""
    if config.lengths is None:
        return []
    kept, lengths = state.data.get("scaling", {}), sorted(set(config.lengths))
    done = all(
        kept.get(p.name, {}).get("lengths") == lengths
        and None not in kept[p.name]["tokens_per_second"]
        and (not config.measure_memory or "peak_bytes" in kept.get(p.name, {}))
        for p in plan
    )
    if not done:
        what = "speed and memory" if config.measure_memory else "speed"
        board.say(f"measuring {what} over length")
        runs = {p.name: run_of(p, base, config, base.train.seed) for p in plan if p.name not in killed}
        failed: dict[str, str] = {}
        kept = measure.length_scaling(runs, lengths, memory=config.measure_memory, failed=failed)
        for name, why in failed.items():
            board.say(f"{name} could not be measured at every length: {why}")
        nothing: dict[str, list[Any]] = {"lengths": lengths, "tokens_per_second": [None] * len(lengths)}
        if config.measure_memory:
            nothing["peak_bytes"] = [None] * len(lengths)
        kept.update(dict.fromkeys(killed, nothing))
        state.data["scaling"] = kept
        state.save()
    return [kept[p.name] for p in plan]


def _add_rates(report: schema.Report, plan: list[Planned], state: State, base: Run[Any, Any]) -> None:
    """Put into the report at which rates the choices ran, and what the search for them found."""
    found = rates_of(plan, state, -1 if report["quality"]["better"] == "higher" else 1)
    if found is None:
        return
    spent = sum(run["seconds"] for choice in report["choices"] for run in choice["runs"])
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


def _first(pair: tuple[dict[str, Any], float] | None) -> dict[str, Any] | None:
    return pair[0] if pair else None


def _second(pair: tuple[dict[str, Any], float] | None) -> float | None:
    return pair[1] if pair else None


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
    seeds = sorted({seed for _, seed in results})
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
    free = ("steps", "seed", "eval_every", "save_every", "log_every", "keep", "save_best", "progress", "tensorboard")
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
            "command": config.command(base.task, groups, str(out)),
            "versions": versions(),
            "data": data.fingerprint,
            "machine": machine_of(base),
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
            if abs(mean / config.budget_value - 1) > 0.05:
                found.append(f"{planned.name} used {mean:.1f} of {config.budget_value:g} seconds on average.")
    return found
