"""From option groups, as YAML and the command line give them, to the dataclasses that build a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import LayerSpec, default_ffn_of, format_choice, layer_options, parse_choice
from blockyard.registry.plugins import load_plugins
from blockyard.registry.register import Entry, Kind, find_block, implementation, members_of
from blockyard.tasks.given import FFN, MIXER, Setting, named
from blockyard.tasks.given import resolve as resolve_given
from blockyard.tasks.groups import mixers_twice, train_groups, unknown_group, wrong_type
from blockyard.tasks.kind import DEFAULT, Run, TaskKind, task_kind
from blockyard.training.config import TrainConfig, as_dict

Groups = Mapping[str, Any]
# Top-level keys of config.yaml that are no families of blocks.
OWN_GROUPS = ("task", "model", "attn", "ffn", "train", "data", "plugins")


def resolve(groups: Groups, task: str | None = None) -> Run[Any, Any]:
    """Check option groups (as tasks/given.py does for all that is given) and build the run's configuration.

    Args:
        groups: `task` (its name), `model` (its configuration's options and `pattern`), `attn` and `ffn` (`impl` and the
            options of blocks that live there), one group per family of blocks, `train`, `data`, `plugins`. All are
            optional; without `task` it is a language model.
        task: the task that the groups must be of.

    Raises:
        InputError: for an unknown group, task or option, a wrong type, or a family that no layer uses.
    """
    _check_shape(groups)
    plugins = tuple(groups.get("plugins") or ())
    load_plugins(plugins)
    of = groups.get("task") or task or DEFAULT
    known = train_groups(of)
    for name in groups:
        if name not in (*known, "plugins", "task"):
            raise InputError(unknown_group(name, known, ("plugins", "task")))
    if task is not None and of != task:
        raise InputError(f"task={of!r}: these are the options of another task than {task!r}")
    kind = task_kind(of)
    settled = resolve_given(known, _as_given(groups), python=True)
    model = {key: value for key, value in settled.get("model", {}).items() if key != "pattern"}
    specs = _layers(settled, kind)
    architecture = kind.model_config(blocks=tuple(specs), **{**kind.from_data, **model})
    # Again, for a subclass whose own `__post_init__` does not call its parent's.
    architecture.check_shape()
    data = kind.data_config(**settled.get("data", {}))
    train = TrainConfig(**{**kind.train_defaults, **settled.get("train", {})})
    return Run(architecture, data, train, plugins, kind.name)


def _as_given(groups: Groups) -> list[Setting]:
    """List what Python's groups hold; a pattern or a mixer of None is none."""
    return [
        Setting(name, key, value, f"{name}.{key}")
        for name, options in groups.items()
        if name not in ("task", "plugins")
        for key, value in (options or {}).items()
        if value is not None or (name, key) not in (MIXER, FFN)
    ]


def _check_shape(groups: Groups) -> None:
    """Refuse groups that are none, as a file can hold anything in their place."""
    for name, value in groups.items():
        if value is None:
            continue
        if name == "task":
            if not isinstance(value, str):
                raise InputError(f"task={value!r} should be the name of a task")
        elif name == "plugins":
            if not isinstance(value, list | tuple) or not all(isinstance(module, str) for module in value):
                raise InputError(f"plugins={value!r} should be a list of module names")
        elif not isinstance(value, Mapping):
            raise InputError(f"{name}={value!r} should be a mapping, such as '{name}: {{key: value}}'")
    for name, key in (("attn", "impl"), ("ffn", "impl"), ("model", "pattern")):
        value = (groups.get(name) or {}).get(key)
        if value is not None and not isinstance(value, str):
            raise InputError(f"{name}.{key}={value!r} should be str")


def as_groups(run: Run[Any, Any]) -> dict[str, Any]:
    """Return the run as option groups that `resolve` reads back to the same run: what config.yaml holds."""
    hidden = ("blocks", *run.kind.from_data)
    model = {f.name: getattr(run.model, f.name) for f in fields(run.model) if f.name not in hidden}
    groups: dict[str, Any] = {"task": run.task, "model": model}
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
        if clash or (_has_members(spec) and _layers(groups, run.kind) != [spec]):
            # One family option with two values, or for one of two members: only a pattern says that.
            groups = {"task": run.task, "model": {**model, "pattern": format_choice(specs)}}
    else:
        model["pattern"] = format_choice(specs)
    groups["train"] = as_dict(run.train)
    groups["data"] = asdict(run.data)
    if run.plugins:
        groups["plugins"] = list(run.plugins)
    return groups


def _layers(groups: Groups, kind: TaskKind[Any, Any, Any]) -> list[LayerSpec]:
    """Return the layer specifications with the groups' options given to the blocks that they belong to."""
    specs = _chosen(groups, kind)
    for name, key, value in _words(groups, specs):
        specs = _give(specs, name, key, value)
    return specs


