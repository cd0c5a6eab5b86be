"""`blockyard schema COMMAND`: the JSON Schema of its settings files, by which an editor checks and completes them."""

from __future__ import annotations

import argparse
from typing import Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s COMMAND"
    parser.plain("command", "a command that takes --config, such as: train lm", nargs="*", metavar="COMMAND")


def run(arguments: argparse.Namespace) -> int:
    import json

    from blockyard.cli.finding import find_command, load_command
    from blockyard.cli.shape_cache import shape_of

    if not arguments.command:
        raise InputError("the settings files of which command? blockyard schema train lm")
    name, rest = find_command(arguments.command)
    if rest:
        raise InputError(f"unexpected argument {rest[0]!r} behind {name!r}")
    shape = shape_of(load_command(name, whole=True))
    if shape.find("--config") is None:
        raise InputError(f"blockyard {name} takes no settings files")
    print(json.dumps(schema_of(name, shape), indent=1, ensure_ascii=False))
    return 0


def schema_of(name: str, shape: Any) -> dict[str, Any]:
    """Return the schema of a command's settings files.

    Args:
        name: the command's, such as "train lm".
        shape: its arguments (`cli/shape.py`).
    """
    from blockyard.cli.settings import TERMS
    from blockyard.cli.sources import PLUGINS, TASK
    from blockyard.cli.tune_tasks import OVER, OVER_HELP
    from blockyard.registry.schema import settings_schema

    own: dict[str, Any] = {
        TASK: {"const": name.split()[-1]},
        PLUGINS: {"description": "modules to import first", "type": ["array", "null"], "items": {"type": "string"}},
    }
    groups = {}
    for section in shape.sections:
        schemas = {flag.name.rpartition(".")[2].removeprefix("--"): flag.schema for flag in section.flags}
        options = {key: schema for key, schema in schemas.items() if schema is not None}
        if section.name == TERMS:
            own |= options
        elif options:
            groups[section.name] = (section.title, options)
    if shape.find(f"--{OVER}") is not None:
        own[OVER] = {"description": OVER_HELP, "type": ["string", "object", "null"]}
    return settings_schema(f"settings of blockyard {name}", own, groups)


COMMAND = Command(
    "schema",
    "the JSON Schema of a command's settings files, for editors",
    add_arguments,
    run,
    order=61,
    purpose="extend",
    example="blockyard schema train lm > train-lm.schema.json",
)
