"""What the packages offer: every name resolves, is listed once for types and once for use, and stands in docs/api.md.

Also what has moved: every path that the documentation showed before is still found, as the same object.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import blockyard
from blockyard import moved

SOURCE = Path(blockyard.__file__).parent
ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "docs" / "api.md").is_file())
PACKAGES = ["blockyard", *(m.name for m in pkgutil.walk_packages(blockyard.__path__, "blockyard.") if m.ispkg)]
# Modules of the documents' own names, and what the command line is made of.
NOT_A_FACE = {"blockyard.compat", "blockyard.cli.commands", "blockyard.report.charts", "blockyard.tasks.price.data"}
FACES = [name for name in PACKAGES if name not in NOT_A_FACE]
# Told to whoever adds a package.
OWED = "docs/architecture.md, What a package owes the house, has an example"
LAZY = [name for name in FACES if name not in ("blockyard.conformance", "blockyard.cli")]

# What the documentation and the examples imported before the moves.
SHOWN = {
    "blockyard.blocks_dual": ["DualStreamBlock"],
    "blockyard.cache": ["LayerCache"],
    "blockyard.data.prices.config": ["PriceDataConfig"],
    "blockyard.data.prices.leakage": ["lookahead"],
    "blockyard.data.prices.reader": ["read_prices"],
    "blockyard.data.prices.windows": ["PriceData"],
    "blockyard.data.signals.bound": ["maximum_likelihood_bound"],
    "blockyard.data.signals.modulations": ["constellation"],
    "blockyard.ffn.moe_weights": ["from_hf", "to_hf"],
    "blockyard.forecasting.baselines": ["run_baselines"],
    "blockyard.forecasting.forecaster": ["Forecaster", "future_table", "load_forecaster"],
    "blockyard.forecasting.summary": ["summarise"],
    "blockyard.forecasting.tables": ["evaluation_table"],
    "blockyard.layers.complex": ["ComplexLinear", "to_pairs"],
    "blockyard.layers.roles": ["roles"],
    "blockyard.memory": ["forcing"],
    "blockyard.mixers.base": ["check_input"],
    "blockyard.mixers.latent": ["LatentAttention"],
    "blockyard.models.price": ["PriceConfig"],
    "blockyard.spectral_training": ["param_groups"],
    "blockyard.symmetry": ["check_equivariance"],
    "blockyard.training.kinds": ["Quality", "TaskKind", "register_task"],
    "blockyard.training.price": ["PriceTask"],
    "blockyard.training.run": ["load_run"],
    "blockyard.vein_migration": ["distill", "from_standard"],
    "blockyard.vein_training": ["VeinSchedule", "calibrate_tau", "log_vein_metrics", "param_groups"],
    "blockyard.workbench.bench.schema": ["Bench"],
    "blockyard.workbench.bench.write": ["load_bench", "write_bench"],
    "blockyard.workbench.report.parts": ["Parts"],
    "blockyard.workbench.report.write": ["load_report", "write_report"],
    "blockyard.workbench.schema": ["Report"],
}
# Those that are where they were.
KEPT = {
    "blockyard": [
        "LMConfig",
        "MultiheadAttention",
        "Traits",
        "TransformerLM",
        "get_attention",
        "get_ffn",
        "register_attn",
    ],
    "blockyard.compat.complex_block": ["TransformerBlock"],
    "blockyard.compat.spectre_nlp": ["SpectreBlockNLP"],
    "blockyard.conformance": ["check", "ffn_checks", "mixer_checks"],
    "blockyard.generation": ["beam_search"],
    "blockyard.models": ["LMConfig", "TransformerLM"],
    "blockyard.multihead": ["MultiheadAttention"],
    "blockyard.registry": ["Traits", "get_attention", "register_attn"],
    "blockyard.training.config": ["TrainConfig"],
}


def init_of(package: str) -> ast.Module:
    folder = SOURCE.joinpath(*package.split(".")[1:])
    return ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))


def typed_names(package: str) -> dict[str, str]:
    """Name -> the module it comes from, by the block that type checkers read."""
    found = {}
    for statement in init_of(package).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for line in statement.body:
                assert isinstance(line, ast.ImportFrom) and line.module, f"{package}: {ast.unparse(line)}; {OWED}"
                for alias in line.names:
                    assert alias.asname == alias.name, f"{package}: {alias.name} is not re-exported without `as`"
                    found[alias.name] = line.module
    return found


def offered_by(package: str) -> list[str]:
    """The names in a package's `__all__`; those of the command line are its entry point."""
    module = importlib.import_module(package)
    if package == "blockyard.cli":
        return ["main"]
    assert hasattr(module, "__all__"), f"{package}/__init__.py has no `__all__ = exports(__name__, {{...}})`; {OWED}"
    return list(module.__all__)


