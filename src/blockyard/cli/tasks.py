"""`train TASK`, `compare TASK` and `tune TASK` for every kind of task."""

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
    from blockyard.tasks.given import Setting, Settings
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


TUNING, OVER = "tuning", "over"
OVER_HELP = (
    "what to search: GROUP.OPTION=VALUES, several separated by ';'. VALUES are a list (standard,tva) or a range "
    "(1e-4..1e-2 log; 64..256 step 32); an option of a block is searched where the block is drawn. May be repeated"
)


def tune_command(task: str, summary: str, *, order: int = 37, example: str = "") -> Command:
    """Make `blockyard tune TASK`; arguments as for `train_command`."""

    def add_arguments(parser: Parser) -> None:
        from blockyard.cli.settings import add_groups
        from blockyard.cli.sources import add_config

        parser.plain("--over", OVER_HELP, metavar="'OPTION=VALUES; ...'", action="append", default=[])
        parser.plain(
            "--out",
            f"folder of the runs and the report; given again, the search goes on ({TUNING})",
            metavar="DIR",
            default=TUNING,
        )
        add_config(parser)
        add_groups(parser, tune_groups(task))

    def run(arguments: argparse.Namespace) -> int:
        from blockyard.cli.sources import PLUGINS, given_settings, settings_files
        from blockyard.tasks.kind import task_kind
        from blockyard.tune.run import tune
        from blockyard.tune.settings import TuneConfig
        from blockyard.tune.space import read_space

        groups = tune_groups(task)
        files = settings_files(arguments.config, None, False)
        given, plugins = given_settings(arguments, files, groups, task, skip=(OVER,))
        over, given = without_overruled(searched(arguments.over, files), given)
        settings = read_as_given(groups, given)
        terms = {name: value for name, value in task_kind(task).compare_defaults.items() if name.startswith(BUDGET)}
        config = TuneConfig(**{**terms, **grouped_terms(settings)})
        space = read_space(task, {name: o.value for name, o in over.items()}, {n: o.origin for n, o in over.items()})
        shared: dict[str, Any] = {**settings, PLUGINS: plugins} if plugins else dict(settings)
        record = tune(task, space, config, shared, arguments.out)
        # Whoever joins a search has no report to show.
        return 0 if record is None else tell_page(arguments.out)

    return task_command("tune", task, summary, add_arguments, run, order, example)


def tune_groups(task: str) -> dict[str, Group]:
    """Return the terms of the search, its budget, and every option that trials may share or search."""
    from blockyard.compare.settings import DECIDED
    from blockyard.registry.options import options_of
    from blockyard.tasks.groups import by_name, train_groups
    from blockyard.tasks.kind import task_kind
    from blockyard.tune.settings import TuneConfig

    known = options_of(TuneConfig)
    terms = known | {n: replace(known[n], default=v) for n, v in task_kind(task).compare_defaults.items() if n in known}
    shared = train_groups(task)
    train = {name: option for name, option in shared["train"].own.items() if name not in DECIDED}
    shared["train"] = replace(shared["train"], help="the training of every trial", own=train)
    return by_name([*terms_groups(terms, "the search", "when each trial stops"), *shared.values()])


def searched(words: Sequence[str], files: Sequence[Path]) -> dict[str, Setting]:
    """Return what is to be searched, from settings files and `--over`: option -> its values as given, the last one
    winning."""
    from blockyard.registry.yamlfile import read_yaml
    from blockyard.tasks.given import WORDS, Setting
    from blockyard.tune.space import split_over

    found: dict[str, Setting] = {}

    def note(name: str, value: Any, origin: str, layer: int) -> None:
        group, _, key = name.partition(".")
        found[name] = Setting(group, key, value, origin, layer=layer)

    for layer, path in enumerate(files):
        content = read_yaml(path).get(OVER)
        origin = f"{path}: {OVER}"
        for name, value in _flat(split_over(content, origin) if isinstance(content, str) else content, origin):
            note(name, value, origin, layer)
    for text in words:
        for name, value in split_over(text, "--over").items():
            if found.get(name) is not None and found[name].layer == WORDS:
                raise InputError(f"--over: {name} stands twice")
            note(name, value, "--over", WORDS)
    return found


def _flat(content: Any, origin: str) -> list[tuple[str, Any]]:
    """Return a file's `over` as (option, values); `group: {key: values}` and `group.key: values` mean the same."""
    if content is None:
        return []
    if not isinstance(content, Mapping):
        raise InputError(f"{origin}={content!r} should be a mapping, such as 'over: {{train.lr: 1e-4..1e-2 log}}'")
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            found += [(f"{name}.{key}", inner) for key, inner in value.items()]
        else:
            found.append((str(name), value))
    return found


def without_overruled(
    over: Mapping[str, Setting], given: Sequence[Setting]
) -> tuple[dict[str, Setting], list[Setting]]:
    """Let the later source count for an option that one source searches and another one gives."""
    last = {f"{item.group}.{item.key}": item.layer for item in given}
    kept = {name: item for name, item in over.items() if last.get(name, -1) <= item.layer}
    rest = [
        item for item in given if (name := f"{item.group}.{item.key}") not in kept or item.layer >= kept[name].layer
    ]
    return kept, rest


def read_as_given(groups: Mapping[str, Group], given: Sequence[Setting]) -> Settings:
    """Check settings and return what was given alone: which blocks they belong to is decided by every trial's draw.

    Raises:
        InputError: for an unknown group or option (with a suggestion), or a value of the wrong type.
    """
    from blockyard.compare.settings import DECIDED
    from blockyard.tasks.given import check_groups, latest, read_value
    from blockyard.tasks.groups import unknown_key

    last = latest(given)
    check_groups(groups, last)
    settings: Settings = {}
    for (name, key), item in last.items():
        options = groups[name].options
        if name == "train" and key in DECIDED:
            raise InputError(f"{item.origin}: the search decides it by its budget; leave it out")
        if key not in options:
            raise InputError(unknown_key(item.origin, key, list(options), name))
        settings.setdefault(name, {})[key] = read_value(options[key], item)
    return settings
