"""The dotted option groups: `attn`, `ffn`, one per family of blocks, and the configuration dataclasses.

A group's options come from where they are used: constructors of the registered blocks, fields of dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blockyard.errors import InputError, suggest
from blockyard.registry.options import Option, belongs_to, options_of
from blockyard.registry.register import Entry, Kind, entries, names, owners

MIXER_GROUP, FFN_GROUP = "attn", "ffn"
PATTERN = Option(
    "pattern",
    str | None,
    None,
    "layers that differ, such as 'tva*3/standard[window=256]+swiglu' (three tva layers, then one standard); "
    "repeats over the depth; in place of attn.impl and ffn.impl",
)


@dataclass(frozen=True)
class Group:
    """Options that share the part before the dot.

    Args:
        name: that part; "" for the options of a command itself, which have no dot.
        help: what the options are for.
        own: options that always exist.
        members: registered blocks whose options live here; theirs count when the block is selected.
        unfit: blocks, by kind and name, that no model of the task can have: known, so that an error says why, but not
            offered.
    """

    name: str
    help: str
    own: Mapping[str, Option]
    members: tuple[Entry, ...] = ()
    unfit: frozenset[tuple[str, str]] = frozenset()

    @property
    def options(self) -> dict[str, Option]:
        """Every option that a flag can set, whichever block is selected."""
        found = dict(self.own)
        for entry in self.members:
            for name, option in entry.options.items():
                found.setdefault(name, option)
        return {name: option for name, option in found.items() if option.settable}

    def flag(self, option: str) -> str:
        """Return --name.option."""
        return f"--{self.name}.{option}" if self.name else f"--{option}"

    def chooses(self, option: str) -> str:
        """Return the kind of block that an option names: of the model's own, or of a member's (a mixture's expert)."""
        if option == "impl" and option in self.own:
            return self.name
        kinds = [getattr(entry.cls, "members", {}).get(option, "") for entry in self.holders(option)]
        return next(filter(None, kinds), "")

    def names_for(self, option: str) -> tuple[str, ...]:
        """Return the blocks that such an option may name in a model of the task; none for other options."""
        chosen = self.chooses(option)
        kinds: tuple[Kind, ...] = ("attn", "ffn")
        return tuple(name for kind in kinds if kind == chosen for name in names(kind) if (kind, name) not in self.unfit)

    def holders(self, option: str) -> list[Entry]:
        """Return the members that have the option."""
        return [entry for entry in self.members if option in entry.options]


def dataclass_group(
    name: str,
    help: str,
    cls: type,
    *,
    without: Iterable[str] = (),
    extra: Iterable[Option] = (),
    defaults: Mapping[str, Any] | None = None,
) -> Group:
    """Return the group of a configuration dataclass: one option per field, with other defaults where some are given."""
    hidden = set(without)
    own = {n: o for n, o in options_of(cls).items() if n not in hidden}
    own |= {n: replace(own[n], default=value) for n, value in (defaults or {}).items() if n in own}
    return Group(name, help, own | {option.name: option for option in extra})


def block_groups(default_attn: str, default_ffn: str, *, real: bool = False) -> list[Group]:
    """Return `attn`, `ffn` and a group per family, from the register (plug-ins are to be imported before).

    The standard mixer's and FFN's own options sit under `attn` and `ffn`; every other block's under its family.

    Args:
        default_attn: the mixer of a model that names none.
        default_ffn: likewise the FFN.
        real: the stream between the blocks is real, whatever is chosen: complex ones are not offered.
    """
    every = [entry for kind in ("attn", "ffn") for entry in entries(kind)]
    unfit = frozenset((entry.kind, entry.name) for entry in every if real and entry.traits.complex_valued)
    members: dict[str, list[Entry]] = {MIXER_GROUP: [], FFN_GROUP: []}
    for kind in ("attn", "ffn", "block"):
        for entry in entries(kind):
            home = kind if entry.name == "standard" else entry.group
            members.setdefault(home, []).append(entry)
    mixers = ", ".join(name for name in names("attn") if ("attn", name) not in unfit)
    ffns = ", ".join(name for name in names("ffn") if ("ffn", name) not in unfit)
    impls = {
        MIXER_GROUP: ("the mixer", Option("impl", str, default_attn, f"which mixer: {mixers}")),
        FFN_GROUP: ("the feed-forward part", Option("impl", str, default_ffn, f"which FFN: {ffns}")),
    }
    groups = []
    for name, served in members.items():
        own: dict[str, Option] = {}
        help = f"options of {serves(served)}"
        if name in impls:
            what, impl = impls[name]
            own, help = {"impl": impl}, f"{what}" + (f"; {help}" if served else "")
        group = Group(name, help, own, tuple(served), unfit)
        # A family without options has no flags and needs no heading.
        if group.options:
            groups.append(group)
    return groups


def serves(members: Iterable[Entry]) -> str:
    """Word "tva (attention), vft (FFN)"."""
    words = {"attn": "attention", "ffn": "FFN", "block": "the paired block"}
    return ", ".join(f"{entry.name} ({words[entry.kind]})" for entry in members)


def by_name(groups: Iterable[Group]) -> dict[str, Group]:
    """Index the groups by name, refusing a family that takes the name of another group."""
    found: dict[str, Group] = {}
    for group in groups:
        if group.name in found:
            first = found[group.name]
            culprits = serves(group.members or first.members)
            raise InputError(f"option group {group.name!r} of {culprits} is taken; register it with another group=")
        found[group.name] = group
    return found


def train_groups(task: str) -> dict[str, Group]:
    """Return the groups of `train TASK`: model, attn, ffn, families, train, data."""
    from blockyard.tasks.kind import task_kind
    from blockyard.training.config import TrainConfig

    kind = task_kind(task)
    hidden = (*kind.from_data, "blocks")
    model = dataclass_group("model", f"the {kind.title}", kind.model_config, without=hidden, extra=(PATTERN,))
    train = dataclass_group("train", "the training run", TrainConfig, defaults=kind.train_defaults)
    data = dataclass_group("data", kind.data_title, kind.data_config)
    return by_name(
        [model, *block_groups(kind.attn, kind.ffn, real=not kind.model_config.may_be_complex()), train, data]
    )


# What is wrong with a setting, in the same words from Python, a settings file and the command line. `origin` is where
# it stands: "vft.rank", "run.yaml: vft.rank", "--vft.rank".


def wrong_type(origin: str, value: Any, option: Option) -> str:
    """Word `--train.steps='many' should be int`."""
    return f"{origin}={value!r} should be {option.wanted(value)}"


def not_selected(origin: str, key: str, holders: Iterable[str], impls: Mapping[str, str | None]) -> str:
    """Word `--vft.rank: 'rank' is an option of: tva, vft; selected are attn.impl=standard, ffn.impl=swiglu`."""
    selected = ", ".join(f"{name}={impl}" for name, impl in impls.items() if impl)
    return f"{origin}: {belongs_to(key, holders)}; selected are {selected}"


def mixers_twice(origin: str) -> str:
    """Word that `attn.impl` and `model.pattern` are two ways of saying one thing."""
    return f"{origin}: model.pattern names the mixers already; leave one of them out"


def unknown_key(origin: str, key: str, known: Iterable[str], group: str) -> str:
    """Word `--vft.rnak: no option 'rnak' (did you mean 'rank'?)`, or whose option it is, or which options there are."""
    holders = owners(key)
    if holders:
        return f"{origin}: {belongs_to(key, holders)}"
    hint = suggest(key, known)
    if hint:
        return f"{origin}: no option {key!r}{hint}"
    return f"{origin}: no option {key!r}; {group} has: {', '.join(known) or 'none'}"


def unknown_group(name: str, groups: Mapping[str, Group], also: Iterable[str] = ()) -> str:
    """Word `no option group 'trian' (did you mean 'train'?)`; for a block's name, under which group its options
    stand."""
    homes = block_homes(name, groups)
    hint = f"; options of {name} stand under {homes}" if homes else suggest(name, [*filter(None, groups), *also])
    hint = hint or f"; groups: {', '.join(filter(None, groups))}"
    return f"no option group {name!r}{hint}"


def block_homes(name: str, groups: Mapping[str, Group]) -> str:
    """Return the groups under which the options of the block of this name stand; "" when there is no such block."""
    return " and ".join(sorted({g.name for g in groups.values() for entry in g.members if entry.name == name}))
