"""Modules that a user names: importing them registers blocks and tasks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from blockyard.errors import InputError


def load_plugins(modules: Sequence[str], origin: str = "plugins", *, here: bool = False) -> None:
    """Import modules that register blocks or tasks when imported.

    Args:
        modules: dotted names.
        origin: where the names come from, for the error.
        here: look for them in the current folder, too.

    Raises:
        InputError: no such module. An error *inside* the module keeps its traceback: its author needs it.
    """
    if here and modules:
        see_current_folder()
    for module in modules:
        import_module(module, origin)


def import_module(module: str, origin: str) -> object:
    """Import a module that the user names, or say that there is none."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise InputError(f"{origin}: {module!r} is not a module's name; expected something like my_package.blocks")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        raise InputError(f"{origin}: no module named {error.name!r}") from error


def plugins_in(words: Sequence[str]) -> list[str]:
    """The modules named by `--plugin` on a command line, found without knowing the command's other options."""
    found = []
    for index, word in enumerate(words):
        if word == "--plugin" and index + 1 < len(words):
            found.append(words[index + 1])
        elif word.startswith("--plugin="):
            found.append(word.removeprefix("--plugin="))
    return found


def see_current_folder() -> None:
    """Let imports find modules of the current folder, as `python -m` does and a console script does not."""
    here = os.getcwd()
    # Last, so that a file of the user's cannot shadow what the libraries import.
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
