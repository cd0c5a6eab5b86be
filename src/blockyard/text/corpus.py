"""The text used when none is given: the Python standard library's own source, there wherever Python runs."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from blockyard.errors import InputError
from blockyard.text.readers import Pieces, joined

# Tests (some are broken on purpose), installed packages, and what a build writes for its own machine.
_LEFT_OUT_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")


def standard_library_version() -> str:
    """Return what identifies the default text beside its sha256, for example "CPython 3.11.7"."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def standard_library_files(root: Path | None = None) -> list[Path]:
    """Return the library's .py files in the order they are read.

    The order is by the sha256 of the file's relative name: the same on every machine, yet mixed, so that the
    first megabyte (`max_bytes`) and the validation tail are both fair samples of the whole, not the packages
    at either end of the alphabet.

    Raises:
        InputError: when this Python comes without its source.
    """
    folder = root if root is not None else Path(sysconfig.get_path("stdlib"))
    names: list[str] = []
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if _kept(name)]
        inside = os.path.relpath(base, folder)
        sources = [name for name in files if name.endswith(".py") and _kept(name)]
        names += [os.path.normpath(os.path.join(inside, name)) for name in sources]
    if not names:
        raise InputError(f"the standard library's source (the default text) is not in {folder}; give data.path")
    names.sort(key=lambda name: hashlib.sha256(name.replace(os.sep, "/").encode()).digest())
    return [folder / name for name in names]


def read_standard_library(root: Path | None = None) -> Pieces:
    """Yield the standard library's source, one document a file, with None between documents."""
    yield from joined(_documents(standard_library_files(root)))


def read_standard_library_packages(root: Path | None = None) -> Iterator[tuple[str, str, str]]:
    """Yield the library's packages file by file: package, the file's relative name, its text."""
    folder = root if root is not None else Path(sysconfig.get_path("stdlib"))
    for path in standard_library_files(folder):
        name = path.relative_to(folder)
        if len(name.parts) > 1:
            for document in _documents([path]):
                yield name.parts[0], str(name), document[0]


def _kept(name: str) -> bool:
    return name not in _LEFT_OUT_FOLDERS and not name.startswith(_LEFT_OUT_PREFIXES)


def _documents(paths: list[Path]) -> Iterator[tuple[str]]:
    for path in paths:
        try:
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError):
            # A file in another encoding, or one this user may not read, is simply not part of the sample.
            continue
        if "\0" not in text:
            yield (text,)
