"""Settings from a YAML file and the command line, checked against the option groups and merged.

Both pass the same check with the same errors; the file is laid before the words, and the last one wins.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from blockyard.cli.parser import Parser
from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import LayerSpec, default_ffn_of, parse_choice
from blockyard.registry.register import Entry, find_block, implementation, members_of, names
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


def add_groups(parser: Parser, groups: Mapping[str, Group]) -> None:
    """Declare a flag for every option of every group, with type, default, choices and text in the help."""
    for group in groups.values():
        section = parser.add_argument_group(f"{group.name}: {group.help}" if group.name else group.help)
        for option in group.options.values():
            _declare(section, group.flag(option.name), option, option_help(option, group))
    parser.explain_unknown = lambda flag: explain_flag(flag, groups)


def _declare(section: argparse._ActionsContainer, flag: str, option: Option, help: str) -> None:
    section.add_argument(
        flag,
        dest=flag,
        default=argparse.SUPPRESS,
        metavar=option.type_name.replace(" | ", "|").replace(" ", "_"),
        help=help,
        **({"nargs": "?", "const": "true"} if bool in option.alternatives else {}),  # type: ignore[arg-type]
    )


def option_help(option: Option, group: Group) -> str:
    """The docstring's text and the default; where blocks share an option but mean it differently, each one's."""
    meanings: dict[str, list[str]] = {}
    for entry in group.holders(option.name):
        meant = entry.options[option.name]
        meanings.setdefault(f"{meant.help.rstrip('.')} ({default_text(meant)})", []).append(entry.name)
    if not meanings:
        meanings[f"{option.help.rstrip('.')} ({default_text(option)})"] = []
    shared_by_all = len(meanings) == 1 and len(next(iter(meanings.values()))) in (0, len(group.members))
    texts = [text if shared_by_all else f"[{', '.join(names)}] {text}" for text, names in meanings.items()]
    return "; ".join(texts).strip().replace("%", "%%")


def default_text(option: Option) -> str:
    """ "required", or "default: 4"."""
    if option.required:
        return "required"
    return f"default: {option.none_word if option.default is None else value_text(option.default)}"


def value_text(value: Any) -> str:
    """A value as it is typed on the command line; text that would not show is quoted."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(value_text(item) for item in value) or "none"
    if isinstance(value, str) and (not value or not value.isprintable() or value != value.strip()):
        return repr(value)
    return str(value)


def explain_flag(flag: str, groups: Mapping[str, Group]) -> str | None:
    """Return what is wrong with an unknown `--group.key`, or with a group alone; None for anything else."""
    name, dot, key = flag.removeprefix("--").partition(".")
    if not dot:
        chooses = name in groups and "impl" in groups[name].options
        return f"unknown option {flag!r} (did you mean '--{name}.impl'?)" if chooses else None
    if name not in groups:
        return f"{flag}: {unknown_group(name, groups)}"
    return unknown_key(flag, key, groups[name].options, name)


def given_words(namespace: argparse.Namespace) -> list[Setting]:
    """The options of groups on a parsed command line."""
    found = []
    for flag, value in vars(namespace).items():
        if flag.startswith("--"):
            group, _, key = flag.removeprefix("--").rpartition(".")
            found.append(Setting(group, key, value, flag, is_word=True, layer=WORDS))
    return found


