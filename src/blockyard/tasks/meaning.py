"""What the option groups of a run mean: defaults of its task and blocks, and what older versions did not write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blockyard.registry.options import options_of
from blockyard.registry.register import Kind, find_block, implementation
from blockyard.tasks.kind import DEFAULT, Run, TaskKind, task_kind, task_names
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.config import TrainConfig
from blockyard.training.folder import Meaning


class RunMeaning(Meaning):
    """The meaning of the groups that `train`, `compare` and `tune` write into run folders."""

    def completed(self, groups: Mapping[str, Any]) -> dict[str, Any]:
        return with_older(groups)

    def come_to(self, groups: Mapping[str, Any]) -> Mapping[str, Any]:
        return resolve(groups).model.decided

    def defaults(self, groups: Mapping[str, Any]) -> Callable[[str, str], Any]:
        kind = task_kind(groups["task"])
        known: dict[str, list[Mapping[str, Any]]] = {
            "model": [{n: o.default for n, o in options_of(kind.model_config).items()}],
            "data": [{n: o.default for n, o in options_of(kind.data_config).items()}],
            "train": [{n: o.default for n, o in options_of(TrainConfig).items()} | dict(kind.train_defaults)],
        }
        sides: tuple[Kind, ...] = ("attn", "ffn")
        chosen = {side: (groups.get(side) or {}).get("impl") for side in sides}
        used = [implementation(side, name) for side, name in chosen.items() if name]
        pair = find_block(str(chosen["attn"]), str(chosen["ffn"]))
        for entry in used if pair is None else [*used, pair]:
            # The standard mixer's and FFN's own options sit under `attn` and `ffn`, all others under their family.
            group = entry.kind if entry.name == "standard" else entry.group
            known.setdefault(group, []).append({n: o.default for n, o in entry.options.items()})

        def default(group: str, key: str) -> Any:
            found = [options[key] for options in known.get(group, ()) if key in options]
            # Two blocks of one family may differ in it: then a missing word says nothing.
            return found[0] if found and all(value == found[0] for value in found) else None

        return default


def older_options(kind: TaskKind[Any, Any, Any], data: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return options of `model`, `data` and `train` that an older version could not write, at the values that its runs
    had.

    Args:
        kind: the task.
        data: the data's options that a run folder holds.
    """
    return {"model": kind.model_config.older, "data": kind.older_data(data), "train": {"init": None}}


def with_older(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return options that a run folder holds, with those that an older version could not write, at the values that its
    models and data had: the task, which was a language model when there was no other, what the model's configuration
    names, and what the task names of its data.

    Its plug-ins, of which the task may be one, have been imported; what makes no sense is left as it is.
    """
    named = {"task": DEFAULT, **resolved}
    if named["task"] not in task_names():
        return named
    held = named.get("data")
    for group, older in older_options(task_kind(named["task"]), held if isinstance(held, Mapping) else {}).items():
        if isinstance(named.get(group), Mapping):
            named[group] = {**older, **named[group]}
    return named


def as_begun(groups: Mapping[str, Any], written: Mapping[str, Any], task: str | None) -> Mapping[str, Any]:
    """Return the groups of a run to be resumed; options of the model and the data that its folder is too old to name,
    and that the caller does not name either, are what they were.

    Args:
        groups: as the caller gives them; their plug-ins have been imported.
        written: what the run folder holds.
        task: the kind of task; `task` of the groups, or a language model, when not given.
    """
    kind, begun = task_kind(groups.get("task") or task or DEFAULT), dict(groups)
    for group, older in older_options(kind, written.get("data") or {}).items():
        saved = written.get(group) or {}
        begun[group] = {**{k: v for k, v in older.items() if k not in saved}, **dict(groups.get(group) or {})}
    begun["train"] = {**_older_warmup(written.get("train")), **begun["train"]}
    return begun


def _older_warmup(train: Any) -> dict[str, int]:
    """Return the warm-up of a run of an older version that was told none: it wrote 20 steps, or where a run of no more
    than those had to come down again, a tenth of it."""
    if not isinstance(train, Mapping) or not isinstance(steps := train.get("steps"), int):
        return {}
    warmup = train.get("warmup")
    return {"warmup": warmup} if warmup in (20, steps // 10 if steps <= 20 else 20) else {}


def missing_options(groups: Mapping[str, Any], run: Run[Any, Any]) -> list[str]:
    """Return dotted names of the options that a whole configuration has and these groups leave out."""
    whole, found = as_groups(run), [] if "task" in groups else ["task"]
    # Those that are known all the same are not missing.
    older = older_options(run.kind, groups.get("data") or {})
    for group in ("model", "train", "data"):
        told = (*(groups.get(group) or {}), "pattern", *older.get(group, ()))
        found += [f"{group}.{name}" for name in whole.get(group, {}) if name not in told]
    return found
