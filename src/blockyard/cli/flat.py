"""Options without a dot, of a command itself, read from a dataclass like all others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from blockyard.cli.parser import Parser
from blockyard.cli.settings import Given, default_text, read_value
from blockyard.errors import InputError
from blockyard.registry.options import Option


def add_flat(parser: Parser, title: str, options: Mapping[str, Option]) -> None:
    """Declare `--name` for each option, under a heading."""
    section = parser.add_argument_group(title)
    for option in options.values():
        if not option.settable:
            continue
        optional: dict[str, Any] = {"nargs": "?", "const": "true"} if bool in option.alternatives else {}
        section.add_argument(
            f"--{option.name}",
            dest=f"--{option.name}",
            default=argparse.SUPPRESS,
            metavar=option.type_name.replace(" | ", "|").replace(" ", "_"),
            help=f"{option.help.rstrip('.')} ({default_text(option)})".replace("%", "%%"),
            **optional,
        )


def read_flat(namespace: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    """The values given for these options, as their types.

    Raises:
        InputError: "--tokens='many' should be int", or for a required option that is not given.
    """
    found = {}
    for name, option in options.items():
        flag = f"--{name}"
        if flag in vars(namespace):
            found[name] = read_value(option, Given("", name, vars(namespace)[flag], flag, is_word=True))
        elif option.required:
            raise InputError(f"{flag} must be given: {option.help.rstrip('.')}")
    return found