def resolve(groups: Mapping[str, Group], given: Iterable[Setting]) -> Settings:
    """Check settings and fill in the defaults of everything that is selected.

    Args:
        groups: the groups there are.
        given: the settings, in the order in which they override one another.

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
        name: {n: option.default for n, option in group.own.items() if not option.required}
        for name, group in groups.items()
    }
    for (name, key), item in last.items():
        if key in groups[name].own:
            settled[name][key] = read_value(groups[name].own[key], item)
    if FFN not in last and MIXER in last and settled[MIXER[0]]["impl"] in names("attn"):
        # A mixer may need another FFN than the usual one.
        settled[FFN[0]]["impl"] = default_ffn_of(settled[MIXER[0]]["impl"], settled[FFN[0]]["impl"])
    chosen = selected(settled, last)
    model = groups["model"].own if "model" in groups else {}
    choice_layer = max((last[key].layer for key in (MIXER, FFN, PATTERN) if key in last), default=-1)
    for name, group in groups.items():
        mine = [entry for entry in group.members if (entry.kind, entry.name) in chosen]
        for key, option in shared_defaults(mine).items():
            # A paired block's norm, say, is the model's unless it is given.
            if key not in model:
                settled[name].setdefault(key, option.default)
        for (place, key), item in last.items():
            if place != name or key in group.own:
                continue
            options = {n: o for entry in mine for n, o in entry.options.items() if o.settable}
            if key in options:
                settled[name][key] = read_value(options[key], item)
            elif not (item.layer < choice_layer and group.holders(key)):
                # Otherwise: a file's option of a block that a later source has replaced, and gone with it.
                raise InputError(misplaced(item, group, list(options), settled))
    check_required(groups, settled, chosen)
    return {name: values for name, values in settled.items() if values}


def read_given(groups: Mapping[str, Group], given: Iterable[Setting]) -> Settings:
    """Check settings of groups that no block lives in, and return what was given alone, without defaults.

    Raises:
        InputError: as `resolve`, also for a required option that is not given.
    """
    last = latest(given)
    check_groups(groups, last)
    settings: Settings = {name: {} for name in groups}
    for (name, key), item in last.items():
        if key not in groups[name].own:
            raise InputError(unknown_key(item.origin, key, list(groups[name].own), name))
        settings[name][key] = read_value(groups[name].own[key], item)
    check_required(groups, settings, set())
    return settings


def check_groups(groups: Mapping[str, Group], last: Mapping[Key, Setting]) -> None:
    """Refuse a setting of a group that does not exist."""
    for item in last.values():
        if item.group not in groups:
            raise InputError(f"{item.origin}: {unknown_group(item.group, groups)}")


def latest(given: Iterable[Setting]) -> dict[Key, Setting]:
    """The last word on each key; `attn.impl` and `model.pattern` are two ways of saying one thing."""
    last = {(item.group, item.key): item for item in given}
    mixer, pattern = last.get(MIXER), last.get(PATTERN)
    if mixer and pattern and mixer.layer != pattern.layer:
        del last[PATTERN if mixer.layer > pattern.layer else MIXER]
    return last


def selected(settled: Settings, last: Mapping[Key, Setting]) -> set[tuple[str, str]]:
    """Kind and name of every block that the settings select, through `impl` or through `model.pattern`."""
    layers = [LayerSpec(settled[MIXER_GROUP]["impl"], settled[FFN_GROUP]["impl"])]
    mixer, ffn = last.get(MIXER), last.get(FFN)
    pattern = settled.get("model", {}).get("pattern")
    if pattern:
        if mixer is not None:
            raise InputError(mixers_twice(mixer.origin))
        layers = parse_choice(pattern, default_ffn=layers[0].ffn)
        # Not a mixer that any layer need have: a settings file made of these settings shall say it once.
        del settled[MIXER_GROUP]["impl"]
    chosen: set[tuple[str, str]] = set()
    for layer in layers:
        feed = named("ffn", layer.ffn, ffn)
        entries: list[Entry | None] = [named("attn", layer.attn, mixer), feed, find_block(layer.attn, layer.ffn)]
        entries += selected_members(feed, layer.ffn_options, last)
        chosen |= {(entry.kind, entry.name) for entry in entries if entry is not None}
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


def named(kind: Any, name: str, item: Setting | None) -> Entry:
    """The registered implementation; an unknown name is told with the place where it stands."""
    try:
        return implementation(kind, name)
    except InputError as error:
        raise InputError(f"{item.origin}: {error}" if item else str(error)) from None


def shared_defaults(members: Iterable[Entry]) -> dict[str, Option]:
    """Options whose default is the same in all selected members that have them."""
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
    """The value as the option's type.

    Raises:
        InputError: "--model.d_model='wide' should be int".
    """
    try:
        return option.parse(item.value) if item.is_word else option.check(item.value)
    except InputError:
        raise InputError(wrong_type(item.origin, item.value, option)) from None


def check_required(groups: Mapping[str, Group], settled: Settings, chosen: set[tuple[str, str]]) -> None:
    """Refuse a selection whose blocks need options that are not given."""
    for name, group in groups.items():
        needed = [n for n, option in group.own.items() if option.required]
        for entry in group.members:
            if (entry.kind, entry.name) in chosen:
                needed += [n for n, option in entry.options.items() if option.required and option.settable]
        missing = [group.flag(key) for key in needed if key not in settled[name]]
        if missing:
            raise InputError(f"{', '.join(missing)} must be given")


def add_flat(parser: Parser, title: str, options: Mapping[str, Option]) -> None:
    """Declare `--name` for each option, under a heading."""
    section = parser.add_argument_group(title)
    for option in options.values():
        if option.settable:
            text = f"{option.help.rstrip('.')} ({default_text(option)})"
            _declare(section, f"--{option.name}", option, text.replace("%", "%%"))


def read_flat(namespace: argparse.Namespace, options: Mapping[str, Option]) -> dict[str, Any]:
    """The values given for these options, as their types.

    Raises:
        InputError: "--tokens='many' should be int", or for a required option that is not given.
    """
    found = {}
    for name, option in options.items():
        flag = f"--{name}"
        if flag in vars(namespace):
            found[name] = read_value(option, Setting("", name, vars(namespace)[flag], flag, is_word=True))
        elif option.required:
            raise InputError(f"{flag} must be given: {option.help.rstrip('.')}")
    return found
