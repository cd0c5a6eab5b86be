"""Every optional import names the extra that installs what it wants, and every extra installs it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockyard
from blockyard import errors
from blockyard.cli import app
from tests.fixtures.folders import ROOT

SOURCE = Path(blockyard.__file__).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, set[str]] = {
    extra: {re.split(r"[<>=!~\[; ]", line)[0].lower().replace("_", "-") for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
# Modules whose distribution has another name.
DISTRIBUTIONS = {"yaml": "pyyaml"}
# Modules that come with another distribution, of which they are a dependency that is no option.
BROUGHT = {"huggingface_hub": "transformers", "sqlalchemy": "optuna"}
# What only the project's own work needs, named by no code of the package.
OWN = {"dev", "docs", "peers", "pretrained-test"}
_OURS = "|".join([*sys.stdlib_module_names, "blockyard", "torch"])
FOREIGN = re.compile(
    rf"require\(|^\s*(?:import|from) (?!(?:{'|'.join([*sys.stdlib_module_names, 'blockyard', 'torch'])})\b)",
    re.MULTILINE,
)
# The files that ask for anything foreign.
TREES = {
    str(file.relative_to(SOURCE)): ast.parse(text)
    for file in sorted(SOURCE.rglob("*.py"))
    if FOREIGN.search(text := file.read_text(encoding="utf-8"))
}


def distribution(module: str) -> str:
    top = module.split(".")[0]
    return BROUGHT.get(top) or DISTRIBUTIONS.get(top, top).lower().replace("_", "-")


def required() -> Iterator[tuple[str, int, str, str]]:
    """(file, line, module, extra) of every call of `require` with words; a module that is a variable is left out."""
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                extra = {word.arg: word.value for word in node.keywords}.get("extra")
                if isinstance(extra, ast.Constant) and isinstance(node.args[0], ast.Constant):
                    yield file, node.lineno, node.args[0].value, extra.value


def imported() -> Iterator[tuple[str, int, str]]:
    """(file, line, module) of every plain import of a foreign module that runs, wherever it stands."""
    for file, tree in TREES.items():
        for_types = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            for statement in node.body
            for inner in ast.walk(statement)
        }
        for node in ast.walk(tree):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names if id(node) not in for_types else ():
                if name.split(".")[0] not in {*sys.stdlib_module_names, "blockyard", "torch"}:
                    yield file, node.lineno, name


REQUIRED = list(required())


def test_every_required_module_is_installed_by_the_extra_that_its_error_names() -> None:
    assert len(REQUIRED) > 80
    wrong = [
        f"{file}:{line}: {module} is not in the extra {extra!r}"
        for file, line, module, extra in REQUIRED
        if distribution(module) not in EXTRAS.get(extra, set())
    ]
    assert not wrong, "\n".join(wrong)


def test_every_plain_import_of_a_foreign_module_has_its_extra() -> None:
    """At the top of a file the error is made at the edge, by a table; elsewhere `require` has asked before."""
    asked = {module.split(".")[0] for _, _, module, _ in REQUIRED}
    wrong = [
        f"{file}:{line}: {module}"
        for file, line, module in imported()
        if (top := module.split(".")[0]) not in errors.EXTRA_OF and BROUGHT.get(top, top) not in asked
    ]
    assert not wrong, "\n".join(wrong)
    for module, extra in errors.EXTRA_OF.items():
        assert distribution(module) in EXTRAS[extra], (module, extra)


def test_a_command_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def fails(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(app, "dispatch", fails)
    assert app.guarded(["train", "lm"]) == 2
    assert capsys.readouterr().err == "error: numpy is not installed; run: pip install 'blockyard[train]'\n"


def test_a_module_of_nobody_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'blockyard.gone'", name="blockyard.gone")

    monkeypatch.setattr(app, "dispatch", fails)
    with pytest.raises(ModuleNotFoundError):
        app.guarded(["train", "lm"])


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - OWN))
def test_every_extra_is_named_by_the_code(extra: str) -> None:
    # TensorBoard's error is torch's, whose own module imports it.
    logger = (SOURCE / "training" / "loggers.py").read_text(encoding="utf-8")
    named = extra in {extra for _, _, _, extra in REQUIRED} or f"blockyard[{extra}]" in logger
    assert named, f"nothing asks for blockyard[{extra}]"


def test_extras_that_documents_name_are_there() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for names in re.findall(r"(?:blockyard|\.)\[([a-z-]+(?:,[a-z-]+)*)\]'", page.read_text(encoding="utf-8")):
            assert set(names.split(",")) <= set(EXTRAS), f"{page.name}: {names}"


def test_constraints_pin_each_package_once_and_torch_without_a_build() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names)) and all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
    # What `make test` and `make demo` install is pinned, so that both are what was tested.
    assert not (EXTRAS["train"] | EXTRAS["report"] | EXTRAS["dev"]) - set(names)
