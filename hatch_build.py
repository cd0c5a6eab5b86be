"""Puts the arguments of every command into the wheel: the first `--help` after an installation imports no torch.

They are read from the classes that take the options (`blockyard/cli/shape.py`). Where a wheel is built there is neither
torch nor numpy, and none is needed for signatures and docstrings: something that may stand for anything is imported in
their place, in a process of its own. The files say by their checksum which sources they were made from
(`cli/shape_cache.py`); of other sources they are never shown. A test compares them with what torch itself gives.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

SOURCE = Path(__file__).parent / "src"
ABSENT = ("torch", "numpy")


class Anything:
    """Stands for whatever definitions take of a library: a base class, a decorator, a number, a type."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *values: Any, **named: Any) -> Any:
        # As a decorator it leaves what it decorates; an operator of torch is one that registers more.
        if len(values) == 1 and isinstance(values[0], type | FunctionType):
            if isinstance(values[0], FunctionType):
                for name in ("register_fake", "register_autograd"):
                    setattr(values[0], name, Anything())
            return values[0]
        return Anything()

    def __mro_entries__(self, bases: Sequence[Any]) -> tuple[type, ...]:
        # A class of torch's classes inherits from none here, so that what it lacks is lacking.
        return ()

    def __iter__(self) -> Any:
        return iter(())


def _result(self: Anything, *others: Any) -> Anything:
    return Anything()


# Constants of a file may be worked out from a library's numbers.
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
    setattr(Anything, f"__{_name}__", _result)
    setattr(Anything, f"__r{_name}__", _result)
for _name in ("lt", "le", "gt", "ge", "getitem", "neg", "abs", "invert"):
    setattr(Anything, f"__{_name}__", _result)


class _Absent(ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        # A package, so that what it holds is looked for.
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the absent libraries and all that they hold."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        absent = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if absent else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return


def write_shapes(folder: Path) -> None:
    """Write a file for each command into a folder; for a process that imports nothing else."""
    sys.meta_path.insert(0, StandIns())
    sys.path.insert(0, str(SOURCE))
    from blockyard.cli.finding import command_names, load_command
    from blockyard.cli.shape_cache import checksum, file_name, kept_form

    made_from = checksum()
    for name in command_names():
        (folder / file_name(name)).write_text(kept_form(made_from, load_command(name).parser().shape), encoding="utf-8")


def make_shapes(folder: Path) -> None:
    """Write the files in a process of its own.

    Raises:
        subprocess.CalledProcessError: when it fails; its traceback has been printed.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, __file__, str(folder)], check=True, env=environment)


def _hook() -> type:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class ShapesHook(BuildHookInterface):  # type: ignore[type-arg]
        """Adds the files to a wheel; one that is installed for editing has sources that change."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if version == "editable":
                return
            self.folder = tempfile.TemporaryDirectory()
            try:
                make_shapes(Path(self.folder.name))
            except subprocess.CalledProcessError as error:
                # Without them the first help takes longer, and that is all.
                self.app.display_warning(f"the first --help will import torch: {error}")
                return
            build_data["force_include"][self.folder.name] = "blockyard/cli/shapes"

        def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
            if version != "editable":
                self.folder.cleanup()

    return ShapesHook


if __name__ == "__main__":
    write_shapes(Path(sys.argv[1]))
else:
    get_build_hook: Callable[[], type] = _hook
