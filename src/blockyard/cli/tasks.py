"""`train TASK` and `compare TASK` for every kind of task; `tune TASK` is in tune_tasks.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.cli.task_words import common_of
from blockyard.errors import InputError
from blockyard.machine.launch import world_size
from blockyard.mirror import is_url

if TYPE_CHECKING:
    from blockyard.compare.settings import CompareConfig
    from blockyard.registry.options import Option
    from blockyard.tasks.given import Setting
    from blockyard.tasks.groups import Group


RUNS = Path("runs")
FOLDER = "comparison"
BUDGET, RAY = "budget_", "ray_"
RAY_HELP = "the cluster, with --engine ray"
# Of a training that begins with a trained model: rates for random weights would undo it.
TUNED = {"optimizer": "adamw", "lr": 5e-5, "weight_decay": 0.01}
# Terms of a comparison that only models have that write.
WRITING = ("prompt", "sample_tokens", "temperature")


def prepare(words: list[str]) -> None:
    """Import the plug-ins that settings files name."""
    from blockyard.cli.sources import prepare_plugins

    prepare_plugins(words)


def task_command(
    verb: str,
    task: str,
    summary: str,
    add_arguments: Callable[[Parser], None],
    run: Callable[[argparse.Namespace], int],
    order: int,
    example: str,
) -> Command:
    """Make a command that every task has."""
    return Command(
        f"{verb} {task}", summary, add_arguments, run, prepare=prepare, order=order, example=example, builds=True,
        purpose="compare" if verb == "compare" else "train", common=common_of(verb, task),
    )  # fmt: skip


def train_command(task: str, summary: str, *, order: int = 12, example: str = "") -> Command:
    """Make `blockyard train TASK`.

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
        parser.plain("--init", "begin with the model, tokenizer and weights of this run, and with fine-tuning's rates "
                     "(AdamW, 5e-5) unless others are given", metavar="DIR")  # fmt: skip
        parser.plain("--resume", "go on from the last checkpoint in --out, with that run's settings",
                     action="store_true")  # fmt: skip
        add_groups(parser, train_groups(task))

    def run(arguments: argparse.Namespace) -> int:
        from blockyard.mirror import mirrored

        if arguments.out is None or not is_url(arguments.out):
            train_as_told(task, arguments)
            return 0
        if world_size() > 1:
            raise InputError(f"--out {arguments.out}: a URL is for one process; several need a folder that all see")
        with mirrored(arguments.out) as folder:
            arguments.out = str(folder)
            train_as_told(task, arguments)
        return 0

    return task_command("train", task, summary, add_arguments, run, order, example)


def train_as_told(
    task: str,
    arguments: argparse.Namespace,
    *,
    below: Sequence[Setting] = (),
    above: Sequence[Setting] = (),
    before: Callable[[Any], None] | None = None,
) -> Path:
    """Train what the words and settings files of a `train` command say.

    Args:
        task: the task's name.
        arguments: the parsed words.
        below: settings that files and words override.
        above: settings that override files.
        before: told the task before its first step.

    Returns: the run folder.
    """
    from blockyard.cli.sources import PLUGINS, given_settings, settings_files
    from blockyard.tasks.given import resolve
    from blockyard.tasks.groups import train_groups
    from blockyard.tasks.run import train

    if arguments.out is not None and is_url(arguments.out):
        raise InputError(f"--out {arguments.out}: `train {task}` writes into a folder, not to a URL")
    if arguments.resume and arguments.out is None:
        raise InputError("--resume needs the run to go on with: --out DIR")
    files = settings_files(arguments.config, arguments.out, arguments.resume)
    groups = train_groups(task)
    if arguments.init is not None:
        if arguments.resume:
            raise InputError("--init does not go with --resume: a run that goes on has its own weights")
        below = [*below, *begun_with(Path(arguments.init), groups)]
    given, plugins = given_settings(arguments, files, groups, task)
    settings = resolve(groups, [*below, *given, *above])
    out = Path(arguments.out) if arguments.out is not None else next_folder(task)
    return train({**settings, PLUGINS: plugins}, out, arguments.resume, task=task, before=before)


def begun_with(folder: Path, groups: Mapping[str, Group]) -> list[Setting]:
    """Return the settings of a run that begins with another one's weights: its model and tokenizer, and rates that
    change a trained model rather than make a new one."""
    from blockyard.cli.settings import Setting
    from blockyard.cli.sources import given_in
    from blockyard.training.folder import CONFIG, read_config

    written = read_config(folder)
    architecture = {name: value for name, value in written.items() if name not in ("task", "train", "data", "plugins")}
    # Below every file and word that the user gives.
    found = given_in(folder / CONFIG, architecture, groups, layer=-1)
    own = [("train", name, value) for name, value in {**TUNED, "init": str(folder)}.items()]
    if (folder / "tokenizer").is_dir():
        own.append(("data", "tokenizer", str(folder / "tokenizer")))
    return found + [Setting(group, key, value, "--init", layer=-1) for group, key, value in own]


