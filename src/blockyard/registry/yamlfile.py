"""Settings files: YAML read safely, with errors that name the file and the line, and written so that it reads back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockyard.errors import InputError, require
from blockyard.files import check_nesting

_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
# YAML 1.1, which PyYAML reads, takes 1e-3 for a word: it wants a point and a sign, as in 1.0e-3.
_NUMBER = re.compile(r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf)|\.(nan|NaN))$")
_NUMBER_STARTS = "-+0123456789."


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
        # The safe loader: a settings file may come from anywhere, and YAML can name constructors.
        value = yaml.load(text, Loader=_loader(yaml))
        # Aliases of aliases make a small file a large value ("a billion laughs").
        check_nesting(value)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"settings file {str(path)!r}, line {line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise InputError(f"settings file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, a date that is none, brackets in brackets without end.
        what = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"settings file {str(path)!r} cannot be read: {what}") from None
    # An empty file is nearly always the wrong file.
    if not isinstance(value, dict):
        came = "nothing" if value is None else f"a {type(value).__name__}"
        raise InputError(
            f"settings file {str(path)!r} holds {came}; expected groups, such as 'model: {{d_model: 128}}'"
        )
    return value


def _loader(yaml: Any) -> Any:
    """Return PyYAML's safe loader with YAML 1.2's numbers and truth values, refusing duplicate keys."""

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if not isinstance(key.value, str):
                    raise yaml.constructor.ConstructorError(None, None, "a key should be one word", key.start_mark)
                # PyYAML keeps the last of two silently, and which of them was meant nobody knows.
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    # Dates stay words, as 1.2 has it.
    # In 1.1 `off`, `no` and `y` are truths, so that `compile: off` would be False.
    replaced = (_BOOL, _FLOAT, "tag:yaml.org,2002:timestamp")
    Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in replaced]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(_BOOL, re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    Loader.add_implicit_resolver(_FLOAT, _NUMBER, list(_NUMBER_STARTS))
    return Loader


def write_yaml(values: Mapping[str, Any]) -> str:
    """Return the mapping as YAML text that readers of YAML 1.1 and 1.2 understand alike: "off" and "1e3" are quoted."""
    yaml: Any = require("yaml", extra="train")

    # A class of its own, as resolvers belong to the class.
    dumper: Any = type("Dumper", (yaml.SafeDumper,), {})
    # Written by our rules and by 1.1's: what either would read as a number or a truth is quoted.
    dumper.add_implicit_resolver(_FLOAT, _NUMBER, list(_NUMBER_STARTS))
    return yaml.dump(dict(values), Dumper=dumper, sort_keys=False, allow_unicode=True)
