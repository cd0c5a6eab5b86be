"""What the option groups of a run mean: defaults of its task and blocks, and what older versions did not write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from blockyard.registry.options import options_of
from blockyard.registry.register import Kind, find_block, implementation
from blockyard.tasks.kind import DEFAULT, task_kind, task_names
from blockyard.tasks.settings import resolve
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


def with_older(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a run folder holds, with those that an older version could not write, at the values that its models
    and data had: the task, which was a language model when there was no other, what the model's configuration names,
    and what the task names of its data.

    Its plug-ins, of which the task may be one, have been imported; what makes no sense is left as it is.
    """
    named = {"task": DEFAULT, **resolved}
    if named["task"] not in task_names():
        return named
    kind, model, data = task_kind(named["task"]), named.get("model"), named.get("data")
    if isinstance(model, Mapping):
        named["model"] = {**kind.model_config.older, **model}
    if isinstance(data, Mapping):
        named["data"] = {**kind.older_data(data), **data}
    return named
