"""The register of mixers, FFNs and paired blocks: names, traits, and options read from constructors.

A block's constructor is its schema: `options_of` reads the typed keyword parameters and the docstring's
`Args:` section, and everything that sets an option (Python, YAML, the command line) is checked against it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata
from typing import Any, Literal, TypeVar, overload

from blockyard.errors import InputError, suggest
from blockyard.machine.launch import is_first
from blockyard.registry.builtin import BUILTIN, TRAINING, Kind
from blockyard.registry.options import Option, check_options, options_of

KIND_WORDS: dict[str, str] = {"attn": "attention", "ffn": "FFN", "block": "block"}

ENTRY_POINT_GROUPS: dict[str, Kind] = {"blockyard.attention": "attn", "blockyard.ffn": "ffn"}

# What the model decides, never an option group: passed to a constructor that names it.
MODEL_PARAMETERS = ("d_model", "n_heads", "causal", "is_causal", "rope_theta", "rope_scaling", "norm_eps", "dropout")
# What constructors and `forward`s call hiding the future.
CAUSAL_WORDS = ("causal", "is_causal")


@dataclass(frozen=True)
class Traits:
    """What a mixer can do. Data: listed, shown, and the conformance suite is generated from it.

    Args:
        causal: can hide the future from every position.
        bidirectional: can let every position see all others.
        cache: what decoding keeps: nothing, keys and values, latents, or a recurrent state.
        padding: honours `padding_mask`.
        attn_mask: honours `attn_mask`.
        cross: attends to `context`.
        weights: returns attention weights on request.
        positions: honours explicit `positions`.
        order: knows by itself in which order positions stand (rotary angles, a filter, decay), its options at their
            defaults; None when nobody says so: then it is tried where it matters (see `models/order.py`).
        dtypes: types it computes in; complex64 and complex128 say that its input and output are complex.
    """

    causal: bool = False
    bidirectional: bool = True
    cache: Literal["none", "kv", "latent", "recurrent"] = "none"
    padding: bool = False
    attn_mask: bool = False
    cross: bool = False
    weights: bool = False
    positions: bool = False
    order: bool | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float64")

    @property
    def complex_valued(self) -> bool:
        """Whether input and output are complex."""
        return any(dtype.startswith("complex") for dtype in self.dtypes)


# Of attention that scores every pair of positions: it can do all that the protocol knows.
ATTENTION = Traits(
    causal=True,
    bidirectional=True,
    cache="kv",
    padding=True,
    attn_mask=True,
    cross=True,
    weights=True,
    positions=True,
    order=True,
)


@dataclass(frozen=True)
class Entry:
    """One registered implementation. `group` is its option family on the command line."""

    kind: Kind
    name: str
    group: str
    cls: type
    traits: Traits

    @property
    def options(self) -> dict[str, Option]:
        """Options a user sets; what the model decides is left out."""
        return {n: o for n, o in options_of(self.cls).items() if n not in MODEL_PARAMETERS}

    @property
    def source(self) -> str:
        """Module and class, as `pkg.module:Class`."""
        return f"{self.cls.__module__}:{self.cls.__qualname__}"

    @property
    def summary(self) -> str:
        """First paragraph of the class's docstring, on one line."""
        return " ".join((inspect.getdoc(self.cls) or "").split("\n\n")[0].split())


@dataclass
class _Register:
    entries: dict[tuple[Kind, str], Entry] = field(default_factory=dict)
    # Installed implementations that could not be imported, with what is wrong.
    broken: dict[tuple[Kind, str], str] = field(default_factory=dict)


_register = _Register()
C = TypeVar("C", bound=type)


def register_attn(name: str, *, group: str | None = None, traits: Traits | None = None) -> Callable[[C], C]:
    """Return a class decorator that registers a mixer. Without `traits` they are inferred from its signatures."""
    return _decorator("attn", name, group, traits)


def register_ffn(name: str, *, group: str | None = None, traits: Traits | None = None) -> Callable[[C], C]:
    """Return a class decorator that registers an FFN."""
    return _decorator("ffn", name, group, traits)


def register_block(attn: str, ffn: str, *, group: str | None = None) -> Callable[[C], C]:
    """Return a class decorator for a block that replaces the ordinary one when exactly this pair is chosen.

    The class is built as `cls(d_model, n_heads, **options)` with the options of both members and its own.
    """
    return _decorator("block", f"{attn}+{ffn}", group, None)


def _decorator(kind: Kind, name: str, group: str | None, traits: Traits | None) -> Callable[[C], C]:
    def add(cls: C) -> C:
        builtin_module = BUILTIN[kind].get(name)
        known = _register.entries.get((kind, name))
        taken = builtin_module is not None and cls.__module__ != builtin_module
        # The same class registered again is a module reload, not a clash.
        again = known is not None and (known.cls.__module__, known.cls.__qualname__) == (
            cls.__module__,
            cls.__qualname__,
        )
        if taken or (known is not None and not again):
            raise InputError(f"{KIND_WORDS[kind]} name {name!r} is already registered; choose another name")
        entry = Entry(kind, name, group or name, cls, traits or infer_traits(cls))
        _register.entries[(kind, name)] = entry
        return cls

    return add


