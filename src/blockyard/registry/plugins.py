"""Modules that a user names: importing them registers blocks and tasks.

Importing a module runs its code. Those that the *user* names (`--plugin`, `plugins=`) and those that are installed
(entry points) are trusted. A module that a *file* names is not, since the file may come from anywhere: a run folder or
a settings file has its plug-ins loaded only when the user names them too, or says `--trust`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, suggest

# Characters of a module's name; and as much of a wrong one is shown.
# A file can hold anything in the place of a name, a megabyte of text as well.
LONGEST = 200


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
    # In the order given: a later one may build on blocks of an earlier one.
    for module in modules:
        import_module(module, origin)


def load_file_plugins(
    wanted: Any, origin: str, *, plugins: Sequence[str] = (), trust: bool = False, here: bool = False
) -> tuple[str, ...]:
    """Import the modules that a file names, if the user agreed to each; all of them or none.

    A module that is imported already is agreed to: it runs nothing any more.

    Args:
        wanted: what stands under `plugins` in the file.
        origin: the file, for the error.
        plugins: modules that the user names; they are imported first, whether or not the file wants them.
        trust: the user agrees to all that the file names.
        here: look for them in the current folder, too.

    Returns: the names that the file holds.

    Raises:
        InputError: a name is none, a module is not agreed to or does not exist.
    """
    # `plugins:` with nothing behind it.
    wanted = [] if wanted is None else wanted
    if not isinstance(wanted, list | tuple) or not all(isinstance(name, str) for name in wanted):
        raise InputError(f"{origin}: plugins={_shown(wanted)} should be a list of module names")
    # Those that the user names first: whether the others are agreed to is then only a look at what is imported.
    load_plugins(plugins, here=here)
    for name in wanted:
        _check_name(name, f"{origin}: plugins")
    # All are looked at before any is imported: half of a file's plug-ins would leave a register that no run has.
    strange = [name for name in dict.fromkeys(wanted) if name not in sys.modules]
    if strange and not trust:
        names = ", ".join(strange[:3]) + (", …" if len(strange) > 3 else "")
        raise InputError(
            f"{origin} wants the plug-in {names}, whose code would run: name it too if you know it "
            f"(--plugin {strange[0]}; in Python plugins=[{strange[0]!r}]), or agree to all that the file names "
            "(--trust; trust=True)"
        )
    load_plugins(strange, f"{origin}: plugins", here=here)
    return tuple(wanted)


def _check_name(module: str, origin: str) -> None:
    # Where a class of a file can be named, as in `blockyard check FILE.py:Class`, people name the file here too.
    if module.endswith(".py") and len(module) <= LONGEST and Path(module).is_file():
        folder, name = Path(module).parent, Path(module).stem
        where = "" if str(folder) == "." else f", from the folder {str(folder)!r}"
        raise InputError(f"{origin}: {module!r} is a file; name its module, as an import does: {name}{where}")
    if len(module) > LONGEST or not all(part.isidentifier() for part in module.split(".")):
        raise InputError(
            f"{origin}: {_shown(module)} is not a module's name; expected something like my_package.blocks"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def import_module(module: str, origin: str) -> Any:
    """Import a module that the user names, or say that there is none."""
    _check_name(module, origin)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A missing import inside the module is its author's to mend, and its traceback says where.
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise
        near = suggest(error.name, [file.stem for file in Path().glob("*.py")])
        raise InputError(f"{origin}: no module named {error.name!r}{near}") from error


def import_file(path: str, origin: str) -> Any:
    """Import a Python file that the user names; imports in it find its neighbours.

    A file that an import finds by a dotted name (this package's own, an installed one's) is that module: run a second
    time under a name of its own, its classes would clash with themselves. Any other is the module of its name.

    Raises:
        InputError: no such file, or its name belongs to another module. An error *inside* it keeps its traceback.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{origin}: no file {_shown(path)}")
    name = file.stem
    _check_name(name, f"{origin}: {_shown(path)}")
    # A file within a package has relations that it needs: its neighbours, and the name under which they know it.
    dotted = _dotted_name(file.resolve())
    if dotted in sys.modules:
        return sys.modules[dotted]
    # `check my_block.py:Mine` may be called twice in one process, by tests above all.
    known = sys.modules.get(name)
    if known is not None and dotted is None:
        if Path(getattr(known, "__file__", None) or "").resolve() == file.resolve():
            return known
        raise InputError(f"{origin}: {_shown(path)}: there is a module {name!r} already; give the file another name")
    folder = str(file.resolve().parent)
    # Last, so that the user's files cannot shadow what the libraries import.
    if folder not in sys.path:
        sys.path.append(folder)
    if dotted is not None:
        return importlib.import_module(dotted)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before its code runs, as an import would: dataclasses and pickles look there.
    # Taken out again if it fails: half a module would be found by the next import.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _dotted_name(file: Path) -> str | None:
    """Return the name by which an import finds a file of a package; None for any other file."""
    parts, folder = [file.stem] if file.stem != "__init__" else [], file.parent
    # Up to where the package begins: an import names a file from there.
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    on_path = any(Path(entry or os.getcwd()).resolve() == folder for entry in sys.path)
    if folder == file.parent or not on_path or not all(part.isidentifier() for part in parts):
        return None
    name = ".".join(parts)
    # Another package of the same name may stand before it on the path.
    top = importlib.util.find_spec(parts[0])
    if top is None or Path(top.origin or "").resolve() != folder / parts[0] / "__init__.py":
        return None
    return name


def plugins_in(words: Sequence[str]) -> list[str]:
    """Return the modules named by `--plugin` on a command line, found without knowing the command's other options."""
    found = []
    # By hand, since the parser is made of the options that these very modules bring.
    for index, word in enumerate(words):
        # What stands behind is no option: a line that is being typed, say, which shall import nothing.
        if word == "--":
            break
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
