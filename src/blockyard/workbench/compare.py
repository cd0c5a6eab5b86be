"""`compare`: block choices trained side by side at an equal budget, measured, and reported.

The whole path in one place: check every name, load the text once, size the models, plan the steps, train in turns,
measure what they cost, let each write the same text's continuation, report. Everything before training either succeeds
or says in one line what to change.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from blockyard.data import TextData, load_text
from blockyard.errors import InputError
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.stream import generate_text
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.training.config import as_dict
from blockyard.training.environment import describe_environment
from blockyard.training.machine import processor_name, system_name
from blockyard.training.resolve import LMRun
from blockyard.training.run import load_run
from blockyard.workbench import measure, schema
from blockyard.workbench.kernels import kernels_of
from blockyard.workbench.live import Board, make_board
from blockyard.workbench.plan import (
    Planned,
    State,
    base_run,
    configurations,
    folder_of,
    make_plan,
    run_of,
    terms_of,
)
from blockyard.workbench.report import load_report, write_report
from blockyard.workbench.runs import decisions_of, jobs_of, train_all
from blockyard.workbench.settings import CompareConfig, Groups

PROMPT_CHARACTERS = 48


def compare_lm(
    config: CompareConfig, groups: Groups | None = None, out: str | Path = "comparison", *, show: bool = True
) -> schema.Report:
    """Compare block choices as language models and write the report into a folder.

    The folder can be given again after a kill (the same terms go on where the last checkpoints are), or with more
    choices or seeds (only what is missing is run).

    Args:
        config: the terms.
        groups: shared options: `model`, `train`, `data` (as `train lm` takes them) and `plugins`.
        out: folder of the runs and the report.
        show: show progress on standard error.

    Returns: the report, as report.json holds it.

    Raises:
        InputError: for anything the user can put right, before anything is trained where it can be known.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    started = time.monotonic()
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise InputError("compare runs in one process; start it without torchrun")
    groups = dict(groups or {})
    out = Path(out)
    base = base_run(groups)
    choices = configurations(config, base)
    for model in choices.values():
        _ = model.layers  # every layer's options, before any text is read
    if base.train.threads:
        torch.set_num_threads(base.train.threads)
    board = make_board(show)
    try:
        data = load_text(base.data, base.model.context)
        state = State(out)
        try:
            return _compare(config, groups, out, base, choices, data, state, board, started)
        finally:
            state.close()
    finally:
        board.close()


def _compare(
    config: CompareConfig,
    groups: Groups,
    out: Path,
    base: LMRun,
    choices: Mapping[str, LMConfig],
    data: TextData,
    state: State,
    board: Board,
    started: float,
) -> schema.Report:
    choices = {name: replace(model, vocab_size=data.tokenizer.vocab_size) for name, model in choices.items()}
    state.agree(terms_of(config, base, data))

    def pace(models: dict[str, LMConfig]) -> dict[str, float]:
        board.say(f"measuring the speed of {', '.join(models)}")
        runs = {name: replace(base, model=model) for name, model in models.items()}
        return measure.seconds_per_step(runs, data, config.budget_value)

    plan = make_plan(config, choices, base, state.data["plan"], pace)
    state.keep_plan(plan)
    for planned in plan:
        board.say(f"{planned.name}: {planned.steps} steps, {planned.match['got']:,} ({planned.match['miss']:+.2%})")
    results = train_all(jobs_of(plan, base, config, out), config, data, board)
    measured = _measurements(config, base, plan, data, state, board, out)
    report = _report(config, groups, out, base, plan, data, results, measured, time.monotonic() - started)
    files = write_report(report, out)
    board.say(f"report: {files['html']}")
    return load_report(out)


def _measurements(
    config: CompareConfig, base: LMRun, plan: list[Planned], data: TextData, state: State, board: Board, out: Path
) -> dict[str, Any]:
    """Speed, cache and memory of every choice; measured together, so again for all when a choice is added."""
    kept = state.data["measured"]
    if set(kept) >= {p.name for p in plan} and (not config.measure_memory or all(k["memory"] for k in kept.values())):
        return kept
    board.say("measuring speed, cache and memory")
    seed = base.train.seed
    runs = {p.name: run_of(p, base, config, seed) for p in plan}
    compiled = {p.name: measure.compiled_in(decisions_of(folder_of(out, p.name, seed))) for p in plan}
    speeds = measure.training_speed(runs, data, compiled)
    decoded = measure.decoding({p.name: p.model for p in plan})
    memory = measure.peak_memory(runs) if config.measure_memory else {}
    state.data["measured"] = {
        p.name: {
            "speed": {**speeds[p.name], "decode_wall": _first(decoded[p.name])},
            "cache_bytes_per_token": _second(decoded[p.name]),
            "memory": memory.get(p.name),
        }
        for p in plan
    }
    state.save()
    return state.data["measured"]


def _first(pair: tuple[dict[str, Any], float] | None) -> dict[str, Any] | None:
    return pair[0] if pair else None


def _second(pair: tuple[dict[str, Any], float] | None) -> float | None:
    return pair[1] if pair else None