def infer_traits(cls: type) -> Traits:
    """Return traits of a class that declares none: an argument its `forward` names is one it honours."""
    names = accepted_arguments(cls.forward) if hasattr(cls, "forward") else frozenset()
    return Traits(
        causal=bool(causal_by(options_of(cls), names)),
        cache="kv" if "cache" in names and hasattr(cls, "new_cache") else "none",
        padding="padding_mask" in names,
        attn_mask="attn_mask" in names,
        cross="context" in names,
        weights="return_weights" in names,
        positions="positions" in names,
    )


def causal_by(constructor: Collection[str], accepts: Collection[str]) -> tuple[str, str] | None:
    """Return how a mixer is made causal, in a model and in the conformance suite alike.

    Args:
        constructor: names of its constructor's parameters.
        accepts: names of the arguments of its `forward`.

    Returns: ("constructor", its parameter), ("argument", that of `forward`), ("mask", "attn_mask"), or None when it
        takes nothing of the kind.
    """
    for word in CAUSAL_WORDS:
        if word in constructor:
            return "constructor", word
    if "causal" in accepts:
        return "argument", "causal"
    if "attn_mask" in accepts:
        # Before is_causal, which beside a mask is often no more than a hint about it, as in torch.
        return "mask", "attn_mask"
    return ("argument", "is_causal") if "is_causal" in accepts else None


def accepted_arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Return names of the parameters a callable names (`**kwargs` does not count as naming anything)."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds)


def _load(kind: Kind, name: str) -> None:
    module = BUILTIN[kind].get(name)
    if module is not None:
        importlib.import_module(module)
        return
    for point in _entry_points(kind):
        if point.name == name:
            try:
                cls = point.load()
                if (kind, name) not in _register.entries:
                    _decorator(kind, name, None, None)(cls)
            except (Exception, SystemExit) as error:
                # Whoever installed it need not be its author, and did not ask for it here.
                what = f"{KIND_WORDS[kind]} {name!r}"
                _register.broken[(kind, name)] = broken_plugin(what, point, error)


def broken_plugin(what: str, point: metadata.EntryPoint, error: BaseException) -> str:
    """Word in one line what an installed plug-in would bring, where it comes from, and what is wrong with it."""
    package = f" of the package {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    first = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{what}{package} ({point.value}) cannot be imported: {type(error).__name__}: {first}"


def _entry_points(kind: Kind) -> list[metadata.EntryPoint]:
    groups = [g for g, k in ENTRY_POINT_GROUPS.items() if k == kind]
    return [point for group in groups for point in _installed(group, tuple(sys.path))]


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[metadata.EntryPoint, ...]:
    """List what installed packages offer: looking through them takes 10 ms, and names are asked for a hundred times
    in building a run."""
    return tuple(metadata.entry_points(group=group))


def has_additions() -> bool:
    """Return whether anything is registered or installed beside what is built in."""
    decorated = any(name not in BUILTIN[kind] for kind, name in _register.entries)
    return decorated or any(_installed(group, tuple(sys.path)) for group in ENTRY_POINT_GROUPS)


def names(kind: Kind) -> list[str]:
    """Return all registered names of a kind: built-in, installed (entry points, but for those found broken),
    decorated."""
    found = list(BUILTIN[kind])
    found += [p.name for p in _entry_points(kind)]
    found += [n for k, n in _register.entries if k == kind]
    return [name for name in dict.fromkeys(found) if (kind, name) not in _register.broken]


def implementation(kind: Kind, name: str) -> Entry:
    """Return the entry of a name.

    Raises:
        InputError: for an unknown name, with the nearest known one, or an installed one that cannot be imported.
    """
    if (kind, name) not in _register.entries and (kind, name) not in _register.broken:
        _load(kind, name)
    if (kind, name) in _register.broken:
        raise InputError(_register.broken[(kind, name)])
    if (kind, name) not in _register.entries:
        near = suggest(name, names(kind)).strip(" ()").replace("did", "Did", 1)
        hint = near or f"Known: {', '.join(names(kind))}; one of your own: import its module (--plugin MODULE)"
        raise InputError(f"no {KIND_WORDS[kind]} named {name!r}. {hint}")
    return _register.entries[(kind, name)]


def entries(kind: Kind) -> list[Entry]:
    """Return all entries of a kind, loaded. An installed plug-in that cannot be imported is named once and left out."""
    found = []
    for name in names(kind):
        try:
            found.append(implementation(kind, name))
        except InputError as error:
            if (kind, name) not in _register.broken:
                raise
            if is_first():
                print(f"note: {error}; it is left out", file=sys.stderr)
    return found


