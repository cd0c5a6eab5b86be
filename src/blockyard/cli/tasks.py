"""`train TASK` and `compare TASK` for every kind of task."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError
from blockyard.machine.launch import world_size

if TYPE_CHECKING:
    from blockyard.cli.settings import Given
    from blockyard.tasks.groups import Group

RUNS = Path("runs")
FOLDER = "comparison"
BUDGET = "budget_"
# Terms of a comparison that only models have that write.
WRITING = ("prompt", "sample_tokens", "temperature")


def prepare(words: list[str]) -> None:
    """Import the plug-ins that settings files name."""
    from blockyard.cli.sources import prepare_plugins

    prepare_plugins(words)


def train_command(task: str, summary: str, *, order: int = 12, example: str = "") -> Command:
    """`blockyard train TASK`.

    Args:
        task: the task's name.
        summary: one line for the overview.
        order: place in the overview.
        example: a command line shown below the help.
    """

    def add_arguments(parser: Parser) -> None:
        from blockyard.cli.settings import add_groups
        from blockyard.cli.sources import add_config
        from blockyard.tasks.groups import train_groups

        parser.plain("--out", f"folder of the run; the next free runs/{task}-NNN when not given", metavar="DIR")
        add_config(parser)
        parser.plain("--resume", "go on from the last checkpoint in --out, with that run's settings",
                     action="store_true")  # fmt: skip
        add_groups(parser, train_groups(task))

    def run(arguments: argparse.Namespace) -> int:
        train_as_told(task, arguments)
        return 0

    return Command(
        f"train {task}", summary, add_arguments, run, prepare=prepare, order=order, example=example, builds=True
    )


def train_as_told(
    task: str, arguments: argparse.Namespace, *, below: Sequence[Given] = (), above: Sequence[Given] = ()
) -> Path:
    """Train what the words and settings files of a `train` command say.

    Args:
        task: the task's name.
        arguments: the parsed words.
        below: settings that files and words override.
        above: settings that override files.

    Returns: the run folder.
    """
    from blockyard.cli.settings import resolve
    from blockyard.cli.sources import PLUGINS, given_settings, settings_files
    from blockyard.tasks.groups import train_groups
    from blockyard.tasks.run import train

    if arguments.resume and arguments.out is None:
        raise InputError("--resume needs the run to go on with: --out DIR")
    files = settings_files(arguments.config, arguments.out, arguments.resume)
    groups = train_groups(task)
    given, plugins = given_settings(arguments, files, groups, task)
    settings = resolve(groups, [*below, *given, *above])
    out = Path(arguments.out) if arguments.out is not None else next_folder(task)
    return train({**settings, PLUGINS: plugins}, out, arguments.resume, task=task)


def next_folder(task: str) -> Path:
    """The first free runs/TASK-NNN.

    Raises:
        InputError: under torchrun, where the processes could each find another one free.
    """
    if world_size() > 1:
        raise InputError("several processes train one run: name its folder with --out DIR")
    number = 1
    while (RUNS / f"{task}-{number:03}").exists():
        number += 1
    return RUNS / f"{task}-{number:03}"


def compare_groups(task: str) -> dict[str, Group]:
    """The terms of the comparison, its budget, and what all its models share."""
    from blockyard.compare.settings import DECIDED, CompareConfig
    from blockyard.registry.options import options_of
    from blockyard.tasks.groups import Group, by_name, dataclass_group
    from blockyard.tasks.kind import TaskKind, task_kind
    from blockyard.training.config import TrainConfig

    kind = task_kind(task)
    known = options_of(CompareConfig)
    terms = known | {n: replace(known[n], default=value) for n, value in kind.compare_defaults.items()}
    budget = {
        name.removeprefix(BUDGET): replace(option, name=name.removeprefix(BUDGET))
        for name, option in terms.items()
        if name.startswith(BUDGET)
    }
    hidden: tuple[str, ...] = () if kind.decodes else WRITING
    if type(kind).at_length is TaskKind.at_length:
        hidden += ("lengths",)
    own = {name: option for name, option in terms.items() if not name.startswith(BUDGET) and name not in hidden}
    hidden_model = (*kind.from_data, "blocks")
    return by_name(
        [
            Group("", "what is compared", own),
            Group("budget", "when each run stops", budget),
            dataclass_group("model", "the shape that all start from", kind.model_config, without=hidden_model),
            dataclass_group(
                "train", "the training of every run", TrainConfig, without=DECIDED, defaults=kind.train_defaults
            ),
            dataclass_group("data", kind.data_title, kind.data_config),
        ]
    )


def block_option(flag: str, known: dict[str, Group]) -> str | None:
    """Where an option of a block belongs in a comparison, or None when the flag is none."""
    from blockyard.registry.register import owners

    group, dot, key = flag.removeprefix("--").partition(".")
    holders = owners(key) if dot and group not in known else []
    if not holders:
        return None
    return f"{flag}: an option of a block stands behind its name here, as in --blocks '{holders[0]}[{key}=...]'"


def compare_command(task: str, summary: str, *, order: int = 32, example: str = "") -> Command:
    """`blockyard compare TASK`; arguments as for `train_command`."""

    def add_arguments(parser: Parser) -> None:
        from blockyard.cli.settings import add_groups
        from blockyard.cli.sources import add_config

        parser.plain("--out", f"folder of the runs and the report; given again, the comparison goes on ({FOLDER})",
                     metavar="DIR", default=FOLDER)  # fmt: skip
        add_config(parser)
        known = compare_groups(task)
        add_groups(parser, known)
        otherwise = parser.explain_unknown
        parser.explain_unknown = lambda flag: block_option(flag, known) or otherwise(flag)

    def run(arguments: argparse.Namespace) -> int:
        from blockyard.cli.settings import read_given
        from blockyard.cli.sources import PLUGINS, given_settings, settings_files
        from blockyard.compare.compare import compare
        from blockyard.compare.settings import CompareConfig
        from blockyard.tasks.kind import task_kind

        known = compare_groups(task)
        given, plugins = given_settings(arguments, settings_files(arguments.config, None, False), known, task)
        settings = read_given(known, given)
        budget = {BUDGET + key: value for key, value in settings.pop("budget").items()}
        config = CompareConfig(**{**task_kind(task).compare_defaults, **settings.pop(""), **budget})
        shared: dict[str, Any] = {name: options for name, options in settings.items() if options}
        if plugins:
            shared[PLUGINS] = plugins
        compare(task, config, shared, Path(arguments.out))
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            # A person at a terminal has just been told; a script reads it here.
            print(Path(arguments.out) / "report.html")
        return 0

    return Command(
        f"compare {task}", summary, add_arguments, run, prepare=prepare, order=order, example=example, builds=True
    )
