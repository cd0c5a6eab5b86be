"""The order of the house: who may import whom, read from the source. A failure names the line that breaks it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import blockyard
from blockyard.registry.builtin import BUILTIN, TASKS

SOURCE = Path(blockyard.__file__).parent

# From the ground up. A place imports from the floors below it alone: not from above, nor from its neighbours.
FLOORS = """
    names errors
    files moved
    machine
    mirror
    registry nn text report
    protocol
    standard latent vein spectral complex moe
    models multihead
    conformance generation
    training
    tasks.kind
    tasks.groups
    tasks.given
    tasks.settings
    tasks.meaning tasks.sizes
    tasks.run
    tasks.lm tasks.classify tasks.recall tasks.signal tasks.price
    pretrained
    compat compare hf export
    bench tune
    transplant
    claims
    cli
"""
FLOOR = {place: number for number, line in enumerate(FLOORS.strip().splitlines()) for place in line.split()}
# As the register's table has them: a new one is guarded by itself.
WINGS = {place.split(".")[1] for table in BUILTIN.values() for place in table.values()}

# What knows neither a wing nor a task, in whatever way.
CORE = ("registry", "nn", "protocol", "models", "training")
# (importer, imported): said aloud in docs/architecture.md. A tri-vein attention *is* multi-head attention with narrow
# heads, so it is computed by that.
ALLOWED = {("vein.factored", "standard.attention")}
# Files that import by a string, with the reason.
BY_STRING = {
    "errors": "optional dependencies, with an error that names the extra",
    "names": "the names that a package offers, relative to itself",
    "moved": "old places",
    "registry.register": "the table of what is built in, and plug-ins",
    "registry.plugins": "modules that a user names",
    "tasks.kind": "the table of what is built in, and plug-ins",
    "cli.finding": "a command is a file of that name; only the one that is asked for is imported",
}


class Import(NamedTuple):
    """One import of one module of the package by another, both without `blockyard.` in front."""

    importer: str
    imported: str
    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE.parent)}:{self.line}: {self.importer} imports {self.imported}"


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


FILES = {name_of(file): file for file in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in FILES.items()}


def imports() -> Iterator[Import]:
    """Every import within the package, at the top of a file, within a function, or for type checkers."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            for found in imported_by(node):
                if found != name:
                    yield Import(name, found, FILES[name], node.lineno)  # type: ignore[attr-defined]


def imported_by(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        # `import blockyard` alone is for its version or its place; names taken from it count where they are taken.
        names = [alias.name for alias in node.names if alias.name != "blockyard"]
    elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "blockyard":
        names = [] if node.attr.startswith("__") else ["blockyard"]
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, "imports are absolute"
        # `from package import module` imports the module.
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        names = [name if name.removeprefix("blockyard.") in FILES else str(node.module) for name in inner]
        # Its version is no name of any floor.
        names = [name for name, alias in zip(names, node.names) if alias.name != "__version__"]
    else:
        return
    for name in dict.fromkeys(names):
        if name == "blockyard" or name.startswith("blockyard."):
            # "" is the package itself, which offers names of many floors.
            yield name.removeprefix("blockyard").removeprefix(".")


IMPORTS = list(imports())


def place_of(module: str) -> str:
    """The place of a module in FLOORS: its folder, and within tasks the next one, too."""
    first, *rest = module.split(".")
    return f"tasks.{rest[0]}" if first == "tasks" and rest else first


PLACES = {place_of(name) for name in FILES} - {"", "__main__", "tasks"}
UNPLACED = PLACES - set(FLOOR)


def test_every_module_has_a_floor() -> None:
    gone = set(FLOOR) - PLACES
    assert not UNPLACED, f"add to FLOORS, beside its like: {', '.join(sorted(UNPLACED))}"
    assert not gone, f"no longer there: {', '.join(sorted(gone))}"


def test_imports_point_downwards() -> None:
    broken = []
    for found in IMPORTS:
        above, below = place_of(found.importer), place_of(found.imported)
        # The package itself and `python -m blockyard` stand above all; `tasks` is the map of its folder.
        if above == below or above in ("", "__main__", "tasks") or (found.importer, found.imported) in ALLOWED:
            continue
        if {above, below} & UNPLACED:
            continue  # told by the test above
        if below in ("", "tasks"):
            broken.append(f"{found}, which offers names of many floors: import from the file that defines the name")
        elif FLOOR[below] >= FLOOR[above]:
            broken.append(str(found))
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("allowed", sorted(ALLOWED), ids=" -> ".join)
def test_exceptions_are_needed(allowed: tuple[str, str]) -> None:
    assert any((found.importer, found.imported) == allowed for found in IMPORTS)


def test_no_circles() -> None:
    """No file names one that names it: neither when the program runs, nor for type checkers."""
    needs: dict[str, set[str]] = {name: set() for name in FILES}
    for found in IMPORTS:
        # A package's `__init__` only offers names, each taken from its file on first use.
        if FILES[found.importer].name != "__init__.py" and found.imported:
            needs[found.importer].add(found.imported)
    while leaves := [name for name, found in needs.items() if not found]:
        for leaf in leaves:
            del needs[leaf]
        for found in needs.values():
            found.difference_update(leaves)
    assert not needs, f"in or above a circle: {', '.join(sorted(needs))}"


def test_the_core_names_no_system_and_no_task() -> None:
    """Not even in a string, but for the table of what is built in."""
    dotted = re.compile(rf"blockyard\.({'|'.join((*sorted(WINGS), *(f'tasks.{task}' for task in TASKS)))})\b")
    broken = []
    for name, tree in TREES.items():
        if name.split(".")[0] not in CORE or name == "registry.builtin":
            continue
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            told = list(imported_by(node))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                # An error that tells a user where to look is no knowledge of a system.
                told += [m[1] for m in dotted.finditer(node.value) if node.value.startswith("blockyard.")]
            broken += [
                f"{FILES[name].relative_to(SOURCE.parent)}:{node.lineno}: {what}"  # type: ignore[attr-defined]
                for what in told
                if place_of(what) in WINGS or place_of(what).startswith("tasks.")
            ]
    assert not broken, "\n".join(broken)


def test_nothing_is_imported_by_a_string() -> None:
    found = {
        name
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__")
    }
    assert found == set(BY_STRING), f"new: {found - set(BY_STRING)}; needless: {set(BY_STRING) - found}"


def test_the_top_is_short() -> None:
    files = sorted(entry.name for entry in SOURCE.iterdir() if entry.is_file())
    assert len(files) <= 8, files


def test_no_file_is_longer_than_600_lines() -> None:
    long = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in FILES.items()}
    assert not {name: lines for name, lines in long.items() if lines > 600}
