"""tune.json, trials.csv, and best.yaml: the best configuration to be run again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockyard.files import plain, write_atomically
from blockyard.registry.yamlfile import write_yaml
from blockyard.report.write import read_record
from blockyard.tasks.run import DataCache
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tune import schema
from blockyard.tune.plan import Plan, SearchSpec, make_plan, planned_run

RECORD, BEST, TABLE = "tune.json", "best.yaml", "trials.csv"


def write_record(record: schema.Tuning, spec: SearchSpec, cache: DataCache | None) -> None:
    """Write tune.json, trials.csv and best.yaml.

    Args:
        record: what was found.
        spec: what was spec.
        cache: the task's data, for best.yaml; none leaves that as it is.

    Raises:
        InputError: when they cannot be written.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(spec.out / RECORD, text)
    write_atomically(spec.out / TABLE, render_csv(record))
    if cache is not None:
        write_atomically(spec.out / BEST, best_yaml(record, spec, cache))


def best_yaml(record: schema.Tuning, spec: SearchSpec, cache: DataCache) -> str:
    """Return the best configuration with every option resolved, as `train TASK --config` takes it."""
    best = record["best"]
    assert best is not None
    groups = spec.space.with_drawn(best["settings"], spec.fixed) if best["trial"] is not None else spec.default
    assert groups is not None
    run, data = cache.fitted(resolve(groups, spec.task))
    steps = _steps_made(record, best)
    plan = Plan(steps) if steps else make_plan(run, data, spec.config)
    run = planned_run(run, plan, spec.config)
    quality, half = record["quality"], best["half_width"]
    figure = f"{quality['metric']} {best['value']:.6g}" + (f" ± {half:.2g}" if half is not None else "")
    basis = f"over {best['seeds']} fresh seeds" if best["seeds"] else "with the search's own seed"
    # A file's plug-ins run only when they are named beside it.
    plugins = "".join(f" --plugin {name}" for name in run.plugins)
    head = (
        f"# The best configuration of a search ({best['name']}): {figure} {basis}.\n"
        f"# blockyard train {record['task']} --config {BEST} --out DIR{plugins}\n"
    )
    options = as_groups(run)
    # The run's own business, not the search's.
    for name in ("progress", "log", "tensorboard", "save_best", "keep", "on_non_finite"):
        del options["train"][name]
    return head + write_yaml(plain(options))


def _steps_made(record: schema.Tuning, best: schema.Best) -> int | None:
    """Return how many steps the best configuration's runs made: their number where it is given, a mean where a clock
    ended them."""
    runs = [run["steps"] for row in record["finals"] if row["name"] == best["name"] for run in row["runs"]]
    if not runs and best["trial"] is not None:
        runs = [record["trials"][best["trial"]]["steps"]]
    return round(sum(runs) / len(runs)) if runs else None


def render_csv(record: schema.Tuning) -> str:
    """Return one line for each trial: what it drew and what came of it."""
    names = [dimension["name"] for dimension in record["space"]]
    columns = ("number", "status", "value", "part", "same_as", "steps", "tokens", "seconds", "parameters", "note")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*columns, *names])
    for trial in record["trials"]:
        figures: Mapping[str, Any] = trial
        writer.writerow([*(figures[c] for c in columns), *(trial["settings"].get(name, "") for name in names)])
    return buffer.getvalue()


def load_record(path: str | Path) -> schema.Tuning:
    """Read tune.json, or that of a folder.

    Raises:
        InputError: when there is none, or it is of another kind.
    """
    record: schema.Tuning = read_record(path, RECORD, schema.SCHEMA, "record of a search")
    return record
