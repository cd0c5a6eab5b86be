"""Options as JSON Schema: what a settings file may hold for each, for editors that check while one writes."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union

from blockyard.registry.options import Option

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}


def option_schema(option: Option, known: Sequence[str] = ()) -> dict[str, Any]:
    """Return the schema of an option's value, its text and default with it.

    Args:
        option: the option.
        known: values that are there to choose from, for text that may be others too.
    """
    schema = type_schema(option.annotation)
    if known:
        schema = {"anyOf": [{"enum": list(known)}, schema]}
    if option.help:
        schema["description"] = option.help
    if not option.required and isinstance(option.default, str | int | float | bool | None):
        schema["default"] = option.default
    return schema


def type_schema(annotation: Any) -> dict[str, Any]:
    """Return the schema of a type; what no file can express has none of its own, and anything passes."""
    origin = typing.get_origin(annotation)
    if annotation in _TYPES:
        return {"type": _TYPES[annotation]}
    if origin is Literal:
        return {"enum": list(typing.get_args(annotation))}
    if origin in (list, tuple):
        several = {"type": "array", "items": type_schema(typing.get_args(annotation)[0])}
        # One word stands for a list of one, as the options' own check has it.
        return {"anyOf": [{"type": "string"}, several]} if typing.get_args(annotation)[0] is str else several
    if origin in (Union, types.UnionType):
        members = [type_schema(member) for member in typing.get_args(annotation)]
        # A module or a function beside a number: a file holds the number.
        members = [member for member in members if member]
        return members[0] if len(members) == 1 else {"anyOf": members}
    return {}


def settings_schema(
    title: str, own: Mapping[str, Any], groups: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the schema of a settings file.

    Args:
        title: what it is for.
        own: schemas of what stands at its top.
        groups: by name, what each is for and the schemas of its options; `group: {key: value}` and `group.key: value`
            mean the same.
    """
    properties: dict[str, Any] = dict(own)
    for name, (help, options) in groups.items():
        properties[name] = {
            "description": help,
            "type": ["object", "null"],
            "properties": dict(options),
            "additionalProperties": False,
        }
        properties |= {f"{name}.{key}": schema for key, schema in options.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }
