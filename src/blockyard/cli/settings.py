"""Flags for every option of every group, their help, and what was given by them: tasks/given.py checks that."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from typing import Any

from blockyard.cli.parser import Parser
from blockyard.cli.shape import Flag, Meaning
from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import default_ffn_of
from blockyard.registry.register import Entry, names
from blockyard.registry.schema import option_schema
from blockyard.tasks.given import WORDS, Setting, Settings, check_groups, check_required, latest, read_value
from blockyard.tasks.groups import Group, unknown_group, unknown_key

# The section of options that stand at the top of a settings file.
TERMS = "terms"


def add_groups(parser: Parser, groups: Mapping[str, Group]) -> None:
    """Declare a flag for every option of every group, with type, default, choices and text in the help."""
    for group in groups.values():
        section = parser.add_argument_group(f"{group.name}: {group.help}" if group.name else group.help)
        flags = []
        for option in group.options.values():
            flag = _group_flag(option, group)
            _declare(section, flag, option)
            if flag.meanings:
                flags.append(flag)
        parser.sections.append((group.name or TERMS, group.help, flags))
    parser.explain_unknown = lambda flag: explain_flag(flag, groups)


def _group_flag(option: Option, group: Group) -> Flag:
    """Return an option of a group as data; without a meaning where no model of the task can have its blocks."""
    holders = group.holders(option.name)
    fit = [entry for entry in holders if (entry.kind, entry.name) not in group.unfit]
    chooses = group.chooses(option.name)
    known = group.names_for(option.name)
    default = option.default if isinstance(option.default, str) else ""
    return Flag(
        (group.flag(option.name),),
        _metavar(option),
        _meanings(option, fit) if fit or not holders else (),
        shared=len(fit) in (0, len(group.members)) and len({_text(entry.options[option.name]) for entry in fit}) <= 1,
        value="optional" if bool in option.alternatives else "needed",
        values=known or _values(option),
        chooses=chooses,
        default=default if chooses else "",
        follows={mixer: default_ffn_of(mixer, default) for mixer in names("attn")} if chooses == "ffn" else {},
        schema=option_schema(option, known),
    )


def _meanings(option: Option, holders: Iterable[Entry]) -> tuple[Meaning, ...]:
    """Return the docstring's text and the default; where blocks share an option but mean it differently, each one's."""
    found: dict[str, list[str]] = {}
    for entry in holders:
        found.setdefault(_text(entry.options[option.name]), []).append(f"{entry.kind}:{entry.name}")
    return tuple(Meaning(text, tuple(blocks)) for text, blocks in (found or {_text(option): []}).items())


def _text(option: Option) -> str:
    return f"{option.help.rstrip('.')} ({default_text(option)})".strip()


def _metavar(option: Option) -> str:
    return option.type_name.replace(" | ", "|").replace(" ", "_")


def _values(option: Option) -> tuple[str, ...]:
    """Return the values that an option may have, where they are few."""
    if bool in option.alternatives:
        return ("true", "false")
    return tuple(map(str, option.choices))


def _declare(section: argparse._ActionsContainer, flag: Flag, option: Option) -> None:
    section.add_argument(
        flag.name,
        dest=flag.name,
        default=argparse.SUPPRESS,
        metavar=flag.metavar,
        help=flag.help().replace("%", "%%"),
        # mypy: argparse types every keyword apart.
        **({"nargs": "?", "const": "true"} if bool in option.alternatives else {}),  # type: ignore[arg-type]
    )


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


def add_flat(parser: Parser, name: str, title: str, options: Mapping[str, Option]) -> None:
    """Declare `--name` for each option, under a heading; `--help NAME` shows them."""
    section = parser.add_argument_group(title)
    flags = []
    for option in options.values():
        if option.settable:
            switch = "optional" if bool in option.alternatives else "needed"
            flag = Flag(
                (f"--{option.name}",), _metavar(option), (Meaning(_text(option)),), value=switch, values=_values(option)
            )
            _declare(section, flag, option)
            flags.append(flag)
    parser.sections.append((name, title, flags))


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
