"""`tune TASK` for every kind of task: what is searched, from settings files and words, and the rest as it was given."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.cli.tasks import BUDGET, grouped_terms, task_command, tell_page, terms_groups
from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.tasks.given import Setting, Settings
    from blockyard.tasks.groups import Group

TUNING, OVER = "tuning", "over"
OVER_HELP = (
    "what to search: GROUP.OPTION=VALUES, several separated by ';'. VALUES are a list (standard,tva) or a range "
    "(1e-4..1e-2 log; 64..256 step 32); an option of a block is searched where the block is drawn. May be repeated"
)


def tune_command(task: str, summary: str, *, order: int = 37, example: str = "") -> Command:
    """Make `blockyard tune TASK`; arguments as for `train_command`."""

    def add_arguments(parser: Parser) -> None:
        from blockyard.cli.settings import add_groups
        from blockyard.cli.sources import add_config

        parser.plain("--over", OVER_HELP, metavar="'OPTION=VALUES; ...'", action="append", default=[])
        parser.plain(
            "--out",
            f"folder of the runs and the report; given again, the search goes on ({TUNING})",
            metavar="DIR",
            default=TUNING,
        )
        add_config(parser)
        add_groups(parser, tune_groups(task))

    def run(arguments: argparse.Namespace) -> int:
        from blockyard.cli.sources import PLUGINS, given_settings, settings_files
        from blockyard.tasks.kind import task_kind
        from blockyard.tune.run import tune
        from blockyard.tune.settings import TuneConfig
        from blockyard.tune.space import read_space

        groups = tune_groups(task)
        files = settings_files(arguments.config, None, False)
        given, plugins = given_settings(arguments, files, groups, task, skip=(OVER,))
        over, given = without_overruled(searched(arguments.over, files), given)
        settings = read_as_given(groups, given)
        terms = {name: value for name, value in task_kind(task).compare_defaults.items() if name.startswith(BUDGET)}
        config = TuneConfig(**{**terms, **grouped_terms(settings)})
        space = read_space(task, {name: o.value for name, o in over.items()}, {n: o.origin for n, o in over.items()})
        shared: dict[str, Any] = {**settings, PLUGINS: plugins} if plugins else dict(settings)
        record = tune(task, space, config, shared, arguments.out)
        # Whoever joins a search has no report to show.
        return 0 if record is None else tell_page(arguments.out)

    return task_command("tune", task, summary, add_arguments, run, order, example)


def tune_groups(task: str) -> dict[str, Group]:
    """Return the terms of the search, its budget, and every option that trials may share or search."""
    from blockyard.compare.settings import DECIDED
    from blockyard.registry.options import options_of
    from blockyard.tasks.groups import by_name, train_groups
    from blockyard.tasks.kind import task_kind
    from blockyard.tune.settings import TuneConfig

    known = options_of(TuneConfig)
    terms = known | {n: replace(known[n], default=v) for n, v in task_kind(task).compare_defaults.items() if n in known}
    shared = train_groups(task)
    train = {name: option for name, option in shared["train"].own.items() if name not in DECIDED}
    shared["train"] = replace(shared["train"], help="the training of every trial", own=train)
    return by_name([*terms_groups(terms, "the search", "when each trial stops"), *shared.values()])


def searched(words: Sequence[str], files: Sequence[Path]) -> dict[str, Setting]:
    """Return what is to be searched, from settings files and `--over`: option -> its values as given, the last one
    winning."""
    from blockyard.registry.yamlfile import read_yaml
    from blockyard.tasks.given import WORDS, Setting
    from blockyard.tune.space import split_over

    found: dict[str, Setting] = {}

    def note(name: str, value: Any, origin: str, layer: int) -> None:
        group, _, key = name.partition(".")
        found[name] = Setting(group, key, value, origin, layer=layer)

    for layer, path in enumerate(files):
        content = read_yaml(path).get(OVER)
        origin = f"{path}: {OVER}"
        for name, value in _flat(split_over(content, origin) if isinstance(content, str) else content, origin):
            note(name, value, origin, layer)
    for text in words:
        for name, value in split_over(text, "--over").items():
            if found.get(name) is not None and found[name].layer == WORDS:
                raise InputError(f"--over: {name} stands twice")
            note(name, value, "--over", WORDS)
    return found


def _flat(content: Any, origin: str) -> list[tuple[str, Any]]:
    """Return a file's `over` as (option, values); `group: {key: values}` and `group.key: values` mean the same."""
    if content is None:
        return []
    if not isinstance(content, Mapping):
        raise InputError(f"{origin}={content!r} should be a mapping, such as 'over: {{train.lr: 1e-4..1e-2 log}}'")
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            found.append((str(name), value))
    return found


def without_overruled(
    over: Mapping[str, Setting], given: Sequence[Setting]
) -> tuple[dict[str, Setting], list[Setting]]:
    """Let the later source count for an option that one source searches and another one gives."""
    last = {f"{item.group}.{item.key}": item.layer for item in given}
    kept = {name: item for name, item in over.items() if last.get(name, -1) <= item.layer}
    rest = [
        item for item in given if (name := f"{item.group}.{item.key}") not in kept or item.layer >= kept[name].layer
    ]
    return kept, rest


def read_as_given(groups: Mapping[str, Group], given: Sequence[Setting]) -> Settings:
    """Check settings and return what was given alone: which blocks they belong to is decided by every trial's draw.

    Raises:
        InputError: for an unknown group or option (with a suggestion), or a value of the wrong type.
    """
    from blockyard.compare.settings import DECIDED
    from blockyard.tasks.given import check_groups, latest, read_value
    from blockyard.tasks.groups import unknown_key

    last = latest(given)
    check_groups(groups, last)
    settings: Settings = {}
    for (name, key), item in last.items():
        options = groups[name].options
        if name == "train" and key in DECIDED:
            raise InputError(f"{item.origin}: the search decides it by its budget; leave it out")
        if key not in options:
            raise InputError(unknown_key(item.origin, key, list(options), name))
        settings.setdefault(name, {})[key] = read_value(options[key], item)
    return settings
