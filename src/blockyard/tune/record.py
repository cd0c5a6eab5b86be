"""What a search found, as plain data: the contents of tune.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from blockyard.compare.jobs import Key
from blockyard.compare.results import RESULT as RESULT_FILE
from blockyard.files import parse_json, plain, without_nan
from blockyard.registry.pattern import format_choice
from blockyard.report.schema import LOST, Run, final_of
from blockyard.report.stats import Family, interval, margin_of
from blockyard.tasks.groups import train_groups
from blockyard.tasks.kind import Quality
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tune import schema
from blockyard.tune.finals import DEFAULT, Candidate, best_trials
from blockyard.tune.importance import importances
from blockyard.tune.plan import SearchSpec
from blockyard.tune.storage import begun
from blockyard.tune.trials import DRAWN, NOTE, PLAN, RESULT, SAME_AS, STATUS, folder_of
from blockyard.tune.verdict import judge, sign_of


def make_record(
    spec: SearchSpec,
    study: Study,
    status: str,
    finals: Sequence[schema.Final],
    seeds: Sequence[int],
    provenance: Mapping[str, Any],
    notes: Sequence[str],
) -> schema.Tuning:
    """Collect the contents of tune.json."""
    quality, config = spec.quality, spec.config
    trials = [trial_of(t, spec) for t in begun(study)]
    record: schema.Tuning = {
        "schema": schema.SCHEMA,
        "status": status,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": spec.task,
        "title": spec.kind.title,
        "input_unit": spec.kind.unit,
        "quality": {
            "metric": quality.metric,
            "unit": quality.unit,
            "key": quality.key,
            "better": quality.better,
            "margin": margin_for(spec, {row["name"]: [row["mean"]] for row in finals if row["mean"] is not None}),
        },
        "budget": {"unit": config.budget_unit, "value": config.budget_value},
        "search": asdict(config.public),
        "space": [dimension.to_dict() for dimension in spec.space.dimensions],
        "fixed": plain(spec.fixed),
        "trials": trials,
        "importance": importances(trials, spec.space.dimensions, quality.better),
        "seeds": list(seeds),
        "finals": list(finals),
        "best": _best(study, trials, finals, quality),
        "verdict": {"kind": "unfinished", "headline": "", "details": []},
        "provenance": dict(provenance),
        "notes": list(notes),
    }
    record["verdict"] = judge(record)
    return without_nan(record)


def trial_of(trial: FrozenTrial, spec: SearchSpec) -> schema.Trial:
    """Return a trial as plain data."""
    attrs, folder = trial.user_attrs, folder_of(spec.out, trial.number)
    result = attrs.get(RESULT) or {}
    ended = trial.state.is_finished()
    none = {"steps": 0, "tokens": 0, "seconds": 0.0, "cpu_seconds": 0.0, "flops": 0.0, "parameters": None}
    found: Any = {
        "number": trial.number,
        "status": attrs.get(STATUS, "unfinished") if ended else "unfinished",
        "settings": attrs.get(DRAWN, {}),
        "value": result.get("value") if ended else _latest(trial),
        "part": (trial.last_step or 0) / spec.config.evaluations,
        "same_as": attrs.get(SAME_AS),
        **{name: result.get(name, nothing) for name, nothing in none.items()},
        "note": attrs.get(NOTE, ""),
        "curve": _curve_of(trial, spec) if ended else None,
        "folder": str(folder.relative_to(spec.out)),
    }
    return found


def _curve_of(trial: FrozenTrial, spec: SearchSpec) -> Any:
    """Return the figures of a trial over its budget; None for one that failed, or whose record is damaged."""
    folder = folder_of(spec.out, trial.user_attrs.get(SAME_AS, trial.number))
    try:
        kept = parse_json((folder / RESULT_FILE).read_text(encoding="utf-8"))
        if "curve" in kept:
            return kept["curve"]  # as searches wrote it before their runs were those of comparisons
        run = kept["run"]
        curve = run.get("quality", run["validation"])
        spent, total = curve["step"], trial.user_attrs[PLAN][0]
        if spec.config.budget_unit == "seconds":
            spent, total = curve["seconds"], spec.config.budget_value
        parts = [round(min(1.0, at / total), 4) for at in spent]
        return {"tokens": curve["tokens"], "part": parts, "value": curve["loss"]} if run["status"] != "failed" else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _latest(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None


def finals_of(
    spec: SearchSpec,
    study: Study,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    runs: Mapping[Key, Run],
    parameters: Mapping[str, int],
) -> list[schema.Final]:
    """Return the candidates with what their fresh runs reached, as tune.json tells it.

    Args:
        spec: the search.
        study: its trials.
        candidates: what is run again.
        seeds: the fresh seeds.
        runs: those that have ended, by (candidate, seed).
        parameters: of each candidate's model.
    """
    ended = {c.name: [runs[c.name, seed] for seed in seeds if (c.name, seed) in runs] for c in candidates}
    finished = {name: [v for run in found if (v := _value(run)) is not None] for name, found in ended.items()}
    lost = {name: sum(run["status"] in LOST for run in found) for name, found in ended.items()}
    # A configuration of which a run was lost is not judged, and lends no certainty to the others.
    family = Family({name: found for name, found in finished.items() if not lost[name]})
    margin, trials = margin_for(spec, finished), study.get_trials(deepcopy=False)
    rows: list[schema.Final] = []
    for candidate in candidates:
        name, number = candidate.name, candidate.number
        mean, half = interval(finished[name])
        beside = _beside_default(name, family, spec.quality, margin) if number is not None else {}
        blocks = resolve(candidate.groups, spec.task).model.blocks
        told = ("seed", "status", "steps", "tokens", "seconds", "note", "folder")
        row: Any = {
            "name": name,
            "trial": number,
            "settings": plain(candidate.drawn or default_settings(spec)),
            "blocks": blocks if isinstance(blocks, str) else format_choice(blocks),
            "parameters": parameters[name] if ended[name] else None,
            "search_value": trials[number].user_attrs[RESULT]["value"] if number is not None else None,
            "runs": [{**{key: dict(run)[key] for key in told}, "value": _value(run)} for run in ended[name]],
            "mean": mean,
            "half_width": half,
            "diverged": lost[name],
            "difference": beside.get("difference"),
            "difference_half_width": beside.get("half_width"),
            "verdict": beside.get("verdict", ""),
            "more_seeds": beside.get("more_seeds"),
        }
        rows.append(row)
    return rows


def _value(run: Run) -> float | None:
    return final_of(run) if run["status"] == "finished" else None


def margin_for(spec: SearchSpec, finished: Mapping[str, Sequence[float]]) -> float:
    """Return how near the figures of configurations count as equal, by the best mean of these values."""
    means = [fmean(values) for values in finished.values() if values]
    best = (max if spec.quality.better == "higher" else min)(means, default=None)
    return margin_of(spec.config.margin, spec.quality.margin, best)


def _beside_default(name: str, family: Family, quality: Quality, margin: float) -> dict[str, Any]:
    """Return what may be said of a configuration beside the default one; "unknown" where either lost a run."""
    if DEFAULT not in family.samples or name not in family.samples:
        return {"verdict": "unknown"}
    found = family.difference(name, DEFAULT)
    word = found.word(quality.better, margin)
    more = family.seeds_to_decide(name, DEFAULT, margin) if word == "undecided" else None
    return {"difference": found.gap, "half_width": found.half_width, "verdict": word, "more_seeds": more}


def default_settings(spec: SearchSpec) -> dict[str, Any]:
    """Return what the default configuration has for each option searched; absent where its blocks have none."""
    if spec.default is None:
        return {}
    run = as_groups(resolve(spec.default, spec.task))
    groups = train_groups(spec.task)
    impls = {("attn", run.get("attn", {}).get("impl")), ("ffn", run.get("ffn", {}).get("impl"))}
    found: dict[str, Any] = {}
    for dimension in spec.space.dimensions:
        group, key = dimension.group, dimension.key
        if key in (run.get(group) or {}):
            found[dimension.name] = run[group][key]
        elif key not in groups[group].own:
            mine = [e for e in groups[group].members if (e.kind, e.name) in impls and key in e.options]
            if mine and not mine[0].options[key].required:
                found[dimension.name] = mine[0].options[key].default
        elif not groups[group].own[key].required:
            found[dimension.name] = groups[group].own[key].default
    return plain(found)


def _best(
    study: Study, trials: Sequence[schema.Trial], finals: Sequence[schema.Final], quality: Quality
) -> schema.Best | None:
    """Return the candidate with the best mean over fresh seeds; before there are any, the best trial."""
    ranked = [row for row in finals if row["mean"] is not None and not row["diverged"]]
    if ranked:
        row = min(ranked, key=lambda row: sign_of(quality.better) * (row["mean"] or 0.0))
        return {
            "name": row["name"],
            "trial": row["trial"],
            "settings": row["settings"],
            "value": row["mean"],
            "half_width": row["half_width"],
            "seeds": len(row["runs"]),
        }
    numbers = best_trials(study, 1)
    if not numbers:
        return None
    trial = trials[numbers[0]]
    return {
        "name": f"trial {trial['number']}",
        "trial": trial["number"],
        "settings": trial["settings"],
        "value": trial["value"],
        "half_width": None,
        "seeds": 0,
    }
