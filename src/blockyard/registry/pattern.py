"""Layers as data: `spectral*3/standard[window=256]+swiglu` read into a list of layer specifications.

Grammar: a choice is layers joined by `/`; a layer is `MIXER[k=v,…]+FFN[k=v,…]`, optionally `*n`. A missing FFN means
the default one, a lone FFN name means standard attention. Shorter than the model is deep, the layers repeat.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from blockyard.errors import InputError
from blockyard.registry.builtin import COMPLEX_FFN
from blockyard.registry.options import check_options, unknown_option
from blockyard.registry.register import Kind, implementation, member_options, names, owners, unfold_members

DEFAULT_FFN = "swiglu"
# More layers than any model has; a slip of the finger must not fill the memory.
MOST_REPEATS = 10_000


@dataclass(frozen=True)
# Frozen, and mappings that nobody writes to: a specification is shared by all layers that it stands for.
class LayerSpec:
    """One layer: a mixer and an FFN by name, each with the options that differ from its defaults."""

    attn: str = "standard"
    ffn: str = DEFAULT_FFN
    attn_options: Mapping[str, Any] = field(default_factory=dict)
    ffn_options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{_format_part('attn', self.attn, self.attn_options)}+{_format_part('ffn', self.ffn, self.ffn_options)}"


def _format_part(kind: Kind, name: str, options: Mapping[str, Any]) -> str:
    if not options:
        return name
    words = {k: _none_word(kind, name, options, k) if v is None else _format_value(v) for k, v in options.items()}
    return f"{name}[{','.join(f'{k}={word}' for k, word in words.items())}]"


def _none_word(kind: Kind, name: str, options: Mapping[str, Any], key: str) -> str:
    """Return how no value at all is written: none, or null where one of the choices is called none."""
    try:
        return layer_options(kind, name, options)[key].none_word
    except (InputError, KeyError):
        # Of a plug-in that is not there; null is read as no value by every option.
        return "null"


def _format_value(value: Any) -> str:
    # As the command line writes them, so that a choice can be copied out of a report and pasted.
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        # A comma would begin the next option.
        return " ".join(map(_format_value, value))
    return str(value)


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a separator that is not inside square brackets."""
    # A scan, since brackets nest and regular expressions do not count.
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        # Brackets nest: an expert has options of its own within a mixture's.
        depth += (character == "[") - (character == "]")
        if depth < 0:
            break
        if character == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    if depth != 0:
        raise InputError(f"{text!r} has unbalanced square brackets")
    return [part.strip() for part in [*parts, text[start:]]]


def split_choices(text: str) -> list[str]:
    """Separate the choices of `compare --blocks`: at `;`, or when there is none and no brackets, at `,`.

    Raises:
        InputError: for an empty choice.
    """
    # Commas part options within brackets, so they part choices only where there are none.
    separator = ";" if ";" in text or "[" in text else ","
    choices = split_outside(text, separator)
    if choices and not choices[-1]:
        # A separator at the end is a habit, not a choice.
        choices.pop()
    if not choices or not all(choices):
        raise InputError(f"blocks={text!r} holds an empty choice; write e.g. standard,tva+vft")
    return choices


def parse_choice(text: str, default_ffn: str = DEFAULT_FFN) -> list[LayerSpec]:
    """Read a choice into its layers (not yet repeated over the depth).

    Raises:
        InputError: for an unknown name or option, a wrong type, or text that does not follow the grammar.
    """
    layers: list[LayerSpec] = []
    for part in split_outside(text, "/"):
        body, times = part, 1
        # From behind: a name may hold digits, and an option's value a star.
        if match := re.fullmatch(r"(.*)\*\s*(\d+)", part, re.DOTALL):
            body, times = match.group(1).strip(), int(match.group(2))
            if not 1 <= times <= MOST_REPEATS:
                raise InputError(f"{part!r}: a layer is repeated 1 to {MOST_REPEATS} times")
        layers += [_parse_layer(body, default_ffn)] * times
    return layers


def _parse_layer(text: str, default_ffn: str) -> LayerSpec:
    parts = split_outside(text, "+")
    # Three parts, or an empty one, are a plus too many.
    if len(parts) > 2 or not all(parts):
        raise InputError(f"{text!r} should be MIXER, MIXER+FFN or FFN, each with options in square brackets if any")
    heads = [_parse_part(part) for part in parts]
    if len(heads) == 1:
        name, options = heads[0]
        # `standard` is both; alone it is the mixer, which is what a comparison of mixers means by it.
        if name not in names("attn") and name in names("ffn"):
            return LayerSpec("standard", name, {}, _typed("ffn", name, options))
        return LayerSpec(name, default_ffn_of(name, default_ffn), _typed("attn", name, options), {})
    (attn, attn_options), (ffn, ffn_options) = heads
    return LayerSpec(attn, ffn, _typed("attn", attn, attn_options), _typed("ffn", ffn, ffn_options))