def find_block(attn: str, ffn: str) -> Entry | None:
    """Return the paired block registered for this mixer and FFN, if there is one."""
    name = f"{attn}+{ffn}"
    return implementation("block", name) if name in names("block") else None


def members_of(entry: Entry, options: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the implementations that an entry is made of by name (a mixture's expert): option -> entry.

    A class says so by `members = {"expert": "ffn"}`: its option `expert` names an FFN, whose options are written
    `expert.d_ff` and reach the constructor in `expert_options`.

    Args:
        entry: any implementation.
        options: options given so far, for the names; defaults stand in.
    """
    named: dict[str, Kind] = getattr(entry.cls, "members", {})
    known = options_of(entry.cls)
    return {option: implementation(kind, options.get(option, known[option].default)) for option, kind in named.items()}


def member_options(entry: Entry, options: Mapping[str, Any]) -> dict[str, Option]:
    """Return options of an entry's members, as `expert.d_ff`."""
    return {
        f"{option}.{name}": replace(own, name=f"{option}.{name}")
        for option, member in members_of(entry, options).items()
        for name, own in member.options.items()
    }


def fold_members(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `expert.d_ff=512` as constructors take it: `expert_options={"d_ff": 512}`."""
    folded: dict[str, Any] = {}
    for name, value in options.items():
        option, dot, key = name.partition(".")
        if dot:
            inner = f"{option}_options"
            folded[inner] = {**(folded.get(inner) or {}), key: value}
        else:
            folded[name] = {**(folded.get(name) or {}), **value} if isinstance(value, Mapping) else value
    return folded


def unfold_members(entry: Entry, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the other way: `expert_options={"d_ff": 512}` as `expert.d_ff=512`."""
    inner = {f"{option}_options": option for option in getattr(entry.cls, "members", {})}
    flat = {name: value for name, value in options.items() if name not in inner}
    for name, option in inner.items():
        flat.update({f"{option}.{key}": value for key, value in (options.get(name) or {}).items()})
    return flat


def create(kind: Kind, name: str, options: Mapping[str, Any]) -> Any:
    """Construct an implementation after checking its options."""
    entry = implementation(kind, name)
    known = {**options_of(entry.cls), **member_options(entry, options)}
    # A member's required options are asked for where it is constructed.
    known = {key: option for key, option in known.items() if "." not in key or key in options or not option.required}
    where = f"{KIND_WORDS[kind]} {name!r}"
    checked = check_options(known, options, where, owners=lambda key: owners(key, kind))
    return entry.cls(**fold_members(checked))


def training_options() -> tuple[type, ...]:
    """Return the dataclasses of the options that systems add to training."""
    found = [place.split(":") for place in TRAINING.values()]
    return tuple(getattr(importlib.import_module(module), name) for module, name in found)


def owners(option: str, kind: Kind | None = None) -> list[str]:
    """Return names of the implementations that have this option."""
    kinds: tuple[Kind, ...] = (kind,) if kind else ("attn", "ffn", "block")
    return list(dict.fromkeys(e.name for k in kinds for e in entries(k) if option in e.options))


def get_attention(name: str, **options: Any) -> Any:
    """Construct a mixer by name: `get_attention("standard", d_model=768, n_heads=12)`."""
    return create("attn", name, options)


def get_ffn(name: str, **options: Any) -> Any:
    """Construct an FFN by name: `get_ffn("swiglu", d_model=768)`."""
    return create("ffn", name, options)


def attention_class(name: str) -> type:
    """Return the class registered as a mixer."""
    return implementation("attn", name).cls


def ffn_class(name: str) -> type:
    """Return the class registered as an FFN."""
    return implementation("ffn", name).cls


@overload
def list_attention(details: Literal[False] = False) -> list[str]: ...
@overload
def list_attention(details: Literal[True]) -> list[dict[str, Any]]: ...
def list_attention(details: bool = False) -> list[str] | list[dict[str, Any]]:
    """Return names of the registered mixers, or with `details` their traits, options and sources."""
    return [describe(e) for e in entries("attn")] if details else names("attn")


@overload
def list_ffn(details: Literal[False] = False) -> list[str]: ...
@overload
def list_ffn(details: Literal[True]) -> list[dict[str, Any]]: ...
def list_ffn(details: bool = False) -> list[str] | list[dict[str, Any]]:
    """Return names of the registered FFNs, or with `details` their options and sources."""
    return [describe(e) for e in entries("ffn")] if details else names("ffn")


def describe(entry: Entry) -> dict[str, Any]:
    """Return an entry as plain data, ready for JSON."""
    description: dict[str, Any] = {
        "kind": entry.kind,
        "name": entry.name,
        "group": entry.group,
        "summary": entry.summary,
        "source": entry.source,
        "options": {name: option.describe() for name, option in entry.options.items()},
    }
    if entry.kind == "attn":
        description["traits"] = asdict(entry.traits)
    return description
