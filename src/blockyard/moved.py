"""Modules that have moved since 0.1: what the documentation showed at their old places is still found there.

The table holds those paths and no others. The old name gives the new module itself, so classes are the same by either
way, and a DeprecationWarning says where to import from.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Old module -> the package that now offers its names, and the module within that package.
MOVED: dict[str, tuple[str, str]] = {
    "blockyard.blocks_dual": ("blockyard.complex", "dual"),
    "blockyard.cache": ("blockyard.protocol", "cache"),
    "blockyard.data.prices.config": ("blockyard.tasks.price", "data.config"),
    "blockyard.data.prices.leakage": ("blockyard.tasks.price", "data.leakage"),
    "blockyard.data.prices.reader": ("blockyard.tasks.price", "data.reader"),
    "blockyard.data.prices.windows": ("blockyard.tasks.price", "data.windows"),
    "blockyard.data.signals.bound": ("blockyard.tasks.signal", "bound"),
    "blockyard.data.signals.modulations": ("blockyard.tasks.signal", "modulations"),
    "blockyard.ffn.moe_weights": ("blockyard.moe", "weights"),
    "blockyard.forecasting.baselines": ("blockyard.tasks.price", "baselines"),
    "blockyard.forecasting.forecaster": ("blockyard.tasks.price", "forecaster"),
    "blockyard.forecasting.summary": ("blockyard.tasks.price", "summary"),
    "blockyard.forecasting.tables": ("blockyard.tasks.price", "summary"),
    "blockyard.layers.complex": ("blockyard.complex", "linear"),
    "blockyard.layers.roles": ("blockyard.nn", "roles"),
    "blockyard.memory": ("blockyard.machine", "memory"),
    "blockyard.mixers.base": ("blockyard.protocol", "mixer"),
    "blockyard.mixers.latent": ("blockyard.latent", "attention"),
    "blockyard.models.price": ("blockyard.tasks.price", "model"),
    "blockyard.spectral_training": ("blockyard.spectral", "training"),
    "blockyard.symmetry": ("blockyard.complex", "symmetry"),
    "blockyard.training.kinds": ("blockyard.tasks", "kind"),
    "blockyard.training.price": ("blockyard.tasks.price", "task"),
    "blockyard.training.run": ("blockyard.tasks", "run"),
    "blockyard.vein_migration": ("blockyard.transplant", "migration"),
    "blockyard.vein_training": ("blockyard.vein", "training"),
    "blockyard.workbench.bench.schema": ("blockyard.bench", "schema"),
    "blockyard.workbench.bench.write": ("blockyard.bench", "write"),
    "blockyard.workbench.report.parts": ("blockyard.report", "parts"),
    "blockyard.workbench.report.write": ("blockyard.compare", "output"),
    "blockyard.workbench.schema": ("blockyard.report", "schema"),
}
# Names that a package offered and another one offers now.
MOVED_NAMES = {
    ("blockyard.vein", "distill"): "blockyard.transplant",
    ("blockyard.vein", "from_standard"): "blockyard.transplant",
}
# Old packages that had names of their own -> the package that now offers them.
MOVED_PACKAGES = {"blockyard.data": "blockyard.text"}


def _packages() -> set[str]:
    """Return the old packages that a path of the table goes through."""
    found = set(MOVED_PACKAGES)
    for name in MOVED:
        while (name := name.rpartition(".")[0]) != "blockyard":
            found.add(name)
    return found


PACKAGES = _packages()


def attribute(name: str) -> ModuleType:
    """Give an old module as an attribute of the package: `blockyard.memory`, which nobody had to import by itself."""
    full = f"blockyard.{name}"
    if full in PACKAGES:
        return importlib.import_module(full)
    if full not in MOVED:
        raise AttributeError(f"module 'blockyard' has no attribute {name!r}")
    package, file = MOVED[full]
    _warn(full, package, stacklevel=3)  # the caller of the package's own __getattr__
    return importlib.import_module(f"{package}.{file}")


def name_of(package: str) -> Callable[[str], Any]:
    """Return what gives names that a package offered before (`exports(…, otherwise=…)`), with a warning."""

    def found(name: str) -> Any:
        new = MOVED_NAMES.get((package, name))
        if new is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        _warn(f"{package}.{name}", new, stacklevel=3)
        return getattr(importlib.import_module(new), name)

    return found


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(f"{old} has moved: import from {new}", DeprecationWarning, stacklevel=stacklevel + 1)


class OldPackage(ModuleType):
    """A folder that is gone: there to be gone through to the modules of the table, and for names that it offered."""

    def __getattr__(self, name: str) -> Any:
        """Give a name that the package offered, from where it is now."""
        new = MOVED_PACKAGES.get(self.__name__)
        if new is None or name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        # Kept, so that it is warned of once: `from … import` asks twice.
        value = self.__dict__[name] = getattr(importlib.import_module(new), name)
        _warn(f"{self.__name__}.{name}", new, stacklevel=2)
        return value


class OldPlaces:
    """The finder of the old names, and their loader."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Find an old module or an old package; None for every other name."""
        if name in MOVED:
            return ModuleSpec(name, self)  # type: ignore[arg-type]  # it has a loader's methods, without importlib.abc
        if name in PACKAGES:
            # mypy: as above.
            return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Make an old package; what stands for a module is put in its place when it is run."""
        return OldPackage(spec.name) if spec.name in PACKAGES else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the new module under the old name, with a warning."""
        name = module.__name__
        if name in MOVED:
            package, file = MOVED[name]
            sys.modules[name] = importlib.import_module(f"{package}.{file}")
            # The import system's own frames do not count.
            _warn(name, package, stacklevel=2)


def install() -> None:
    """Have old names found, after every other finder has been asked."""
    if not any(isinstance(finder, OldPlaces) for finder in sys.meta_path):
        sys.meta_path.append(OldPlaces())
