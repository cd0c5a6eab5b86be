"""What a settings file sets: its groups, its plug-ins."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockyard.cli.settings import Given
from blockyard.errors import InputError, suggest
from blockyard.training.groups import Group


def plugins_of(path: Path, settings: dict[str, Any]) -> list[str]:
    """The modules under the file's `plugins` key."""
    plugins = settings.get("plugins") or []
    if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
        raise InputError(f"{path}: plugins={plugins!r} should be a list of module names")
    return plugins


def given_in(
    path: Path, settings: dict[str, Any], groups: Mapping[str, Group], skip: tuple[str, ...] = (), layer: int = 0
) -> list[Given]:
    """The settings of a file as a list; `group: {key: value}` and `group.key: value` mean the same.

    Args:
        path: the file, for the origins.
        settings: what it holds.
        groups: the groups there are; the options of the one named "" stand at the top of the file.
        skip: top-level keys that are not groups and belong to the caller.
        layer: number of the file, counted from 0.
    """
    top = groups[""].own if "" in groups else {}
    found = []
    for name, value in settings.items():
        if name in skip:
            continue
        group, dot, key = str(name).partition(".")
        if name in top:
            found.append(Given("", name, value, f"{path}: {name}", layer=layer))
        elif group not in groups:
            known = [*filter(None, groups), *top, *skip]
            raise InputError(f"{path}: no option group {group!r}{suggest(group, known)}")
        elif dot:
            found.append(Given(group, key, value, f"{path}: {name}", layer=layer))
        elif isinstance(value, dict):
            found += [Given(group, str(k), v, f"{path}: {group}.{k}", layer=layer) for k, v in value.items()]
        elif value is not None:
            raise InputError(f"{path}: {group}={value!r} should be a mapping, such as '{group}: {{key: value}}'")
    return found
