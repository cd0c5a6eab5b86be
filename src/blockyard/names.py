"""The names that a package offers, each taken from the file that defines it when it is first used (PEP 562).

So importing one file of a package costs none of its others, and packages that offer one another's neighbours make no
circle. What type checkers read stands beside each table, under `if TYPE_CHECKING`; a test holds the two together.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


class Package(ModuleType):
    """A package with such names. They win over its files: `from blockyard.compare import compare` is the function,
    whoever has imported the file `compare/compare.py` before."""

    _homes: dict[str, str]
    _otherwise: Callable[[str], Any] | None

    def __getattr__(self, name: str) -> Any:
        """Import the file that defines a name, and keep what is found."""
        if name in self._homes:
            value = getattr(importlib.import_module(self._homes[name]), name)
            setattr(self, name, value)
            return value
        if self._otherwise is not None:
            return self._otherwise(name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, but leave a name alone where the import system would put the file of that name."""
        if not (isinstance(value, ModuleType) and name in self._homes):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """List the names that are offered and what else is loaded."""
        return sorted({*self.__dict__, *self._homes})


def exports(package: str, names: Mapping[str, str], otherwise: Callable[[str], Any] | None = None) -> list[str]:
    """Let a package offer names without importing what defines them.

    Args:
        package: its `__name__`.
        names: file, relative to the package and dotted -> the names of it that are offered, separated by blanks.
        otherwise: what gives a name that is not among them; it raises AttributeError where there is none.

    Returns: the names, for the package's `__all__`.
    """
    homes = {name: f"{package}.{file}" for file, listed in names.items() for name in listed.split()}
    module = sys.modules[package]
    # Into the dict: the class's own __setattr__ asks for it.
    module.__dict__.update(_homes=homes, _otherwise=otherwise)
    module.__class__ = Package
    return sorted(homes)
