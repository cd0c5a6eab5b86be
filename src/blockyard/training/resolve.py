"""From option groups, as YAML and the command line give them, to the dataclasses that build a run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from blockyard.data import TextDataConfig
from blockyard.errors import InputError, suggest
from blockyard.models.lm import LMConfig
from blockyard.options import check_options, options_of
from blockyard.pattern import LayerSpec, default_ffn_of, format_choice, layer_options, parse_choice
from blockyard.registry import Entry, Kind, entries, find_block, implementation, members_of
from blockyard.training.config import TrainConfig, as_dict

Groups = Mapping[str, Any]
# What `train lm` takes when nothing is named. Squared ReLU reaches a lower loss than SwiGLU per CPU-second: 1.951 and
# 1.960 nats per byte after ten at 0.8M parameters, the other defaults being the same (one seed).
MIXER, FFN = "standard", "relu2"


@dataclass(frozen=True)
class LMRun:
    """Everything that defines a run of `train lm`.

    Args:
        model: the architecture; its vocab_size follows from the tokenizer, so it is set once the data is loaded.
        data: the text.
        train: the training.
        plugins: modules whose import registers further implementations.
    """

    model: LMConfig
    data: TextDataConfig
    train: TrainConfig
    plugins: tuple[str, ...] = ()


def resolve(groups: Groups) -> LMRun:
    """Check option groups and build the run's configuration.

    Args:
        groups: `model` (LMConfig's options and `pattern`), `attn` and `ffn` (`impl` and the options of blocks that
            live there), one group per family of blocks, `train`, `data`, `plugins`. All are optional.

    Raises:
        InputError: for an unknown group or option, a wrong type, or a family that no layer uses.
    """
    plugins = tuple(groups.get("plugins") or ())
    load_plugins(plugins)
    for name in groups:
        if name not in _known_groups():
            raise InputError(f"no option group {name!r}{suggest(name, _known_groups())}")
    specs = _layers(groups)
    model = dict(groups.get("model") or {})
    model.pop("pattern", None)
    known = {k: o for k, o in options_of(LMConfig).items() if k not in ("vocab_size", "blocks")}
    # 1 until the tokenizer is known.
    lm = LMConfig(vocab_size=1, blocks=tuple(specs), **check_options(known, model, "model"))
    data = TextDataConfig(**check_options(options_of(TextDataConfig), groups.get("data") or {}, "data"))
    train = TrainConfig(**check_options(options_of(TrainConfig), groups.get("train") or {}, "train"))
    return LMRun(lm, data, train, plugins)


def as_groups(run: LMRun) -> dict[str, Any]:
    """The run as option groups that `resolve` reads back to the same run: what config.yaml holds."""
    model = {f.name: getattr(run.model, f.name) for f in fields(LMConfig) if f.name not in ("vocab_size", "blocks")}
    groups: dict[str, Any] = {"model": model}
    specs = list(run.model.blocks) if not isinstance(run.model.blocks, str) else parse_choice(run.model.blocks)
    if len({(s.attn, s.ffn, str(s)) for s in specs}) == 1:
        spec = specs[0]
        groups["attn"], groups["ffn"] = {"impl": spec.attn}, {"impl": spec.ffn}
        kinds: tuple[tuple[Kind, str, Mapping[str, Any]], ...] = (
            ("attn", spec.attn, spec.attn_options),
            ("ffn", spec.ffn, spec.ffn_options),
        )
        clash = False
        for kind, name, options in kinds:
            for key, value in options.items():
                home, short = _home(kind, name, key, spec)
                group = groups.setdefault(home, {})
                clash = clash or group.setdefault(short, value) != value
        # What stands in a family's group goes to all that live there, an expert and the mixer, say.
        if clash or (_has_members(spec) and _layers(groups) != [spec]):
            # One family option with two values, or for one of two members: only a pattern says that.
            groups = {"model": {**model, "pattern": format_choice(specs)}}
    else:
        model["pattern"] = format_choice(specs)
    groups["train"] = as_dict(run.train)
    groups["data"] = asdict(run.data)
    if run.plugins:
        groups["plugins"] = list(run.plugins)
    return groups


def with_vocabulary(run: LMRun, size: int) -> LMConfig:
    """The model's configuration, now that the tokenizer is known."""
    return replace(run.model, vocab_size=size)


