"""Where a command's settings come from: settings files first, then the words, and the plug-ins either names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockyard.cli.parser import Parser, WholeValues
from blockyard.cli.settings import given_words
from blockyard.errors import InputError
from blockyard.registry.plugins import load_file_plugins, see_current_folder
from blockyard.registry.yamlfile import read_yaml
from blockyard.tasks.given import Setting
from blockyard.tasks.groups import Group, unknown_group

PLUGINS, TASK = "plugins", "task"


def add_config(parser: Parser) -> None:
    """Declare `--config`."""
    parser.plain(
        "--config",
        "settings file, such as a run's config.yaml; may be repeated, the later one wins",
        metavar="FILE.yaml",
        action="append",
        default=[],
    )
    add_trust(parser, "a settings file")


def add_trust(parser: Parser, what: str) -> None:
    """Declare `--trust` for a command that reads files which may name plug-ins."""
    parser.plain(
        "--trust",
        f"run the code of whatever plug-ins {what} names, without naming them with --plugin",
        action="store_true",
    )


def trusted(arguments: argparse.Namespace) -> bool:
    """Return whether the user agrees to all plug-ins that a run folder names; then they may lie in the current
    folder."""
    if arguments.trust:
        see_current_folder()
    return bool(arguments.trust)


def prepare_plugins(words: Sequence[str]) -> None:
    """Import the plug-ins that settings files name, before the options they bring are declared.

    Raises:
        InputError: for one that the user neither names with `--plugin` nor agrees to with `--trust`.
    """
    first = WholeValues(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", action="append", default=[])
    first.add_argument("--out")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--trust", action="store_true")
    try:
        known, _ = first.parse_known_args(list(words))
    except argparse.ArgumentError:
        # Such as --config without a file: the command's own parser says it better.
        return
    for path in settings_files(known.config, known.out, known.resume):
        load_file_plugins(read_yaml(path).get(PLUGINS), str(path), trust=known.trust, here=True)


def settings_files(configs: Sequence[str], out: str | None, resume: bool) -> list[Path]:
    """Return the settings files in the order in which they are laid down.

    A resumed run's own config.yaml comes first, so that `--out DIR --resume` says all that is needed.
    """
    files = [Path(name) for name in configs]
    if resume and out is not None and (saved := Path(out) / "config.yaml").is_file():
        files.insert(0, saved)
    return files


def given_settings(
    arguments: argparse.Namespace,
    files: Sequence[Path],
    groups: Mapping[str, Group],
    task: str,
    skip: tuple[str, ...] = (),
) -> tuple[list[Setting], list[str]]:
    """Return all settings as given, files first, and the plug-ins that were imported.

    Args:
        arguments: the parsed words.
        files: settings files, the later one wins over the earlier.
        groups: the groups there are.
        task: what is trained or compared; a file may name it but no other.
        skip: keys of a file that the command reads by itself.

    Raises:
        InputError: as `read_yaml` and `given_in` say, or for a file of another task.
    """
    given: list[Setting] = []
    plugins: list[str] = []
    for layer, path in enumerate(files):
        content = read_yaml(path)
        # `prepare_plugins` has imported them, unless it could not read the words.
        plugins += load_file_plugins(content.get(PLUGINS), str(path), trust=arguments.trust, here=True)
        if content.get(TASK, task) != task:
            raise InputError(f"{path}: {TASK}={content[TASK]!r}, but this command is of the task {task!r}")
        given += given_in(path, content, groups, (PLUGINS, TASK, *skip), layer)
    return [*given, *given_words(arguments)], list(dict.fromkeys([*plugins, *arguments.plugin]))


def given_in(
    path: Path, settings: dict[str, Any], groups: Mapping[str, Group], skip: tuple[str, ...] = (), layer: int = 0
) -> list[Setting]:
    """Return the settings of a file as a list; `group: {key: value}` and `group.key: value` mean the same.

    Args:
        path: the file, for the origins.
        settings: what it holds.
        groups: the groups there are; the options of the one named "" stand at the top of the file.
        skip: top-level keys that are not groups and belong to the caller.
        layer: number of the file, counted from 0.
    """
    top = groups[""].own if "" in groups else {}
    found = []
    for name, value in settings.items():
        if name in skip:
            continue
        group, dot, key = str(name).partition(".")
        if name in top:
            found.append(Setting("", name, value, f"{path}: {name}", layer=layer))
        elif group not in groups:
            raise InputError(f"{path}: {unknown_group(group, groups, (*top, *skip))}")
        elif dot:
            found.append(Setting(group, key, value, f"{path}: {name}", layer=layer))
        elif isinstance(value, dict):
            found += [Setting(group, str(k), v, f"{path}: {group}.{k}", layer=layer) for k, v in value.items()]
        elif value is not None:
            raise InputError(f"{path}: {group}={value!r} should be a mapping, such as '{group}: {{key: value}}'")
    return found