def documented() -> dict[str, set[str]]:
    """Package -> its names, by docs/api.md."""
    found: dict[str, set[str]] = {}
    package = ""
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## (blockyard[\w.]*)", line):
            package = heading[1]
            found[package] = set()
        elif entry := re.match(r"- `(\w+)`: \S", line):
            assert entry[1] not in found[package], f"{package}.{entry[1]} stands twice"
            found[package].add(entry[1])
    return found


@pytest.mark.parametrize("package", LAZY)
def test_types_and_use_see_the_same_names_from_the_same_files(package: str):
    offered_by(package)
    homes = getattr(importlib.import_module(package), "_homes", None)
    assert homes is not None, f"{package}/__init__.py writes its `__all__` by hand, not with `exports`; {OWED}"
    typed = typed_names(package)
    assert homes == typed, f"{package}: not both in `exports` and under TYPE_CHECKING: {homes.items() ^ typed.items()}"


@pytest.mark.parametrize("package", FACES)
def test_every_name_resolves_and_is_defined_in_its_file(package: str):
    module = importlib.import_module(package)
    for name in offered_by(package):
        value = getattr(module, name)
        assert not isinstance(value, ModuleType), f"{package}.{name} is a file"
        assert name in dir(module)
        home = getattr(value, "__module__", None)
        if name in getattr(module, "_homes", ()) and isinstance(home, str) and home.startswith("blockyard"):
            assert home == module._homes[name], f"{package}.{name} is defined in {home}"


def test_an_unknown_name_is_an_attribute_error_that_names_the_package():
    with pytest.raises(AttributeError, match=r"module 'blockyard\.vein' has no attribute 'nothing'"):
        importlib.import_module("blockyard.vein").nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from blockyard import nothing")


@pytest.mark.parametrize(
    "code",
    [
        "import blockyard.compare.compare; from blockyard.compare import compare as f",
        "from blockyard.compare import compare as f; import blockyard.compare.compare",
        "from blockyard.nn.roles import Role; from blockyard.nn import roles as f",
    ],
)
def test_a_function_wins_over_the_file_of_its_name(code: str):
    done = subprocess.run([sys.executable, "-c", f"{code}; assert callable(f), f"], env=environment())
    assert done.returncode == 0


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCE.parent), os.environ.get("PYTHONPATH", "")])}


def test_importing_every_package_costs_no_torch():
    # Importing `blockyard.hf` registers its classes with transformers, which is what it is for.
    cheap = [name for name in PACKAGES if name not in ("blockyard.conformance", "blockyard.hf")]
    script = (
        f"import sys, importlib; [importlib.import_module(name) for name in {cheap}]\n"
        "sys.exit(', '.join({'torch', 'numpy', 'yaml', 'rich', 'matplotlib'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_of_public_names_lists_what_the_packages_offer():
    listed = documented()
    assert listed.pop("blockyard.compat") == set()
    for name in FACES:
        assert name in listed, f"docs/api.md has no section `## {name}`; {OWED}"
        missing = set(offered_by(name)) - {"__version__"} ^ listed[name]
        assert not missing, f"{name}: not both in `__all__` and in docs/api.md: {', '.join(sorted(missing))}; {OWED}"
    assert listed.keys() == set(FACES), f"docs/api.md: no such package: {', '.join(listed.keys() - set(FACES))}"


def imports_in(code: str) -> list[tuple[str, str]]:
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "blockyard"
        for alias in node.names
    ]


