"""Files of prices for `forecast` and `backtest`: read as the run's own were, but for what is given."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.parser import Parser
from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.tasks.groups import Group
    from blockyard.tasks.price.data.table import Prices

SPLITTING = ("path", "val_fraction", "test_fraction", "train_end", "val_end", "embargo")


def groups() -> dict[str, Group]:
    """Return how files are read: the options of `data` that do not split them."""
    from blockyard.tasks.groups import dataclass_group
    from blockyard.tasks.price.data.config import PriceDataConfig

    return {"data": dataclass_group("data", "how the files are read", PriceDataConfig, without=SPLITTING)}


def add_files(parser: Parser, what: str) -> None:
    """Declare RUN, FILE … and the options of reading."""
    from blockyard.cli.settings import add_groups
    from blockyard.cli.sources import add_trust

    parser.usage = "%(prog)s RUN [FILE ...] [options]"
    parser.plain("run", "folder of a trained run", metavar="RUN", nargs="?")
    parser.plain(
        "files",
        f"CSV, Excel or parquet files of prices {what}; those of the run when not given",
        metavar="FILE",
        nargs="*",
    )
    add_trust(parser, "the run")
    add_groups(parser, groups())


def read_files(arguments: argparse.Namespace, command: str) -> tuple[Path, Prices, Any]:
    """Return the run folder, the prices, and the configuration they were read with.

    Raises:
        InputError: when there is no run, or something is wrong with a file.
    """
    from blockyard.cli.console import say
    from blockyard.cli.settings import given_words, read_given
    from blockyard.cli.sources import trusted
    from blockyard.tasks.price.data.reader import read_prices
    from blockyard.tasks.price.finish import EVALUATION
    from blockyard.tasks.run import read_run

    if arguments.run is None:
        raise InputError(f"which run? Give the folder of a trained one: blockyard {command} RUN FILE")
    folder = Path(arguments.run)
    known = groups()
    given = read_given(known, [g for g in given_words(arguments) if g.group in known])["data"]
    run = read_run(folder, trust=trusted(arguments))
    if run.task != "price":
        raise InputError(f"{folder} holds a run of `train {run.task}`; {command} takes one of `train price`")
    if not (folder / EVALUATION).is_file():
        # Trained in Python, or stopped between the last step and the test.
        say(
            f"note: {folder} was neither calibrated nor tested after its training: its quantiles are as trained; "
            f"in Python, blockyard.tasks.price.finish_run({str(folder)!r}) does both"
        )
    config = replace(run.data, **given)
    if arguments.files:
        config = replace(config, path=tuple(arguments.files))
    return folder, read_prices(None, config), config
