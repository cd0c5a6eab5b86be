"""`blockyard data text`: what a text is understood as, before anything is trained on it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.tasks.groups import Group


def groups() -> dict[str, Group]:
    """Return the options of `data` that say how a text is read; not how it is cut into tokens and parts."""
    from blockyard.tasks.groups import dataclass_group
    from blockyard.text.config import TextDataConfig

    later = ("path", "token_dtype", "tokenizer", "vocab_size", "val_fraction", "cache_dir")
    return {"data": dataclass_group("data", "how it is read", TextDataConfig, without=later)}


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_groups

    parser.usage = "%(prog)s PATH [options]"
    parser.plain("path", "file or folder of text", metavar="PATH")
    parser.plain("--json", "print it as JSON", action="store_true")
    add_groups(parser, groups())


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import given_words, read_given
    from blockyard.text.config import TextDataConfig
    from blockyard.text.understanding import understand_text

    known = groups()
    options = read_given(known, given_words(arguments)).get("data", {})
    found = understand_text(TextDataConfig(**{**options, "path": arguments.path}))
    if arguments.json:
        import json

        print(json.dumps(found.as_dict()))
    else:
        print("\n".join(found.lines()))
    return 0


COMMAND = Command(
    "data text",
    "what a text is understood as: files, documents, encodings, what is left out",
    add_arguments,
    run,
    order=14,
    purpose="understand",
    example="blockyard data text my_texts/",
)