def _report(
    config: CompareConfig,
    groups: Groups,
    out: Path,
    base: LMRun,
    plan: list[Planned],
    data: TextData,
    results: Mapping[tuple[str, int], schema.Run],
    measured: Mapping[str, Any],
    seconds: float,
) -> schema.Report:
    seeds = list(range(base.train.seed, base.train.seed + config.seeds))
    is_byte = data.tokenizer.name == "byte"
    choices = []
    for planned in plan:
        runs = [results[(planned.name, seed)] for seed in seeds]
        choices.append(_choice(config, out, planned, runs, measured[planned.name], data))
    free = ("steps", "seed", "eval_every", "save_every", "log_every", "keep", "save_best", "progress", "tensorboard")
    model = {k: v for k, v in asdict(plan[0].model).items() if k != "blocks"}
    return {
        "schema": schema.SCHEMA,
        "status": "complete",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": "lm",
        "reference": plan[0].name,
        "budget": {"unit": config.budget_unit, "value": config.budget_value},
        "match": config.match,
        "seeds": seeds,
        "quality": {
            "metric": "validation loss",
            "unit": "nats/byte" if is_byte else "nats/token",
            "bytes_per_token": 1.0 if is_byte else data.bytes_per_token,
        },
        "settings": {
            "model": model,
            "train": {k: v for k, v in as_dict(base.train).items() if k not in free},
            "data": asdict(base.data),
            "compare": {k: v for k, v in asdict(config).items() if k != "blocks"},
        },
        "provenance": {
            "command": config.command(groups, str(out)),
            "versions": _versions(),
            "data": data.fingerprint,
            "machine": _machine(base),
            "decisions": {p.name: decisions_of(folder_of(out, p.name, seeds[0])) for p in plan},
            "seconds_total": seconds,
        },
        "notes": _notes(config, data, plan, results, base),
        "choices": choices,
    }


def _choice(
    config: CompareConfig,
    out: Path,
    planned: Planned,
    runs: list[schema.Run],
    measured: Mapping[str, Any],
    data: TextData,
) -> schema.Choice:
    with torch.device("meta"):
        model = TransformerLM(planned.model)
    context = planned.model.context
    return {
        "name": planned.name,
        "blocks": planned.blocks,
        "shape": {key: getattr(planned.model, key) for key in ("d_model", "n_layers", "n_heads")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_core": model.non_embedding_parameters,
        "flops_per_token": model.cost(context).flops / context,
        "cache_bytes_per_token": measured["cache_bytes_per_token"],
        "match": planned.match,
        "speed": measured["speed"],
        "memory": measured["memory"],
        "sample": _sample(config, out, planned, runs, data),
        "kernels": _kernels(out, planned, runs, model),
        "runs": runs,
    }


def _sample(
    config: CompareConfig, out: Path, planned: Planned, runs: list[schema.Run], data: TextData
) -> schema.Sample | None:
    """What the first finished run writes; None when none finished."""
    finished = next((run for run in runs if run["status"] == "finished"), None)
    if finished is None:
        return None
    model, tokenizer, _ = load_run(folder_of(out, planned.name, finished["seed"]))
    prompt = config.prompt if config.prompt is not None else _beginning(data)
    sampling = SamplingConfig(temperature=config.temperature, seed=0)
    pieces = generate_text(model, tokenizer, prompt, max_new_tokens=config.sample_tokens, sampling=sampling)
    return {"prompt": prompt, "text": "".join(pieces), "seed": 0}


def _kernels(out: Path, planned: Planned, runs: list[schema.Run], model: TransformerLM) -> list[dict[str, Any]] | None:
    """What the filtering layers of the first finished run learnt; None when there are none."""
    finished = next((run for run in runs if run["status"] == "finished"), None)
    if finished is None or not any(hasattr(getattr(layer, "attn", None), "kernels") for layer in model.layers):
        return None
    return kernels_of(load_run(folder_of(out, planned.name, finished["seed"]))[0])


def _beginning(data: TextData) -> str:
    """The first words of the validation text, cut after a blank where there is one."""
    text = data.tokenizer.decode([int(t) for t in data.val[:PROMPT_CHARACTERS]]).replace("\ufffd", "")
    text = text[:PROMPT_CHARACTERS].lstrip()
    cut = max(text.rfind(" "), text.rfind("\n"))
    return text[: cut + 1] if cut > 0 else text


def _notes(
    config: CompareConfig,
    data: TextData,
    plan: list[Planned],
    results: Mapping[tuple[str, int], schema.Run],
    base: LMRun,
) -> list[str]:
    """What a reader should know beside the figures."""
    found = []
    for planned in plan:
        tokens = planned.steps * base.train.batch_size * planned.model.context
        if tokens > len(data.train):
            found.append(f"{planned.name} reads the training text {tokens / len(data.train):.1f} times.")
    if config.budget_unit == "seconds":
        for planned in plan:
            spent = [run["seconds"] for (name, _), run in results.items() if name == planned.name]
            mean = sum(spent) / len(spent)
            if abs(mean / config.budget_value - 1) > 0.05:
                found.append(f"{planned.name} used {mean:.1f} of {config.budget_value:g} seconds on average.")
    return found


def _versions() -> dict[str, str]:
    found = describe_environment(torch.device("cpu"), 1)
    return {"blockyard": found["blockyard"], "python": found["python"], **found["packages"]}


def _machine(base: LMRun) -> dict[str, Any]:
    cuda = torch.cuda.is_available() and base.train.device != "cpu"
    return {
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "system": system_name(),
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