def _chosen(groups: Groups, kind: TaskKind[Any, Any, Any]) -> list[LayerSpec]:
    """Return the layers as `impl` or `pattern` names them, before the groups' options."""
    attn_impl, ffn_impl = (groups.get("attn") or {}).get("impl"), (groups.get("ffn") or {}).get("impl")
    pattern = (groups.get("model") or {}).get("pattern")
    if pattern:
        if attn_impl:
            raise InputError(mixers_twice("attn.impl"))
        return parse_choice(pattern, default_ffn=ffn_impl or kind.ffn)
    mixer = attn_impl or kind.attn
    named("attn", mixer, Setting(*MIXER, mixer, "attn.impl"))
    feed = ffn_impl or default_ffn_of(mixer, kind.ffn)
    named("ffn", feed, Setting(*FFN, feed, "ffn.impl"))
    return [LayerSpec(mixer, feed)]


def _words(groups: Groups, specs: list[LayerSpec]) -> list[tuple[str, str, Any]]:
    """Return the options of blocks as (group, key, value), those first that name a member: which expert it is decides
    whose its options are."""
    own = {side: {k: v for k, v in (groups.get(side) or {}).items() if k != "impl"} for side in ("attn", "ffn")}
    given = {**_families(groups), **own}
    words = [(name, key, value) for name, options in given.items() for key, value in (options or {}).items()]
    return sorted(words, key=lambda word: word[1] not in _naming_options(specs))


def used_options(groups: Groups, task: str) -> tuple[dict[str, Any], Callable[[str, str], bool]]:
    """Return what of the groups the layers that they select have a use for, for searches that draw the blocks.

    Args:
        groups: option groups, as `resolve` reads them.
        task: the kind of task, by name.

    Returns: the groups without the options of blocks that no layer has, and a function that tells of a further option,
        by group and key, whether any layer has it.

    Raises:
        InputError: as `resolve` for the names of blocks.
    """
    specs = _chosen(groups, task_kind(task))
    kept = {name: options for name, options in groups.items() if name in ("task", "model", "train", "data", "plugins")}
    kept |= {side: {"impl": groups[side]["impl"]} for side in ("attn", "ffn") if (groups.get(side) or {}).get("impl")}
    for name, key, value in _words(groups, specs):
        if _has_place(specs, name, key):
            specs = _give(specs, name, key, value)
            kept[name] = {**kept.get(name, {}), key: value}
    return kept, lambda group, key: _has_place(specs, group, key)


def _has_place(specs: list[LayerSpec], group: str, key: str) -> bool:
    return any(_places(kind, name, group, key, spec, held) for spec in specs for kind, name, held in _members(spec))


def _naming_options(specs: list[LayerSpec]) -> set[str]:
    """Return options that name a member, such as a mixture's expert."""
    entries_used = [implementation(kind, name) for spec in specs for kind, name, _ in _members(spec)]
    return {option for entry in entries_used for option in members_of(entry, {})}


def _has_members(spec: LayerSpec) -> bool:
    return bool(_naming_options([spec]))


def _give(specs: list[LayerSpec], group: str, key: str, value: Any) -> list[LayerSpec]:
    """Hand one group option to every layer that has it; what a pattern says in brackets goes before."""
    given = []
    for spec in specs:
        changed: dict[str, Any] = {}
        for kind, name, held in _members(spec):
            for place in _places(kind, name, group, key, spec, held):
                option = layer_options(kind, name, held)[place]
                before = changed.get(f"{kind}_options", held)
                word = _checked(option, value, f"{group}.{key}")
                # Behind what is there, so that a run's own file, read again, keeps its order.
                changed[f"{kind}_options"] = before if place in before else {**before, place: word}
        given.append(replace(spec, **changed))
    return given


def _members(spec: LayerSpec) -> tuple[tuple[Kind, str, Mapping[str, Any]], ...]:
    return (("attn", spec.attn, spec.attn_options), ("ffn", spec.ffn, spec.ffn_options))


def _places(kind: Kind, name: str, group: str, key: str, spec: LayerSpec, held: Mapping[str, Any]) -> list[str]:
    """Return what a block calls an option of a group: the same if it lives there or is half of a pair that does, and
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
    """Return the standard mixer's and FFN's own options sit under `attn` and `ffn`, all others under their family."""
    return kind if entry.name == "standard" else entry.group


def _home(kind: Kind, name: str, key: str, spec: LayerSpec) -> tuple[str, str]:
    """Return the group in which config.yaml keeps an option of a block, and its name there."""
    entry = implementation(kind, name)
    option, dot, short = key.partition(".")
    if dot:
        member = members_of(entry, spec.ffn_options if kind == "ffn" else spec.attn_options)[option]
        return _group_of(member.kind, member), short
    if key in entry.options:
        return _group_of(kind, entry), key
    pair = find_block(spec.attn, spec.ffn)
    return (pair.group if pair is not None else _group_of(kind, entry)), key


def _checked(option: Option, value: Any, origin: str) -> Any:
    try:
        return option.check(value)
    except InputError:
        raise InputError(wrong_type(origin, value, option)) from None


def _families(groups: Groups) -> dict[str, Any]:
    return {name: groups[name] for name in groups if name not in OWN_GROUPS}
