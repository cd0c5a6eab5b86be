"""The errors a user can cause: one clear line each, printed by the commands with exit status 2."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

# What some files import at their top, with the extra that brings it: where the core alone is installed, a command meets
# the first of them.
EXTRA_OF = {"numpy": "train", "optuna": "tune"}


class InputError(ValueError):
    """Something the user gave is wrong; the message names it, its value and what would be right."""


class MissingExtra(InputError):
    """An optional dependency is not installed; the message names the `pip install` that brings it."""


class InUse(InputError):
    """Another process has what was asked for: what lies there is that one's."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: dotted module name.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtra: when the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that fails on one of *its* imports is not our missing extra: show its own error.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        package = module.split(".")[0]
        raise MissingExtra(f"{package} is not installed; run: pip install 'blockyard[{extra}]'") from error


def missing_extra(error: ModuleNotFoundError) -> MissingExtra | None:
    """Return what a failed plain import says to a user, or None where no extra of ours brings the module.

    Args:
        error: of an `import` that stands at the top of a file, where `require` cannot stand.
    """
    package = (error.name or "").split(".")[0]
    if package not in EXTRA_OF:
        return None
    return MissingExtra(f"{package} is not installed; run: pip install 'blockyard[{EXTRA_OF[package]}]'")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'rank'?)" for the nearest known name, or "" when none is near."""
    # A key of a file may be a number.
    near = difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def at_least(least: float, hint: str = "", /, **values: float | None) -> None:
    """Refuse numbers below a least one, by name; None passes.

    Raises:
        InputError: "beams=0 should be at least 1".
    """
    for name, value in values.items():
        if value is not None and not value >= least:
            raise InputError(f"{name}={value} should be at least {least}{hint}")


def at_most(most: float, /, **values: float | None) -> None:
    """Refuse numbers above a greatest one, by name; None passes.

    Raises:
        InputError: "workers=9999 should be at most 1024".
    """
    for name, value in values.items():
        if value is not None and not value <= most:
            raise InputError(f"{name}={value} should be at most {most}")


def one_of(known: Iterable[object], /, **values: object) -> None:
    """Refuse values that are not among the known ones, by name.

    Raises:
        InputError: "match='size' is not one of: params, flops, none".
    """
    among = list(known)
    for name, value in values.items():
        if value not in among:
            raise InputError(f"{name}={value!r} is not one of: {', '.join(str(k) for k in among if k is not None)}")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory could not be had: Python's, or torch's on a CPU or an accelerator."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "Storage size calculation overflowed")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
