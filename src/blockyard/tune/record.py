"""What a search found, as plain data: the contents of tune.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from blockyard.files import plain, without_nan
from blockyard.registry.pattern import format_choice
from blockyard.report.stats import Family, interval, margin_of
from blockyard.tasks.kind import Quality, TaskKind
from blockyard.tasks.settings import as_groups, resolve
from blockyard.tune import schema
from blockyard.tune.budgeted import Ended, read_ended
from blockyard.tune.finals import DEFAULT, Candidate, best_trials
from blockyard.tune.importance import importances
from blockyard.tune.settings import TuneConfig
from blockyard.tune.space import Space
from blockyard.tune.trials import DRAWN, NOTE, RESULT, SAME_AS, STATUS, folder_of
from blockyard.tune.verdict import judge, sign_of


@dataclass(frozen=True)
class Asked:
    """What a search was asked, as its record tells it.

    Args:
        kind: the task.
        quality: the figure.
        config: the terms.
        space: what is searched.
        fixed: option groups that all trials share.
        default: the default configuration's groups; None where the options searched have no defaults.
        out: the search's folder.
    """

    kind: TaskKind[Any, Any, Any]
    quality: Quality
    config: TuneConfig
    space: Space
    fixed: Mapping[str, Any]
    default: Mapping[str, Any] | None
    out: Path


def make_record(
    asked: Asked,
    study: Study,
    status: str,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    finals: Mapping[tuple[str, int], Ended],
    provenance: Mapping[str, Any],
    notes: Sequence[str],
) -> schema.Tuning:
    """The contents of tune.json."""
    quality, config = asked.quality, asked.config
    trials = [trial_of(t, asked) for t in study.get_trials(deepcopy=False)]
    rows = _finals(asked, candidates, seeds, finals, trials)
    record: schema.Tuning = {
        "schema": schema.SCHEMA,
        "status": status,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": asked.kind.name,
        "title": asked.kind.title,
        "input_unit": asked.kind.unit,
        "quality": {
            "metric": quality.metric,
            "unit": quality.unit,
            "key": quality.key,
            "better": quality.better,
            "margin": margin_for(asked, {row["name"]: [row["mean"]] for row in rows if row["mean"] is not None}),
        },
        "budget": {"unit": config.budget_unit, "value": config.budget_value},
        "search": asdict(config),
        "space": [dimension.to_dict() for dimension in asked.space.dimensions],
        "fixed": plain(asked.fixed),
        "trials": trials,
        "importance": importances(trials, asked.space.dimensions, quality.better),
        "seeds": list(seeds),
        "finals": rows,
        "best": _best(study, trials, rows, quality),
        "verdict": {"kind": "unfinished", "headline": "", "details": []},
        "provenance": dict(provenance),
        "notes": list(notes),
    }
    record["verdict"] = judge(record)
    return without_nan(record)


def trial_of(trial: FrozenTrial, asked: Asked) -> schema.Trial:
    """A trial as plain data."""
    attrs, folder = trial.user_attrs, folder_of(asked.out, trial.number)
    result = attrs.get(RESULT) or {}
    ended = trial.state.is_finished()
    source = attrs.get(SAME_AS, trial.number)
    kept = read_ended(folder_of(asked.out, source)) if ended else None
    curve: Any = kept.curve if kept else None
    part = trial.last_step or 0
    return {
        "number": trial.number,
        "status": attrs.get(STATUS, "unfinished") if ended else "unfinished",
        "settings": attrs.get(DRAWN, {}),
        "value": result.get("value") if ended else _latest(trial),
        "part": part / asked.config.evaluations,
        "same_as": attrs.get(SAME_AS),
        "steps": result.get("steps", 0),
        "tokens": result.get("tokens", 0),
        "seconds": result.get("seconds", 0.0),
        "cpu_seconds": result.get("cpu_seconds", 0.0),
        "flops": result.get("flops", 0.0),
        "parameters": result.get("parameters"),
        "note": attrs.get(NOTE, ""),
        "curve": curve,
        "folder": str(folder.relative_to(asked.out)),
    }


def _latest(trial: FrozenTrial) -> float | None:
    return trial.intermediate_values[trial.last_step] if trial.last_step is not None else None


def _finals(
    asked: Asked,
    candidates: Sequence[Candidate],
    seeds: Sequence[int],
    finals: Mapping[tuple[str, int], Ended],
    trials: Sequence[schema.Trial],
) -> list[schema.Final]:
    rows: list[schema.Final] = []
    values = {c.name: [_value(finals.get((c.name, seed))) for seed in seeds] for c in candidates}
    finished = {name: [v for v in found if v is not None] for name, found in values.items()}
    lost = {c.name: sum(finals[key].status == "diverged" for s in seeds if (key := (c.name, s)) in finals)
            for c in candidates}  # fmt: skip
    # A configuration of which a run diverged is not judged, and lends no certainty to the others.
    family = Family({name: found for name, found in finished.items() if not lost[name]})
    margin = margin_for(asked, finished)
    for candidate in candidates:
        run = resolve(candidate.groups, asked.kind.name)
        runs = [(seed, finals[(candidate.name, seed)]) for seed in seeds if (candidate.name, seed) in finals]
        mean, half = interval(finished[candidate.name])
        beside = _beside_default(candidate.name, family, asked.quality, margin) if candidate.number is not None else {}
        blocks = run.model.blocks
        rows.append(
            {
                "name": candidate.name,
                "trial": candidate.number,
                "settings": plain(candidate.drawn or default_settings(asked)),
                "blocks": blocks if isinstance(blocks, str) else format_choice(blocks),
                "parameters": runs[0][1].parameters if runs else None,
                "search_value": trials[candidate.number]["value"] if candidate.number is not None else None,
                "runs": [
                    {
                        "seed": seed,
                        "status": ended.status,
                        "value": ended.value,
                        "steps": ended.steps,
                        "tokens": ended.tokens,
                        "seconds": ended.seconds,
                        "note": ended.note,
                        "folder": str(candidate.folder(asked.out, seed).relative_to(asked.out)),
                    }
                    for seed, ended in runs
                ],
                "mean": mean,
                "half_width": half,
                "diverged": lost[candidate.name],
                "difference": beside.get("difference"),
                "difference_half_width": beside.get("half_width"),
                "verdict": beside.get("verdict", ""),
                "more_seeds": beside.get("more_seeds"),
            }
        )
    return rows


def _value(ended: Ended | None) -> float | None:
    return ended.value if ended is not None and ended.status == "finished" else None


def margin_for(asked: Asked, finished: Mapping[str, Sequence[float]]) -> float:
    """How near the figures of configurations count as equal, by the best mean of these values."""
    means = [fmean(values) for values in finished.values() if values]
    best = (max if asked.quality.better == "higher" else min)(means, default=None)
    return margin_of(asked.config.margin, asked.quality.margin, best)


def _beside_default(name: str, family: Family, quality: Quality, margin: float) -> dict[str, Any]:
    """What may be said of a configuration beside the default one; "unknown" where either lost a run."""
    if DEFAULT not in family.samples or name not in family.samples:
        return {"verdict": "unknown"}
    found = family.difference(name, DEFAULT)
    word = found.word(quality.better, margin)
    more = family.seeds_to_decide(name, DEFAULT, margin) if word == "undecided" else None
    return {"difference": found.gap, "half_width": found.half_width, "verdict": word, "more_seeds": more}


def default_settings(asked: Asked) -> dict[str, Any]:
    """What the default configuration has for each option searched; absent where its blocks have none."""
    from blockyard.tasks.groups import train_groups

    if asked.default is None:
        return {}
    run = as_groups(resolve(asked.default, asked.kind.name))
    groups = train_groups(asked.kind.name)
    impls = {("attn", run.get("attn", {}).get("impl")), ("ffn", run.get("ffn", {}).get("impl"))}
    found: dict[str, Any] = {}
    for dimension in asked.space.dimensions:
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
    """The candidate with the best mean over fresh seeds; before there are any, the best trial."""
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