def next_folder(task: str) -> Path:
    """Return the first free runs/TASK-NNN.

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
    """Return the terms of the comparison, its budget, and what all its models share."""
    from blockyard.compare.settings import DECIDED, CompareConfig
    from blockyard.registry.options import options_of
    from blockyard.tasks.groups import by_name, dataclass_group
    from blockyard.tasks.kind import task_kind
    from blockyard.training.config import TrainConfig

    kind = task_kind(task)
    known = options_of(CompareConfig)
    terms = known | {n: replace(known[n], default=value) for n, value in kind.compare_defaults.items()}
    hidden: tuple[str, ...] = () if kind.decodes else WRITING
    if has_one_length(kind):
        hidden += ("lengths",)
    hidden_model = (*kind.from_data, "blocks")
    return by_name(
        [
            *terms_groups(terms, "what is compared", "when each run stops", hidden),
            dataclass_group("model", "the shape that all start from", kind.model_config, without=hidden_model),
            dataclass_group(
                "train", "the training of every run", TrainConfig, without=DECIDED, defaults=kind.train_defaults
            ),
            dataclass_group("data", kind.data_title, kind.data_config),
        ]
    )


def terms_groups(terms: Mapping[str, Option], help: str, budget_help: str, hidden: Sequence[str] = ()) -> list[Group]:
    """Return the terms of a comparison or a search as the command's own options, and those of its budget and of a Ray
    cluster as groups."""
    from blockyard.tasks.groups import Group

    prefixes = {BUDGET: budget_help, RAY: RAY_HELP}
    own = {n: option for n, option in terms.items() if not n.startswith(tuple(prefixes)) and n not in hidden}
    return [Group("", help, own), *(prefixed_group(terms, prefix, title) for prefix, title in prefixes.items())]


def prefixed_group(terms: Mapping[str, Option], prefix: str, help: str) -> Group:
    """Return those options whose names begin so as a group of that name."""
    from blockyard.tasks.groups import Group

    short = {n.removeprefix(prefix): option for n, option in terms.items() if n.startswith(prefix)}
    return Group(prefix.rstrip("_"), help, {n: replace(option, name=n) for n, option in short.items()})


def grouped_terms(settings: dict[str, Any]) -> dict[str, Any]:
    """Take the terms out of what was given, by the fields of their dataclass: `budget.unit` is `budget_unit`."""
    terms = settings.pop("", {})
    for prefix in (BUDGET, RAY):
        terms |= {prefix + key: value for key, value in settings.pop(prefix.rstrip("_"), {}).items()}
    return terms


def tell_page(out: str) -> int:
    """Print where the report is; a person at a terminal has just been told, a script reads it here."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        print(f"{out.rstrip('/')}/report.html" if is_url(out) else Path(out) / "report.html")
    return 0


def has_one_length(kind: Any) -> bool:
    """Return whether a kind of task does not say what its model is for rows of another length."""
    from blockyard.tasks.kind import TaskKind

    return type(kind).at_length is TaskKind.at_length


def no_lengths(flag: str, task: str) -> str | None:
    """Return why a comparison of this task has no `--lengths`, or None for another flag."""
    from blockyard.tasks.kind import task_kind

    kind = task_kind(task)
    if flag != "--lengths" or not has_one_length(kind):
        return None
    return f"--lengths: models of the task {task!r} have one length ({type(kind).__name__} defines no at_length)"


def block_option(flag: str, known: dict[str, Group]) -> str | None:
    """Return where an option of a block belongs in a comparison, or None when the flag is none."""
    from blockyard.registry.register import owners

    group, dot, key = flag.removeprefix("--").partition(".")
    holders = owners(key) if dot and group not in known else []
    if not holders:
        return None
    return f"{flag}: an option of a block stands behind its name here, as in --blocks '{holders[0]}[{key}=...]'"


def compare_command(task: str, summary: str, *, order: int = 32, example: str = "") -> Command:
    """Make `blockyard compare TASK`; arguments as for `train_command`."""

    def add_arguments(parser: Parser) -> None:
        from blockyard.cli.settings import add_groups
        from blockyard.cli.sources import add_config

        parser.plain(
            "--out",
            f"folder of the runs and the report; given again, the comparison goes on ({FOLDER})",
            metavar="DIR",
            default=FOLDER,
        )
        add_config(parser)
        known = compare_groups(task)
        add_groups(parser, known)
        otherwise = parser.explain_unknown
        parser.explain_unknown = lambda flag: no_lengths(flag, task) or block_option(flag, known) or otherwise(flag)

    def run(arguments: argparse.Namespace) -> int:
        from blockyard.cli.sources import PLUGINS, given_settings, settings_files
        from blockyard.compare.compare import compare
        from blockyard.compare.joining import join_comparison

        known = compare_groups(task)
        given, plugins = given_settings(arguments, settings_files(arguments.config, None, False), known, task)
        config, shared = compare_terms(task, known, given)
        shared |= {PLUGINS: plugins} if plugins else {}
        if config.join:
            # Whoever joins a comparison has no report to show.
            join_comparison(task, config, shared, arguments.out)
            return 0
        compare(task, config, shared, arguments.out)
        return tell_page(arguments.out)

    return task_command("compare", task, summary, add_arguments, run, order, example)


def compare_terms(task: str, known: dict[str, Group], given: Sequence[Setting]) -> tuple[CompareConfig, dict[str, Any]]:
    """Return the terms of a comparison and what its models share, as far as it was given."""
    from blockyard.cli.settings import read_given
    from blockyard.compare.settings import CompareConfig
    from blockyard.tasks.kind import task_kind

    settings = read_given(known, given)
    config = CompareConfig(**{**task_kind(task).compare_defaults, **grouped_terms(settings)})
    return config, {name: options for name, options in settings.items() if options}
