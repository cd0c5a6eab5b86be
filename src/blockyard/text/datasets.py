"""Folders that Hugging Face's datasets wrote with `save_to_disk`: which files hold the rows, and in which order.

Only the files' names are taken from their descriptions; the rows are read as any other Arrow file. Such folders hold
JSON that describes them, too, which would otherwise be taken for text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockyard.errors import InputError
from blockyard.files import parse_json

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def data_files(folder: Path, names: Sequence[str]) -> list[str] | None:
    """Return the names of the files with the rows of a saved dataset, in their order; None for any other folder.

    Args:
        folder: it may be one.
        names: of the files in it.

    Raises:
        InputError: for a dataset of several splits, one that is not what `save_to_disk` writes, or lacks a file.
    """
    where = f"data.path={str(folder)!r}"
    if SPLITS in names:
        splits = _read(folder / SPLITS).get("splits")
        if isinstance(splits, list) and all(isinstance(name, str) for name in splits):
            several = ", ".join(str(folder / name) for name in splits[:4]) or "none"
            raise InputError(f"{where} is a dataset of several splits; name the one to read: {several}")
    state = _read(folder / STATE) if STATE in names else {}
    listed = state.get("_data_files")
    if not isinstance(listed, list):
        if INFO in names and any(name.endswith(".arrow") for name in names):
            # Its splits lie side by side, told apart by their names alone.
            raise InputError(
                f"{where} is a cache of datasets, not a folder that save_to_disk wrote; name one of its .arrow files, "
                "or several by a pattern such as '*-train-*.arrow'"
            )
        return None
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(f"{where}: a file of indices chooses its rows; call flatten_indices() and save it again")
    found = [each.get("filename") if isinstance(each, dict) else None for each in listed]
    for name in found:
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{where}: {STATE} names the file {name!r}, which is none of this folder; save it again")
        if name not in names:
            raise InputError(f"{where} lacks {name}, a part of the dataset that its {STATE} names")
    return [name for name in found if isinstance(name, str)]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Some other program's file of that name: the reader of text says what is wrong with it.
        return {}
    return value if isinstance(value, dict) else {}
