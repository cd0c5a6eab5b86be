"""Flags for every option of every group, their help, and what was given by them: tasks/given.py checks that."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from blockyard.cli.parser import Parser
from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.tasks.given import WORDS, Setting, Settings, check_groups, check_required, latest, read_value
from blockyard.tasks.groups import Group, unknown_group, unknown_key


def add_groups(parser: Parser, groups: Mapping[str, Group]) -> None:
    """Declare a flag for every option of every group, with type, default, choices and text in the help."""
    for group in groups.values():
        section = parser.add_argument_group(f"{group.name}: {group.help}" if group.name else group.help)
        for option in group.options.values():
            _declare(section, group.flag(option.name), option, option_help(option, group))
    parser.explain_unknown = lambda flag: explain_flag(flag, groups)


def _declare(section: argparse._ActionsContainer, flag: str, option: Option, help: str) -> None:
    section.add_argument(
        flag,
        dest=flag,
        default=argparse.SUPPRESS,
        metavar=option.type_name.replace(" | ", "|").replace(" ", "_"),
        help=help,
        # mypy: argparse types every keyword apart.
        **({"nargs": "?", "const": "true"} if bool in option.alternatives else {}),  # type: ignore[arg-type]
    )


def option_help(option: Option, group: Group) -> str:
    """Return the docstring's text and the default; where blocks share an option but mean it differently, each one's."""
    meanings: dict[str, list[str]] = {}
    for entry in group.holders(option.name):
        meant = entry.options[option.name]
        meanings.setdefault(f"{meant.help.rstrip('.')} ({default_text(meant)})", []).append(entry.name)
    if not meanings:
        meanings[f"{option.help.rstrip('.')} ({default_text(option)})"] = []
    shared_by_all = len(meanings) == 1 and len(next(iter(meanings.values()))) in (0, len(group.members))
    texts = [text if shared_by_all else f"[{', '.join(names)}] {text}" for text, names in meanings.items()]
    return "; ".join(texts).strip().replace("%", "%%")


def default_text(option: Option) -> str:
    """Word "required", or "default: 4"."""
    if option.required:
        return "required"
    return f"default: {option.none_word if option.default is None else value_text(option.default)}"


def value_text(value: Any) -> str:
    """Return a value as it is typed on the command line; text that would not show is quoted."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(value_text(item) for item in value) or "none"
    if isinstance(value, str) and (not value or not value.isprintable() or value != value.strip()):
        return repr(value)
    return str(value)


def explain_flag(flag: str, groups: Mapping[str, Group]) -> str | None:
    """Return what is wrong with an unknown `--group.key`, or with a group alone; None for anything else."""
    name, dot, key = flag.removeprefix("--").partition(".")
    if not dot:
        chooses = name in groups and "impl" in groups[name].options
        return f"unknown option {flag!r} (did you mean '--{name}.impl'?)" if chooses else None
    if name not in groups:
        return f"{flag}: {unknown_group(name, groups)}"
    return unknown_key(flag, key, groups[name].options, name)


def given_words(namespace: argparse.Namespace) -> list[Setting]:
    """Return the options of groups on a parsed command line."""
    found = []
    for flag, value in vars(namespace).items():
        if flag.startswith("--"):
            group, _, key = flag.removeprefix("--").rpartition(".")
            found.append(Setting(group, key, value, flag, is_word=True, layer=WORDS))
    return found


def read_given(groups: Mapping[str, Group], given: Iterable[Setting]) -> Settings:
    """Check settings of groups that no block lives in, and return what was given alone, without defaults.

    Raises:
        InputError: as `tasks.given.resolve`, also for a required option that is not given.
    """
    last = latest(given)
    check_groups(groups, last)
    settings: Settings = {name: {} for name in groups}
    for (name, key), item in last.items():
        if key not in groups[name].own:
            raise InputError(unknown_key(item.origin, key, list(groups[name].own), name))
        settings[name][key] = read_value(groups[name].own[key], item)
    check_required(groups, settings, {})
    return settings


def add_flat(parser: Parser, title: str, options: Mapping[str, Option]) -> None:
    """Declare `--name` for each option, under a heading."""
    section = parser.add_argument_group(title)
    for option in options.values():
        if option.settable:
            text = f"{option.help.rstrip('.')} ({default_text(option)})"
            _declare(section, f"--{option.name}", option, text.replace("%", "%%"))


def read_flat(namespace: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values given for these options, as their types.

    Raises:
        InputError: "--tokens='many' should be int", or for a required option that is not given.
    """
    found = {}
    for name, option in options.items():
        flag = f"--{name}"
        if flag in vars(namespace):
            found[name] = read_value(option, Setting("", name, vars(namespace)[flag], flag, is_word=True))
        elif option.required:
            raise InputError(f"{flag} must be given: {option.help.rstrip('.')}")
    return found
