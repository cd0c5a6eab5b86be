"""Settings as they were given, in Python, a settings file or words: the one check, and the one merge.

A setting carries where it stands, so that an error names the place that the user wrote. Which options exist depends on
which blocks are selected, so a group's own options are read first, then those of the blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import LayerSpec, default_ffn_of, parse_choice
from blockyard.registry.register import Entry, Kind, find_block, implementation, members_of, names
from blockyard.tasks.groups import (
    FFN_GROUP,
    MIXER_GROUP,
    Group,
    mixers_twice,
    not_selected,
    unknown_group,
    unknown_key,
    wrong_type,
)

Settings = dict[str, dict[str, Any]]
Key = tuple[str, str]
# Kind and name of every selected block, with the options that each of its layers has in a pattern's brackets.
Chosen = dict[tuple[str, str], set[str]]

WORDS = sys.maxsize
MIXER, FFN, PATTERN = (MIXER_GROUP, "impl"), (FFN_GROUP, "impl"), ("model", "pattern")


@dataclass(frozen=True)
class Setting:
    """One setting as the user gave it.

    Args:
        group: the part before the dot; "" for an option of the command itself.
        key: the part after it.
        value: a word of the command line or a value of a YAML file.
        origin: where it stands, as an error names it: "--vft.rank" or "run.yaml: vft.rank".
        is_word: whether the value is text yet to be read as the option's type.
        layer: which source it comes from: files are 0, 1, ... and the words are laid over them.
    """

    group: str
    key: str
    value: Any
    origin: str
    is_word: bool = False
    layer: int = 0


def resolve(groups: Mapping[str, Group], given: Iterable[Setting], *, python: bool = False) -> Settings:
    """Check settings and fill in the defaults of everything that is selected.

    Args:
        groups: the groups there are.
        given: the settings, in the order in which they override one another.
        python: whether they come from Python, where what was not given is left to dataclasses and constructors, and
            options are named without dashes.

    Returns:
        For each group with something selected, option name -> value; `attn` has no `impl` when `model.pattern`
        names the mixers (`ffn.impl` then is the FFN of layers that name none). A family's option whose default differs
        between selected blocks is left to each block's own default unless it is given.

    Raises:
        InputError: for an unknown key (with a suggestion), a key of a block that is not selected, or a value of
            the wrong type; the line begins with where the setting stands.
    """
    last = latest(given)
    check_groups(groups, last)
    # What is selected decides which other options exist, so the groups' own options come first.
    settled: Settings = {
        name: {n: option.default for n, option in group.own.items() if option.settable and not option.required}
        for name, group in groups.items()
    }
    for (name, key), item in last.items():
        if key in groups[name].own:
            settled[name][key] = read_value(groups[name].own[key], item)
    if FFN not in last and settled[MIXER_GROUP]["impl"] in names("attn"):
        # A mixer may need another FFN than the usual one.
        settled[FFN_GROUP]["impl"] = default_ffn_of(settled[MIXER_GROUP]["impl"], settled[FFN_GROUP]["impl"])
    chosen = selected(settled, last)
    model = groups["model"].own if "model" in groups else {}
    choice_layer = max((last[key].layer for key in (MIXER, FFN, PATTERN) if key in last), default=-1)
    for name, group in groups.items():
        mine = [entry for entry in group.members if (entry.kind, entry.name) in chosen]
        for key, option in shared_defaults(mine).items():
            # A paired block's norm, say, is the model's unless it is given.
            if key not in model:
                settled[name].setdefault(key, option.default)
        # What no flag can set, a module that Python hands over, is an option all the same.
        options = {n: option for entry in mine for n, option in entry.options.items()}
        for (place, key), item in last.items():
            if place != name or key in group.own:
                continue
            if key in options:
                settled[name][key] = read_value(options[key], item)
            elif not (item.layer < choice_layer and group.holders(key)):
                # Otherwise: a file's option of a block that a later source has replaced, and gone with it.
                raise InputError(misplaced(item, group, list(options), settled))
    check_required(groups, settled, chosen, "" if python else "--")
    if python:
        settled = {name: {k: v for k, v in values.items() if (name, k) in last} for name, values in settled.items()}
    return {name: values for name, values in settled.items() if values}


def check_groups(groups: Mapping[str, Group], last: Mapping[Key, Setting]) -> None:
    """Refuse a setting of a group that does not exist."""
    for item in last.values():
        if item.group not in groups:
            raise InputError(f"{item.origin}: {unknown_group(item.group, groups)}")


def latest(given: Iterable[Setting]) -> dict[Key, Setting]:
    """Return the last word on each key; `attn.impl` and `model.pattern` are two ways of saying one thing."""
    last = {(item.group, item.key): item for item in given}
    mixer, pattern = last.get(MIXER), last.get(PATTERN)
    if mixer and pattern and mixer.layer != pattern.layer:
        del last[PATTERN if mixer.layer > pattern.layer else MIXER]
    return last


def selected(settled: Settings, last: Mapping[Key, Setting]) -> Chosen:
    """Return every block that the settings select, through `impl` or through `model.pattern`."""
    layers = [LayerSpec(settled[MIXER_GROUP]["impl"], settled[FFN_GROUP]["impl"])]
    mixer, ffn = last.get(MIXER), last.get(FFN)
    pattern = settled.get("model", {}).get("pattern")
    if pattern:
        if mixer is not None:
            raise InputError(mixers_twice(mixer.origin))
        layers = parse_choice(pattern, default_ffn=layers[0].ffn)
        # Not a mixer that any layer need have: a settings file made of these settings shall say it once.
        del settled[MIXER_GROUP]["impl"]
    chosen: Chosen = {}
    for layer in layers:
        feed = named("ffn", layer.ffn, ffn)
        entries: list[Entry | None] = [named("attn", layer.attn, mixer), feed, find_block(layer.attn, layer.ffn)]
        entries += selected_members(feed, layer.ffn_options, last)
        # A member's options stand there under its name: expert.d_ff.
        bracketed = {key.rpartition(".")[2] for key in (*layer.attn_options, *layer.ffn_options)}
        for entry in filter(None, entries):
            place = (entry.kind, entry.name)
            chosen[place] = chosen.get(place, bracketed) & bracketed
    return chosen


def selected_members(entry: Entry, brackets: Mapping[str, Any], last: Mapping[Key, Setting]) -> list[Entry]:
    """Return what a block is made of by name, a mixture's expert: as its brackets say, else its group, else by
    default."""
    group = entry.kind if entry.name == "standard" else entry.group
    given = {option: last[(group, option)] for option in members_of(entry, {}) if (group, option) in last}
    try:
        words = {option: str(item.value) for option, item in given.items()}
        return list(members_of(entry, {**words, **brackets}).values())
    except InputError as error:
        origin = next(iter(given.values())).origin if given else None
        raise InputError(f"{origin}: {error}" if origin else str(error)) from None


def named(kind: Kind, name: str, item: Setting | None) -> Entry:
    """Return the registered implementation; an unknown name is told with the place where it stands."""
    try:
        return implementation(kind, name)
    except InputError as error:
        raise InputError(f"{item.origin}: {error}" if item else str(error)) from None


def shared_defaults(members: Iterable[Entry]) -> dict[str, Option]:
    """Return options whose default is the same in all selected members that have them."""
    found: dict[str, Option] = {}
    differing = set()
    for entry in members:
        for name, option in entry.options.items():
            if option.required or not option.settable:
                continue
            if name in found and found[name].default != option.default:
                differing.add(name)
            found.setdefault(name, option)
    return {name: option for name, option in found.items() if name not in differing}


def misplaced(item: Setting, group: Group, options: list[str], settled: Settings) -> str:
    """Return what is wrong with a key that no selected block of the group has."""
    if not group.holders(item.key):
        # Nothing of the family selected: the family's own names are still the best suggestion.
        return unknown_key(item.origin, item.key, [*group.own, *(options or group.options)], group.name)
    holders = [entry.name for entry in group.holders(item.key)]
    impls = {".".join(key): settled.get(key[0], {}).get(key[1]) for key in (PATTERN, MIXER, FFN)}
    return not_selected(item.origin, item.key, holders, impls)


def read_value(option: Option, item: Setting) -> Any:
    """Return the value as the option's type.

    Raises:
        InputError: "--model.d_model='wide' should be int".
    """
    try:
        return option.parse(item.value) if item.is_word else option.check(item.value)
    except InputError:
        raise InputError(wrong_type(item.origin, item.value, option)) from None


def check_required(groups: Mapping[str, Group], settled: Settings, chosen: Chosen, dashes: str = "--") -> None:
    """Refuse a selection whose blocks need options that are given neither by groups nor in a pattern's brackets."""
    for name, group in groups.items():
        needed = [n for n, option in group.own.items() if option.required]
        for entry in group.members:
            bracketed = chosen.get((entry.kind, entry.name))
            if bracketed is not None:
                required = (n for n, option in entry.options.items() if option.required and option.settable)
                needed += [n for n in required if n not in bracketed]
        missing = [dashes + group.flag(key).removeprefix("--") for key in needed if key not in settled[name]]
        if missing:
            raise InputError(f"{', '.join(missing)} must be given")