def shown_code() -> list[tuple[str, str]]:
    found = [(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / "examples").glob("*.py"))]
    for page in [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            found.append((page.name, block.replace(": ...\n", ": pass\n")))
    return found


def test_documents_and_examples_import_public_names_alone():
    public = documented()
    for where, code in shown_code():
        for module, name in imports_in(code):
            if not module.startswith("blockyard.compat."):
                assert name in public.get(module, ()), f"{where}: from {module} import {name}"


def test_dotted_paths_in_documents_are_public():
    packages = set(PACKAGES)
    for page in [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]:
        for path in re.findall(r"`(blockyard(?:\.\w+)+)\(?", page.read_text(encoding="utf-8")):
            package, _, name = path.rpartition(".")
            # An entry point's group is named like a package.
            if path in packages or path in ("blockyard.attention", "blockyard.ffn") or package == "blockyard.compat":
                continue
            assert name in documented().get(package, ()), f"{page.name}: {path}"


def test_the_table_of_moved_paths_holds_what_was_shown():
    assert set(moved.MOVED) == set(SHOWN)


@pytest.mark.parametrize("old", sorted(SHOWN))
def test_an_old_path_gives_the_same_object_and_a_warning_that_names_the_new_one(old: str):
    package, file = moved.MOVED[old]
    new = importlib.import_module(f"{package}.{file}")
    spec = new.__spec__
    sys.modules.pop(old, None)
    with pytest.warns(
        DeprecationWarning, match=f"^{re.escape(old)} has moved: import from {re.escape(package)}$"
    ) as met:
        scope: dict[str, object] = {}
        exec(compile(f"from {old} import {', '.join(SHOWN[old])}", __file__, "exec"), scope)
    assert [Path(warning.filename) for warning in met] == [Path(__file__)], "the warning should show the user's line"
    assert sys.modules[old] is new and new.__spec__ is spec and new.__name__ == f"{package}.{file}"
    for name in SHOWN[old]:
        # One name of an old module may be offered by another package than the rest of it.
        homes = [package, *(home for home, names in documented().items() if name in names)]
        assert any(scope[name] is getattr(importlib.import_module(home), name, None) for home in homes)


@pytest.mark.parametrize("module", sorted(KEPT))
def test_a_path_that_stays_gives_no_warning(module: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(f"from {module} import {', '.join(KEPT[module])}", {})


def test_the_old_package_of_texts_gives_its_names_with_a_warning():
    import blockyard.text

    for name in blockyard.text.__all__:
        for full in [full for full in sys.modules if full == "blockyard.data"]:
            del sys.modules[full]
        with pytest.warns(DeprecationWarning, match=rf"blockyard\.data\.{name} has moved: import from blockyard\.text"):
            old = getattr(importlib.import_module("blockyard.data"), name)
        assert old is getattr(blockyard.text, name)


def test_an_old_module_is_an_attribute_of_the_package():
    vars(blockyard).pop("memory", None)
    with pytest.warns(DeprecationWarning, match="import from blockyard.machine"):
        memory = blockyard.memory
    assert memory is importlib.import_module("blockyard.machine.memory")


def test_other_old_paths_are_not_found():
    for name in ("blockyard.data.batches", "blockyard.layers.linear", "blockyard.mixers.vein", "blockyard.nothing"):
        with pytest.raises(ModuleNotFoundError, match=re.escape(name)):
            importlib.import_module(name)


def test_a_path_in_use_asks_the_table_for_nothing():
    """The finder stands last: what is there is found before it is asked."""
    assert isinstance(sys.meta_path[-1], moved.OldPlaces) or any(isinstance(f, moved.OldPlaces) for f in sys.meta_path)
    for old in (*moved.MOVED, *moved.PACKAGES):
        assert not (SOURCE.joinpath(*old.split(".")[1:]).with_suffix(".py")).exists(), f"{old} is there again"


def test_the_changelog_has_every_moved_path():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for old, (new, _) in moved.MOVED.items():
        assert f"| `{old}` | `{new}` |" in text
    for old, new in moved.MOVED_PACKAGES.items():
        assert f"| `{old}` | `{new}` |" in text


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_of_a_package_names_files_that_are_there(package: str):
    text = ast.get_docstring(init_of(package)) or ""
    folder = SOURCE.joinpath(*package.split(".")[1:])
    for file in re.findall(r"[\w/-]+\.(?:py|css|md|yaml)\b", text):
        assert any((place / file).is_file() for place in (folder, SOURCE, ROOT)), f"{package}: {file}"
    for path in re.findall(r"(?<![\w.])blockyard(?:\.[a-z_]+)+", text):
        home, _, name = path.rpartition(".")
        if path not in ("blockyard.attention", "blockyard.ffn"):  # groups of entry points
            assert hasattr(importlib.import_module(home), name) or importlib.util.find_spec(path), f"{package}: {path}"


@pytest.mark.parametrize("package", FACES)
def test_every_wing_has_a_map_with_its_page(package: str):
    text = ast.get_docstring(init_of(package)) or ""
    lines = len(text.splitlines())
    assert 12 <= lines <= 40, f"the docstring of {package}/__init__.py has {lines} lines, a map 12 to 40; {OWED}"
    assert re.search(r"docs/[\w-]+\.md", text), f"the docstring of {package} names no page docs/….md; {OWED}"
