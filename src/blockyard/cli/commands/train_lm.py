"""`blockyard train lm`: a language model on the user's text, or on the standard library's own source."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError

RUNS = Path("runs")


def prepare(words: list[str]) -> None:
    from blockyard.cli.sources import load_file_plugins

    load_file_plugins(words)


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.groups import lm_groups
    from blockyard.cli.settings import add_groups
    from blockyard.cli.sources import add_config

    parser.plain("--out", "folder of the run; the next free runs/lm-NNN when not given", metavar="DIR")
    add_config(parser)
    parser.plain("--resume", "go on from the last checkpoint in --out, with that run's settings",
                 action="store_true")  # fmt: skip
    add_groups(parser, lm_groups())


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.groups import lm_groups
    from blockyard.cli.settings import resolve
    from blockyard.cli.sources import PLUGINS, given_settings, settings_files
    from blockyard.training.run import train_lm

    if arguments.resume and arguments.out is None:
        raise InputError("--resume needs the run to go on with: --out DIR")
    files = settings_files(arguments.config, arguments.out, arguments.resume)
    groups = lm_groups()
    given, plugins = given_settings(arguments, files, groups)
    settings = resolve(groups, given)
    out = Path(arguments.out) if arguments.out is not None else next_folder()
    train_lm({**settings, PLUGINS: plugins}, out, arguments.resume)
    return 0


def next_folder() -> Path:
    """The first free runs/lm-NNN.

    Raises:
        InputError: under torchrun, where the processes could each find another one free.
    """
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise InputError("several processes train one run: name its folder with --out DIR")
    number = 1
    while (RUNS / f"lm-{number:03}").exists():
        number += 1
    return RUNS / f"lm-{number:03}"


COMMAND = Command(
    "train lm", "train a language model on text", add_arguments, run, prepare=prepare, order=10,
    example="blockyard train lm --data.path book.txt --attn.impl tva --ffn.impl vft --vft.rank 4",
)  # fmt: skip