def load_plugins(modules: tuple[str, ...]) -> None:
    """Import modules that register implementations.

    Raises:
        InputError: when a module does not exist.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
                raise
            raise InputError(f"plugin {module!r} cannot be imported: {error}") from error


def _layers(groups: Groups) -> list[LayerSpec]:
    """The layer specifications with the groups' options given to the blocks that they belong to."""
    attn, ffn = dict(groups.get("attn") or {}), dict(groups.get("ffn") or {})
    attn_impl, ffn_impl = attn.pop("impl", None), ffn.pop("impl", None)
    pattern = (groups.get("model") or {}).get("pattern")
    if pattern:
        if attn_impl:
            raise InputError(f"model.pattern={pattern!r} already names the mixers; leave attn.impl={attn_impl!r} out")
        specs = parse_choice(pattern, default_ffn=ffn_impl or FFN)
    else:
        mixer = attn_impl or MIXER
        implementation("attn", mixer)
        feed = ffn_impl or default_ffn_of(mixer, FFN)
        implementation("ffn", feed)
        specs = [LayerSpec(mixer, feed)]
    given = {**_families(groups), "attn": attn, "ffn": ffn}
    words = [(name, key, value) for name, options in given.items() for key, value in (options or {}).items()]
    # Which expert it is decides whose its options are, so that comes first.
    for name, key, value in sorted(words, key=lambda word: word[1] not in _naming_options(specs)):
        specs = _give(specs, name, key, value)
    return specs


def _naming_options(specs: list[LayerSpec]) -> set[str]:
    """Options that name a member, such as a mixture's expert."""
    entries_used = [implementation(kind, name) for spec in specs for kind, name, _ in _members(spec)]
    return {option for entry in entries_used for option in members_of(entry, {})}


def _has_members(spec: LayerSpec) -> bool:
    return bool(_naming_options([spec]))


def _give(specs: list[LayerSpec], group: str, key: str, value: Any) -> list[LayerSpec]:
    """Hand one group option to every layer that has it; what a pattern says in brackets goes before."""
    given, taken = [], False
    for spec in specs:
        changed: dict[str, Any] = {}
        for kind, name, held in _members(spec):
            for place in _places(kind, name, group, key, spec, held):
                taken = True
                option = layer_options(kind, name, held)[place]
                before = changed.get(f"{kind}_options", held)
                changed[f"{kind}_options"] = {place: _checked(option, value, group), **before}
        given.append(replace(spec, **changed))
    if not taken:
        raise InputError(_unused(group, key))
    return given


def _members(spec: LayerSpec) -> tuple[tuple[Kind, str, Mapping[str, Any]], ...]:
    return (("attn", spec.attn, spec.attn_options), ("ffn", spec.ffn, spec.ffn_options))


def _places(kind: Kind, name: str, group: str, key: str, spec: LayerSpec, held: Mapping[str, Any]) -> list[str]:
    """What a block calls an option of a group: the same if it lives there or is half of a pair that does, and
    `expert.d_ff` if its expert does."""
    found = []
    entry, pair = implementation(kind, name), find_block(spec.attn, spec.ffn)
    mine = _group_of(kind, entry) == group and key in entry.options
    if mine or (pair is not None and pair.group == group and key in pair.options):
        found.append(key)
    for option, member in members_of(entry, held).items():
        if _group_of(member.kind, member) == group and key in member.options:
            found.append(f"{option}.{key}")
    return found


def _group_of(kind: Kind, entry: Entry) -> str:
    """The standard mixer's and FFN's own options sit under `attn` and `ffn`, all others under their family."""
    return kind if entry.name == "standard" else entry.group


def _home(kind: Kind, name: str, key: str, spec: LayerSpec) -> tuple[str, str]:
    """The group in which config.yaml keeps an option of a block, and its name there."""
    entry = implementation(kind, name)
    option, dot, short = key.partition(".")
    if dot:
        member = members_of(entry, spec.ffn_options if kind == "ffn" else spec.attn_options)[option]
        return _group_of(member.kind, member), short
    if key in entry.options:
        return _group_of(kind, entry), key
    pair = find_block(spec.attn, spec.ffn)
    return (pair.group if pair is not None else _group_of(kind, entry)), key


def _checked(option: Any, value: Any, group: str) -> Any:
    try:
        return option.check(value)
    except InputError as error:
        raise InputError(f"{group}.{error}") from None


def _unused(group: str, key: str) -> str:
    """Why nothing takes an option: a typo, or its block is not selected."""
    kinds: tuple[Kind, ...] = ("attn", "ffn", "block")
    members = [(k, e) for k in kinds for e in entries(k) if (k if e.name == "standard" else e.group) == group]
    holders = list(dict.fromkeys(e.name for _, e in members if key in e.options))
    if holders:
        neither = "neither is" if len(holders) == 2 else "it is not" if len(holders) == 1 else "none of them is"
        return f"{group}.{key}: {key!r} is an option of: {', '.join(holders)}; {neither} selected"
    known = {name for _, e in members for name in e.options}
    return f"{group} has no option {key!r}{suggest(key, known)}" + ("" if known else " (it has none)")


def _families(groups: Groups) -> dict[str, Any]:
    return {name: groups[name] for name in groups if name not in ("model", "attn", "ffn", "train", "data", "plugins")}


def _known_groups() -> set[str]:
    kinds: tuple[Kind, ...] = ("attn", "ffn", "block")
    families = {entry.group for kind in kinds for entry in entries(kind)}
    return {"model", "attn", "ffn", "train", "data", "plugins"} | families
