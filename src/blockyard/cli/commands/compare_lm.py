"""`blockyard compare lm`: block choices trained as language models at an equal budget, and a report."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.cli.groups import Group

# What the comparison decides for every run by itself.
DECIDED = ("steps", "eval_every", "save_every", "log_every", "keep", "save_best", "on_non_finite", "progress",
           "tensorboard")  # fmt: skip
BUDGET = "budget_"
FOLDER = "comparison"


def prepare(words: list[str]) -> None:
    from blockyard.cli.sources import load_file_plugins

    load_file_plugins(words)


def groups() -> dict[str, Group]:
    """The terms of the comparison, its budget, and what all its models share."""
    from blockyard.cli.groups import Group, by_name, dataclass_group
    from blockyard.data.config import TextDataConfig
    from blockyard.models.lm import LMConfig
    from blockyard.options import options_of
    from blockyard.training.config import TrainConfig
    from blockyard.workbench.settings import CompareConfig

    terms = options_of(CompareConfig)
    budget = {
        name.removeprefix(BUDGET): replace(option, name=name.removeprefix(BUDGET))
        for name, option in terms.items()
        if name.startswith(BUDGET)
    }
    own = {name: option for name, option in terms.items() if not name.startswith(BUDGET)}
    return by_name(
        [
            Group("", "what is compared", own),
            Group("budget", "when each run stops", budget),
            dataclass_group("model", "the shape that all start from", LMConfig, without=("vocab_size", "blocks")),
            dataclass_group("train", "the training of every run", TrainConfig, without=DECIDED),
            dataclass_group("data", "the text", TextDataConfig),
        ]
    )


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_groups
    from blockyard.cli.sources import add_config

    parser.plain("--out", f"folder of the runs and the report; given again, the comparison goes on ({FOLDER})",
                 metavar="DIR", default=FOLDER)  # fmt: skip
    add_config(parser)
    known = groups()
    add_groups(parser, known)
    otherwise = parser.explain_unknown
    parser.explain_unknown = lambda flag: block_option(flag, known) or otherwise(flag)


def block_option(flag: str, known: dict[str, Group]) -> str | None:
    """Where an option of a block belongs here, or None when the flag is none."""
    from blockyard.registry import owners

    group, dot, key = flag.removeprefix("--").partition(".")
    holders = owners(key) if dot and group not in known else []
    if not holders:
        return None
    return f"{flag}: an option of a block stands behind its name here, as in --blocks '{holders[0]}[{key}=...]'"


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import read_given
    from blockyard.cli.sources import PLUGINS, given_settings, settings_files
    from blockyard.workbench.compare import compare_lm
    from blockyard.workbench.settings import CompareConfig

    known = groups()
    given, plugins = given_settings(arguments, settings_files(arguments.config, None, False), known)
    settings = read_given(known, given)
    budget = {BUDGET + key: value for key, value in settings.pop("budget").items()}
    config = CompareConfig(**settings.pop(""), **budget)
    shared: dict[str, Any] = {name: options for name, options in settings.items() if options}
    if plugins:
        shared[PLUGINS] = plugins
    compare_lm(config, shared, Path(arguments.out))
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        # A person at a terminal has just been told; a script reads it here.
        print(Path(arguments.out) / "report.html")
    return 0


COMMAND = Command(
    "compare lm", "train several block choices at an equal budget and write a report", add_arguments, run,
    prepare=prepare, order=30,
    example="blockyard compare lm --blocks 'standard;tva+vft[rank=16]' --match params --seeds 3 --out comparison",
)  # fmt: skip
