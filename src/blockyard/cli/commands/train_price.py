"""`blockyard train price`: a forecaster of prices on the user's files, or on the S&P 500."""

from __future__ import annotations

import argparse
from typing import Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.cli.tasks import prepare, train_as_told, train_command

PRESETS = ("tiny", "small", "base", "large")
BASE = train_command("price", "")


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s [FILE ...] [options]"
    parser.plain("files", "CSV, Excel or parquet files of prices (data.path)", metavar="FILE", nargs="*")
    parser.plain(
        "--preset",
        "the price document's layout in one of its sizes: tiny, small, base, large; given options win",
        choices=PRESETS,
    )
    parser.plain(
        "--calibrate",
        "shift quantiles by what validation shows: auto (where that helps), on, off",
        choices=("auto", "on", "off"),
        default="auto",
    )
    BASE.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    from blockyard.machine.launch import is_first
    from blockyard.tasks.given import Setting
    from blockyard.tasks.price.finish import finish_run
    from blockyard.tasks.price.presets import preset

    below = [
        Setting(group, key, value, f"--preset {arguments.preset}: {group}.{key}", layer=-1)
        for group, options in (preset(arguments.preset) if arguments.preset else {}).items()
        for key, value in options.items()
    ]
    above = [Setting("data", "path", list(arguments.files), "FILE", layer=1 << 20)] if arguments.files else []
    out = train_as_told("price", arguments, below=below, above=above, before=_tell_time if arguments.preset else None)
    if is_first():
        print(finish_run(out, arguments.calibrate))
    return 0


def _tell_time(task: Any) -> None:
    """Say how long the training will take; what several processes share is not timed by one."""
    from blockyard.cli.console import say
    from blockyard.machine.launch import world_size
    from blockyard.tasks.price.estimate import estimate

    if world_size() == 1:
        say(estimate(task).describe())


COMMAND = Command(
    "train price",
    "train a price forecaster on files of prices",
    add_arguments,
    run,
    prepare=prepare,
    order=12,
    purpose="train",
    common=BASE.common,
    builds=True,
    example="blockyard train price prices.csv --out runs/prices --attn.impl mla",
)
