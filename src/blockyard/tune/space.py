"""What is searched: options of any group, drawn in an order in which an option of a block counts only when it is used.

The names of blocks are drawn first. What the drawn layers have no use for (the rank of a vein block in a trial of
standard attention) is neither drawn nor set, so a search over blocks may search their own options with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from blockyard.compare.settings import DECIDED
from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import parse_choice, split_outside
from blockyard.registry.register import Kind, entries, implementation
from blockyard.report.units import word
from blockyard.tasks.groups import FFN_GROUP, MIXER_GROUP, Group, train_groups, unknown_group, unknown_key
from blockyard.tasks.kind import task_kind
from blockyard.tasks.settings import resolve, used_options
from blockyard.tune.dimension import Dimension, Trial, read_dimension
from blockyard.tune.settings import plain_groups

Groups = Mapping[str, Any]
KINDS: dict[str, Kind] = {MIXER_GROUP: "attn", FFN_GROUP: "ffn"}
# Selections of blocks that are looked through to see whether an option is ever used.
MOST_SELECTIONS = 4096


@dataclass(frozen=True)
class Space:
    """The options of a task that are searched.

    Args:
        task: the kind of task, by name.
        dimensions: one per option, in the order in which they were named.
    """

    task: str
    dimensions: tuple[Dimension, ...]

    @property
    def text(self) -> str:
        """As `--over` takes it."""
        return "; ".join(f"{dimension.name}={dimension.text}" for dimension in self.dimensions)

    def draw(self, trial: Trial, fixed: Groups) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return one trial's settings.

        Args:
            trial: what draws.
            fixed: option groups that all trials share.

        Returns: the option groups of the trial, and what was drawn, by `group.option`.
        """
        return self._settle(fixed, lambda dimension: dimension.draw(trial))

    def with_drawn(self, drawn: Mapping[str, Any], fixed: Groups) -> dict[str, Any]:
        """Return the option groups of what was drawn before."""
        groups, _ = self._settle(fixed, lambda dimension: drawn[dimension.name])
        return groups

    def defaults(self, fixed: Groups) -> dict[str, Any]:
        """Return the option groups of the default configuration: what is fixed, and nothing of what is searched."""
        kept, _ = used_options(fixed, self.task)
        return kept

    def _settle(self, fixed: Groups, value: Callable[[Dimension], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        groups, drawn = plain_groups(fixed), {}

        def put(dimension: Dimension) -> None:
            drawn[dimension.name] = value(dimension)
            groups.setdefault(dimension.group, {})[dimension.key] = drawn[dimension.name]

        naming = _naming()
        later = [d for d in self.dimensions if _belongs_to_block(d)]
        for dimension in self.dimensions:
            if dimension not in later:
                put(dimension)
        # Which expert it is decides whose its options are.
        for dimension in sorted(later, key=lambda d: d.key not in naming):
            if used_options(groups, self.task)[1](dimension.group, dimension.key):
                put(dimension)
        kept, _ = used_options(groups, self.task)
        return kept, {d.name: drawn[d.name] for d in self.dimensions if d.name in drawn}

    def check(self, fixed: Groups) -> None:
        """Refuse options that no trial could use, searched or fixed.

        Raises:
            InputError: as `resolve` for such an option.
        """
        for dimension in self.dimensions:
            if dimension.key in (fixed.get(dimension.group) or {}):
                both = word(fixed[dimension.group][dimension.key])
                raise InputError(f"--over {dimension.name}: given as {both} as well; leave one of them out")
        asked = [(d.group, d.key, d.values[0] if d.values else d.low) for d in self.dimensions if _belongs_to_block(d)]
        asked += [
            (group, key, value)
            for group, options in fixed.items()
            if isinstance(options, Mapping) and group not in ("model", "train", "data")
            for key, value in options.items()
            if not (group in KINDS and key == "impl")
        ]
        selections = self._selections(fixed)
        takers = [used_options(selection, self.task)[1] for selection in selections]
        for group, key, value in asked:
            if not any(takes(group, key) for takes in takers):
                first = plain_groups(used_options(selections[0], self.task)[0])
                resolve({**first, group: {**first.get(group, {}), key: value}}, self.task)

    def _selections(self, fixed: Groups) -> list[dict[str, Any]]:
        """Return every choice of blocks that can be drawn, as option groups."""
        naming = _naming()
        named = [d for d in self.dimensions if d.values and (d.key in ("impl", "pattern") or d.key in naming)]
        found = []
        for values in product(*(d.values for d in named)):
            groups = plain_groups(fixed)
            for dimension, value in zip(named, values):
                groups[dimension.group] = {**groups.get(dimension.group, {}), dimension.key: value}
            found.append(groups)
            if len(found) == MOST_SELECTIONS:
                break
        return found


def _belongs_to_block(dimension: Dimension) -> bool:
    """Return whether an option is a block's, and exists only where the block is selected."""
    return dimension.group not in ("model", "train", "data") and not (
        dimension.group in KINDS and dimension.key == "impl"
    )


def _naming() -> set[str]:
    """Return options that name a member of a block, such as a mixture's expert."""
    kinds: tuple[Kind, ...] = ("attn", "ffn", "block")
    return {option for kind in kinds for entry in entries(kind) for option in getattr(entry.cls, "members", {})}


def split_over(text: str, origin: str) -> dict[str, str]:
    """Return `train.lr=1e-4..1e-2 log; attn.impl=standard,tva` as option -> its values' text.

    Raises:
        InputError: for a part without `=`, or an option that stands twice.
    """
    found: dict[str, str] = {}
    for part in split_outside(text, ";"):
        if not part:
            continue
        name, equals, values = (side.strip() for side in part.partition("="))
        if not equals or not values:
            raise InputError(f"{origin} {part!r} should be GROUP.OPTION=VALUES, as in 'train.lr=1e-4..1e-2 log'")
        name = name.removeprefix("--").replace("-", "_")
        if name in found:
            raise InputError(f"{origin}: {name} stands twice")
        found[name] = values
    return found


def read_space(task: str, over: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> Space:
    """Check what is to be searched.

    Args:
        task: the kind of task, by name; plug-ins are to be imported before.
        over: `group.option` -> its values, as text (`"1e-4..1e-2 log"`, `"standard,tva"`) or as a list.
        origins: where each stands, for errors; "--over" when not given.

    Raises:
        InputError: for an unknown group, option or block, a wrong type, or an option that the search decides itself.
    """
    if not over:
        raise InputError("--over must be given, as in 'train.lr=1e-4..1e-2 log; attn.impl=standard,tva'")
    groups = train_groups(task)
    dimensions = []
    for name, given in over.items():
        origin = f"{(origins or {}).get(name, '--over')} {name}"
        group, dot, key = name.partition(".")
        if not dot:
            raise InputError(f"{origin} should name an option with its group, as in train.lr")
        option = _option(groups, group, key, origin)
        dimension = read_dimension(group, option, given, origin)
        _check_names(task, dimension, origin)
        dimensions.append(dimension)
    return Space(task, tuple(dimensions))


def _option(groups: Mapping[str, Group], group: str, key: str, origin: str) -> Option:
    if group not in groups:
        raise InputError(f"{origin}: {unknown_group(group, groups)}")
    known = groups[group].options
    if group == "train" and key in DECIDED:
        raise InputError(f"{origin}: the search decides it by its budget (--budget.unit, --budget.value)")
    if (group, key) == ("train", "seed"):
        raise InputError(f"{origin}: seeds are not searched; the best trials are run again with fresh ones (--seeds)")
    if key not in known:
        raise InputError(unknown_key(origin, key, list(known), group))
    return known[key]


def _check_names(task: str, dimension: Dimension, origin: str) -> None:
    """Look names of blocks and patterns among the values up now rather than in some trial."""
    try:
        for value in dimension.values:
            if dimension.key == "impl" and dimension.group in KINDS:
                implementation(KINDS[dimension.group], value)
            elif dimension.name == "model.pattern" and value is not None:
                parse_choice(value, default_ffn=task_kind(task).ffn)
    except InputError as error:
        raise InputError(f"{origin}: {error}") from None
