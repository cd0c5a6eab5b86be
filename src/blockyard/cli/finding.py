"""Finding the command that words name: files in `commands/`, and the tasks that plug-ins register.

The overview and the search read file names alone; a command's file is imported when its line or the command is needed.
"""

from __future__ import annotations

import importlib
import pkgutil

from blockyard.cli import commands
from blockyard.cli.command import Command
from blockyard.errors import InputError, suggest

# Commands that a task registered by a plug-in has, too.
TASK_VERBS = ("train", "compare", "tune")


def command_names() -> list[str]:
    """The names of all commands, read from the file names: nothing is imported."""
    return sorted(module.name.replace("_", " ") for module in pkgutil.iter_modules(commands.__path__))


def load_command(name: str) -> Command:
    """Import the one file that holds the command; a registered task needs none."""
    if name not in command_names():
        from blockyard.cli import tasks, tuning

        verb, task = name.split()
        makers = {"train": tasks.train_command, "compare": tasks.compare_command, "tune": tuning.tune_command}
        return makers[verb](task, f"{verb} the task {task!r} of a plug-in")
    module = importlib.import_module(f"{commands.__name__}.{name.replace(' ', '_')}")
    command: Command = module.COMMAND
    return command


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