def default_ffn_of(mixer: str, default_ffn: str = DEFAULT_FFN) -> str:
    """Return the FFN of a layer that names none: the default one, or the complex one for a complex mixer."""
    # A real FFN cannot read a complex stream, so the default one would only be refused.
    return COMPLEX_FFN if implementation("attn", mixer).traits.complex_valued else default_ffn


def _parse_part(text: str) -> tuple[str, dict[str, str]]:
    # Names as plug-ins give them: letters, digits, dots and dashes.
    match = re.fullmatch(r"([\w.-]+)\s*(?:\[(.*)\])?", text, re.DOTALL)
    if not match:
        raise InputError(f"{text!r} should be a name, with options as name[key=value,…] if any")
    options = {}
    for item in split_outside(match.group(2) or "", ",") if match.group(2) else []:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise InputError(f"{text!r}: options are written key=value, not {item!r}")
        if key.strip() in options:
            raise InputError(f"{text!r}: {key.strip()} stands twice")
        options[key.strip()] = value.strip()
    return match.group(1), options


def _typed(kind: Kind, name: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return options read from text by the implementation's types."""
    # The options given so far say who the members are, and with that which options there are.
    known = layer_options(kind, name, options)
    typed = {}
    for key, text in options.items():
        if key not in known:
            raise InputError(f"{name!r} has no option {unknown_option(key, known, partial(owners, kind=kind))}")
        # Now and not when the model is built: a report names a choice by typed values, 4 and not "4".
        typed[key] = known[key].parse(text)
    return typed


def layer_options(kind: Kind, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what may stand in the brackets behind a name: its own options, those of paired blocks it is part of, and
    those of its members (`expert.d_ff`), which the options given already may name."""
    entry = implementation(kind, name)
    known = {**entry.options, **member_options(entry, options)}
    for pair in names("block"):
        if name == pair.split("+")[kind == "ffn"]:
            known = {**implementation("block", pair).options, **known}
    return known


def check_layer(spec: LayerSpec) -> LayerSpec:
    """Return the same layer with its options checked against their types.

    Raises:
        InputError: for an unknown name or option, or a value of the wrong type.
    """
    parts: tuple[tuple[Kind, str, Mapping[str, Any]], ...] = (
        ("attn", spec.attn, spec.attn_options),
        ("ffn", spec.ffn, spec.ffn_options),
    )
    checked = []
    for kind, name, given in parts:
        options = unfold_members(implementation(kind, name), given)
        every = layer_options(kind, name, options)
        known = {key: option for key, option in every.items() if not option.required or key in options}
        checked.append(check_options(known, options, f"{name!r}", owners=partial(owners, kind=kind)))
    return LayerSpec(spec.attn, spec.ffn, *checked)


def repeat_to_depth(layers: Sequence[LayerSpec], n_layers: int) -> list[LayerSpec]:
    """Return a pattern as long as the depth is literal, a shorter one repeats.

    Raises:
        InputError: when the pattern is longer than the model is deep.
    """
    if len(layers) > n_layers:
        raise InputError(
            f"{format_choice(layers)!r}: the layer pattern names {len(layers)} layers, but n_layers={n_layers}"
        )
    # A depth that is no multiple cuts the last repeat short, as `tva*3/standard` over 6 layers ends with two of tva.
    return [layers[i % len(layers)] for i in range(n_layers)]


def format_choice(layers: Sequence[LayerSpec]) -> str:
    """Return a choice as text that `parse_choice` reads back."""
    words: list[str] = []
    counts: list[int] = []
    for layer in layers:
        # Neighbours that are equal: what was written `tva*3` is read and written so again.
        if words and words[-1] == str(layer):
            counts[-1] += 1
        else:
            words.append(str(layer))
            counts.append(1)
    return "/".join(word if n == 1 else f"{word}*{n}" for word, n in zip(words, counts))


def without_defaults(layers: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Return the layers with the options alone that are not what they would be anyway: for people to read."""

    def told(kind: Kind, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        known = layer_options(kind, name, given)
        return {key: value for key, value in given.items() if key not in known or value != known[key].default}

    return [
        replace(
            spec,
            attn_options=told("attn", spec.attn, spec.attn_options),
            ffn_options=told("ffn", spec.ffn, spec.ffn_options),
        )
        for spec in layers
    ]
