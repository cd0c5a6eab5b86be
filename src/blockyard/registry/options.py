"""Options read from signatures: the one check behind Python calls, YAML files and command-line flags."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union

from blockyard.errors import InputError, suggest

# Python's own word for "no default": None is a default that many options have.
MISSING: Any = inspect.Parameter.empty
# More threads than any machine has are not started but end the process; torch's seeds have 64 bits, and a run's are
# counted up from the one given.
MOST_THREADS, MOST_SEED = 4096, 2**62
# Whole numbers that torch, numpy and files can hold: a longer one is a slip or an attempt.
_INTEGERS = range(-(2**63), 2**63)
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}
TRUTH_VALUES = frozenset(_TRUE | _FALSE)
_NONE = {"none", "null", "~"}
# Numbers as people write them beside a unit: 2.4M, 2.4 MHz, 2,400,000. A small m might be milli, so it is no prefix.
_SPELT_NUMBER = re.compile(r"(?P<number>[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?) ?(?P<prefix>[kKMG])?(Hz|S/s|Sps|B)?")
_PREFIXES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True)
class Option:
    """One typed keyword parameter.

    Args:
        name: the parameter's name.
        annotation: its resolved type; `Any` when the signature has none.
        default: its default, or `MISSING` when it is required.
        help: its text in the docstring's `Args:` section.
    """

    name: str
    annotation: Any
    default: Any
    help: str = ""

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """Members of a union, or the one type itself."""
        # `Optional[int]` and `int | None` are two types to Python and one to whoever writes a constructor.
        if typing.get_origin(self.annotation) in (Union, types.UnionType):
            return typing.get_args(self.annotation)
        return (self.annotation,)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The allowed values of a `Literal`, else nothing."""
        return tuple(v for a in self.alternatives if typing.get_origin(a) is Literal for v in typing.get_args(a))

    @property
    def settable(self) -> bool:
        """Whether a word on the command line can express it (a module cannot be)."""
        # One alternative is enough: `int | nn.Module` can be given a number on the command line, and a module in
        # Python.
        return any(_is_plain(a) for a in self.alternatives if a is not type(None))

    @property
    def type_name(self) -> str:
        """The type as help and errors show it: `int`, `float | none`, `gelu | relu`."""
        return " | ".join(self.none_word if a is type(None) else _type_name(a) for a in self.alternatives)

    @property
    def none_word(self) -> str:
        """How None is written: none, or null where one of the choices is called none."""
        return "null" if "none" in self.choices else "none"

    def check(self, value: Any) -> Any:
        """Return a Python or YAML value converted to the declared type (an int where a float is wanted).

        Raises:
            InputError: naming the option, the value and the type wanted.
        """
        # In the order of the signature: for `int | float` a whole number stays whole.
        for alternative in self.alternatives:
            fits, converted = _check(alternative, value)
            if fits:
                return converted
        raise InputError(f"{self.name}={value!r} should be {self.wanted(value)}")

    def parse(self, text: str) -> Any:
        """Read a value from a word of the command line.

        Raises:
            InputError: naming the option, the word and the type wanted.
        """
        # A choice that is called so comes first: "none" for `Literal["none", "full"] | None` is that choice. Then None,
        # and text last: "none" for `str | None` means None, and "4" for `str | int` means 4.
        # Exactly as written: choices are words of ours, and `None` is not `none`.
        if text in self.choices:
            return text
        # Text fits everything, so it is asked last.
        order = sorted(self.alternatives, key=lambda a: (a is not type(None), a is str))
        for alternative in order:
            fits, value = _parse(alternative, text)
            if fits:
                return value
        raise InputError(f"{self.name}={text!r} should be {self.wanted(text)}")

    def wanted(self, value: Any) -> str:
        """Return the type, and how a number is written that `value` spells in another way: `int, such as 2400000`."""
        numbers = {int, float} & set(self.alternatives)
        match = _SPELT_NUMBER.fullmatch(value) if isinstance(value, str) and numbers else None
        if match is None:
            return self.type_name
        number = float(match["number"].replace(",", "")) * _PREFIXES[(match["prefix"] or "").lower()]
        whole = number.is_integer() and abs(number) < 1e18
        # A part of a whole number is no help: 1.5 steps stay wrong.
        return self.type_name + (f", such as {int(number) if whole else number!r}" if whole or float in numbers else "")

    def describe(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        plain = isinstance(self.default, str | int | float | bool | None.__class__)
        # A tuple or a dataclass would make JSON that reads back as something else.
        default = None if self.required else self.default if plain else repr(self.default)
        return {"type": self.type_name, "required": self.required, "default": default, "help": self.help}


def _is_plain(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if annotation in (Any, int, float, str, bool) or origin is Literal:
        return True
    return origin in (list, tuple) and all(_is_plain(a) for a in typing.get_args(annotation) if a is not ...)


def _type_name(annotation: Any) -> str:
    if annotation is type(None):
        return "none"
    if typing.get_origin(annotation) is Literal:
        return " | ".join(str(v) for v in typing.get_args(annotation))
    if typing.get_origin(annotation) in (list, tuple):
        return f"list of {_type_name(typing.get_args(annotation)[0])}"
    return getattr(annotation, "__name__", str(annotation))


def _check(annotation: Any, value: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(annotation)
    if annotation is Any:
        return True, value
    if annotation is type(None):
        return value is None, None
    if origin is Literal:
        # By type, too: True equals 1, and is no choice of 1 and 2.
        match = [v for v in typing.get_args(annotation) if v == value and type(v) is type(value)]
        return bool(match), value
    if annotation is bool:
        # Not 0 and 1: `fused: 1` in a file is a slip more often than a truth.
        return isinstance(value, bool), value
    if annotation is int:
        # True is an int to Python; `steps: true` is nothing that anyone means.
        return isinstance(value, int) and not isinstance(value, bool) and value in _INTEGERS, value
    if annotation is float:
        ok = isinstance(value, int | float) and not isinstance(value, bool)
        # Not every whole number fits into a float.
        ok = ok and (isinstance(value, float) or value in _INTEGERS)
        return ok, float(value) if ok else value
    if annotation is str and isinstance(value, os.PathLike):
        # A run's file of settings holds text.
        value = os.fspath(value)
        return isinstance(value, str), value
    if origin in (list, tuple):
        member = typing.get_args(annotation)[0]
        if member is str and isinstance(value, str | os.PathLike):
            # One word where there may be several is a list of one: `path: prices.csv`.
            value = [value]
        if not isinstance(value, list | tuple):
            return False, value
        checked = [_check(member, v) for v in value]
        # YAML knows lists alone, and frozen dataclasses want tuples: converted to what the signature says.
        return all(ok for ok, _ in checked), origin(v for _, v in checked)
    # Modules, callables and the like: only Python can pass them, and their owner checks them.
    runtime = origin or annotation
    return (isinstance(value, runtime) if isinstance(runtime, type) else True), value


def _parse(annotation: Any, text: str) -> tuple[bool, Any]:
    origin = typing.get_origin(annotation)
    if annotation is type(None):
        return text.lower() in _NONE, None
    if annotation is str:
        return True, text
    if annotation is bool:
        return text.lower() in _TRUE | _FALSE, text.lower() in _TRUE
    if annotation is int:
        # Python's int() also reads Arabic digits, spaces and newlines around them.
        whole = _number(int, text) if re.fullmatch(r"[+-]?\d+(_\d+)*", text) else None
        return whole is not None and whole in _INTEGERS, whole
    if annotation is float:
        value = _number(float, text)
        return value is not None, value
    if origin is Literal:
        for value in typing.get_args(annotation):
            if str(value) == text:
                return True, value
        return False, None
    if origin in (list, tuple):
        member = typing.get_args(annotation)[0]
        # In the brackets of a choice numbers stand side by side: a comma there begins the next option.
        words = text.split(",") if member is str else re.split(r"[,\s]+", text.strip())
        parsed = [_parse(member, part.strip()) for part in words]
        return all(ok for ok, _ in parsed), origin(v for _, v in parsed)
    if annotation is Any:
        for kind in (type(None), bool, int, float):
            # "1" is a number before it is a truth value.
            if kind is bool and text.lower() not in ("true", "false"):
                continue
            fits, value = _parse(kind, text)
            if fits:
                return True, value
        return True, text
    return False, None


def _number(kind: Callable[[str], Any], text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        return None


@cache
def _signature_options(cls: type) -> tuple[Option, ...]:
    parameters: Mapping[str, inspect.Parameter]
    if dataclasses.is_dataclass(cls):
        # In the order of the fields, inherited ones first: the signature puts keyword-only ones last.
        signature = inspect.signature(cls).parameters
        parameters = {f.name: signature[f.name] for f in dataclasses.fields(cls) if f.name in signature}
        hints = typing.get_type_hints(cls)
    else:
        # mypy calls it unsound, since a subclass may have another; it is this class that is read.
        init = cls.__init__  # type: ignore[misc]
        parameters = types.MappingProxyType(
            {n: p for n, p in inspect.signature(init).parameters.items() if n != "self"}
        )
        hints = typing.get_type_hints(init)
    # The docstring is the one place where an option is described: help, `info` and the page of options read it.
    texts = argument_texts(cls)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = []
    for name, parameter in parameters.items():
        # What only stands in *args or **kwargs has no name that could be checked.
        if parameter.kind not in named:
            continue
        annotation = hints.get(name, Any)
        default = parameter.default
        if dataclasses.is_dataclass(cls):
            spec = next(f for f in dataclasses.fields(cls) if f.name == name)
            if spec.default_factory is not dataclasses.MISSING:
                # Made once: options are read, and a list that was shared by mistake would be written to by no one.
                default = spec.default_factory()
        # `window: int = None` is a common way of writing `int | None`.
        if default is None and type(None) not in typing.get_args(annotation) and annotation is not Any:
            annotation = annotation | None if isinstance(annotation, type) else Union[annotation, None]  # noqa: UP007
        found.append(Option(name, annotation, default, texts.get(name, "")))
    return tuple(found)


def options_of(cls: type) -> dict[str, Option]:
    """Return named constructor parameters of a class (or fields of a dataclass), in order."""
    return {option.name: option for option in _signature_options(cls)}


def argument_texts(cls: type) -> dict[str, str]:
    """Return the `Args:` section of the class's docstring, or of its constructor's: name -> one line of text.

    A dataclass also inherits the texts of the fields that it inherits.
    """
    # mypy: as above.
    init_doc = inspect.getdoc(cls.__init__) or ""  # type: ignore[misc]
    inherits = dataclasses.is_dataclass(cls)
    # Far ones first, so that a field described anew is told in the nearer class's words.
    bases = [base for base in reversed(cls.__mro__[1:]) if inherits and dataclasses.is_dataclass(base)]
    texts: dict[str, str] = {}
    for doc in (*(inspect.getdoc(base) or "" for base in bases), inspect.getdoc(cls) or "", init_doc):
        section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
        if not section:
            continue
        body = inspect.cleandoc("\n" + section.group(1))
        current = ""
        for line in body.splitlines():
            start = re.match(r"(\w+)(?: \([^)]*\))?:\s*(.*)", line)
            if start and not line[0].isspace():
                current = start.group(1)
                # A name, a colon, and text to the next name: the docstring style of the whole house.
                texts[current] = start.group(2)
            # A further line of the same text, indented.
            elif current:
                texts[current] = f"{texts[current]} {line.strip()}".strip()
    return texts


def check_options(
    known: Mapping[str, Option],
    given: Mapping[str, Any],
    where: str,
    *,
    owners: Callable[[str], list[str]] | None = None,
) -> dict[str, Any]:
    """Check given options against known ones and convert their values.

    Args:
        known: the options that exist here.
        given: name -> value, as Python or YAML gives them.
        where: what the options are for, as the error names it: "attention 'tva'".
        owners: names of the implementations that have an option, for the hint at a misplaced one.

    Raises:
        InputError: for an unknown option (with the nearest known one, or with those that have it), a missing
            required one, or a value of the wrong type.
    """
    checked = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"{where} has no option {unknown_option(name, known, owners)}")
        try:
            checked[name] = known[name].check(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    # After the values: a misspelt required option is told as misspelt, not as missing.
    missing = [name for name, option in known.items() if option.required and name not in given]
    if missing:
        raise InputError(f"{where} needs {', '.join(missing)}")
    return checked


def unknown_option(name: str, known: Mapping[str, Option], owners: Callable[[str], list[str]] | None = None) -> str:
    """Word `'rnak' (did you mean 'rank'?)`, or `'rank': 'rank' is an option of: tva`, or the options there are."""
    # The commonest slip with a mixture: `moe[d_ff=64]` for the width of its experts.
    inner = [other for other in known if other.endswith(f".{name}")]
    if inner:
        member = inner[0].partition(".")[0]
        return f"{name!r}: its {member} has it, write {inner[0]}=… (from Python {member}_options={{{name!r}: …}})"
    # Before the nearest spelling: a right name in the wrong place is likelier than a misspelt one.
    holders = owners(name) if owners else []
    if holders:
        return f"{name!r}: {belongs_to(name, holders)}"
    hint = suggest(name, known)
    return f"{name!r}{hint}" if hint else f"{name!r}; its options: {', '.join(known) or 'none'}"


def belongs_to(name: str, holders: Iterable[str]) -> str:
    """Word `'rank' is an option of: tva, vft`."""
    return f"{name!r} is an option of: {', '.join(without_pairs(holders))}"


def without_pairs(names: Iterable[str]) -> list[str]:
    """Return names of blocks, each once, without pairs (tva+vft) whose halves stand there too."""
    # In the order in which they were found, each once: an option of a pair is one of both halves, too.
    found = list(dict.fromkeys(names))
    return [name for name in found if not set(name.split("+")) & set(found) - {name}]
