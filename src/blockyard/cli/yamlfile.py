"""Settings files: YAML read safely, with errors that name the file and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockyard.cli.settings import Given
from blockyard.errors import InputError, require, suggest
from blockyard.training.groups import Group


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Numbers may be written `1e-3`, and only `true` and `false` are truth values (YAML 1.2), so that
    `compile: off` is the word "off". A key that stands twice is refused.

    Raises:
        InputError: when the file is missing, unreadable, not UTF-8, not YAML (with the line) or not a mapping.
    """
    yaml = require("yaml", extra="train")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read settings file {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"settings file {str(path)!r} is not UTF-8 text (byte {error.start})") from None
    try:
        value = yaml.load(text, Loader=loader(yaml))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"settings file {str(path)!r}, line {line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"settings file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        came = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(
            f"settings file {str(path)!r} holds {came}; expected groups, such as 'model: {{d_model: 128}}'"
        )
    return value


def loader(yaml: Any) -> Any:
    """PyYAML's safe loader with YAML 1.2's numbers and truth values, refusing duplicate keys."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key.value, str):
                    raise yaml.constructor.ConstructorError(None, None, "a key should be one word", key.start_mark)
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf)|\.(nan|NaN))$"),
        list("-+0123456789."),
    )
    return Loader


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
