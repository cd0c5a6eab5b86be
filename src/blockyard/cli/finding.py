"""Finding the command that words name: files in `commands/`, and `train`, `compare` and `tune` of every task.

The overview and the search read names alone; a command's file is imported when its line or the command is needed.
"""

from __future__ import annotations

import importlib
import pkgutil

import blockyard.cli.commands as commands
from blockyard.cli.command import Command
from blockyard.cli.task_words import TASK_WORDS, Words
from blockyard.errors import InputError, suggest
from blockyard.registry.builtin import TASKS

# Options that stand before any command.
TOP = ("--help", "--version")
# Commands that every task has.
TASK_VERBS = ("train", "compare", "tune")
# The place of a task without words in the overview.
LAST = 38


def command_names() -> list[str]:
    """Return the names of all commands but those of tasks that plug-ins register; no command is imported."""
    own = {f"{verb} {task}" for verb in TASK_VERBS for task in TASKS}
    return sorted(own | _with_a_file())


def _with_a_file() -> set[str]:
    return {module.name.replace("_", " ") for module in pkgutil.iter_modules(commands.__path__)}


def load_command(name: str, *, whole: bool = False) -> Command:
    """Import the one file that holds the command, or make that of a task.

    Args:
        name: one of `command_names`, or a command of a task that a plug-in registered.
        whole: ask the task for words of its own where the overview has none; that imports torch.
    """
    if name not in _with_a_file():
        from blockyard.cli.tasks import compare_command, train_command
        from blockyard.cli.tune_tasks import tune_command

        verb, task = name.split()
        makers = {"train": train_command, "compare": compare_command, "tune": tune_command}
        words = TASK_WORDS.get(name) or Words(_summary(verb, task, whole), LAST, "")
        return makers[verb](task, words.summary, order=words.order, example=words.example)
    module = importlib.import_module(f"{commands.__name__}.{name.replace(' ', '_')}")
    command: Command = module.COMMAND
    return command


def _summary(verb: str, task: str, whole: bool) -> str:
    """Return a command in words of its task: the first line of the docstring of its class."""
    from blockyard.tasks.kind import task_kind

    text = f"{verb} the task {task!r}"
    own = type(task_kind(task)).__dict__.get("__doc__") if whole else None
    return f"{text}: {own.strip().splitlines()[0]}" if own and own.strip() else text


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """Split the words into a command's name and its arguments.

    Raises:
        InputError: no such command; the nearest name or the possible second words are told.
    """
    names = command_names()
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length and name in names:
            return name, words[length:]
    first = words[0]
    if first.startswith("-"):
        raise InputError(f"unknown option {first!r}{suggest(first, TOP)}; see `blockyard --help`")
    if first in TASK_VERBS and len(words) > 1 and not words[1].startswith("-"):
        from blockyard.cli.sources import prepare_plugins
        from blockyard.tasks.kind import task_names

        prepare_plugins(words[2:])
        registered = [task for task in task_names() if f"{first} {task}" not in names]
        if words[1] in registered:
            return f"{first} {words[1]}", words[2:]
        names += [f"{first} {task}" for task in registered]
    seconds = [name.split()[1] for name in names if name.startswith(f"{first} ")]
    if seconds and len(words) > 1 and not words[1].startswith("-"):
        hint = suggest(words[1], seconds)
        raise InputError(f"no command named '{first} {words[1]}'{hint}; {first} does: {', '.join(seconds)}")
    if seconds:
        raise InputError(f"'{first}' needs to know what: {', '.join(f'blockyard {first} {s}' for s in seconds)}")
    firsts = sorted({name.split()[0] for name in names})
    raise InputError(f"no command named {first!r}{suggest(first, firsts)}; there are: {', '.join(names)}")
