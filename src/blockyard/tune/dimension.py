"""One option that is searched: a list of values or a range of numbers, and how it is written.

1e-4..1e-2 log      a range; `log` draws it evenly over the powers of ten
64..256 step 32     64, 96, …, 256
standard,tva        a list; `|` separates values that have commas of their own
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from blockyard.errors import InputError
from blockyard.registry.options import Option
from blockyard.registry.pattern import split_outside
from blockyard.report.units import word

# Drawn numbers are used as they are written in tables and settings files.
DIGITS = 4
_RANGE = re.compile(r"(?P<low>[+-]?\.?\d\S*?)\s*\.\.\s*(?P<high>\S+)(?P<rest>(?:\s+\S+)*)\s*")


class Trial(Protocol):
    """What draws: Optuna's trial, or a stand-in."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...


@dataclass(frozen=True)
class Dimension:
    """One option and the values it may take.

    Args:
        group: the part before the dot.
        key: the part after it.
        values: a list's values; empty for a range.
        low: a range's least value.
        high: its greatest.
        log: whether it is drawn evenly over its logarithm.
        step: distance of neighbouring values; none for all numbers between.
        whole: whether the range is of whole numbers.
    """

    group: str
    key: str
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def name(self) -> str:
        return f"{self.group}.{self.key}"

    @property
    def is_range(self) -> bool:
        return not self.values

    @property
    def is_ordered(self) -> bool:
        """Whether the values are numbers in rising order, which a sampler can know."""
        numbers = [v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool)]
        return self.is_range or (len(numbers) == len(self.values) > 2 and numbers == sorted(numbers))

    @property
    def is_log(self) -> bool:
        """Whether its axis is better logarithmic: a range drawn so, or numbers that mostly double."""
        if self.is_range or not self.is_ordered:
            return self.log
        return self.values[0] > 0 and self.values[-1] / self.values[0] >= 2 ** (len(self.values) - 1)

    @property
    def text(self) -> str:
        """The values as they are typed."""
        if self.is_range:
            step = f" step {word(self.step)}" if self.step is not None and not (self.whole and self.step == 1) else ""
            return f"{word(self.low)}..{word(self.high)}{' log' if self.log else ''}{step}"
        texts = [word(value) for value in self.values]
        return ("|" if any("," in text or ";" in text for text in texts) else ",").join(texts)

    def draw(self, trial: Trial) -> Any:
        """Return the trial's value. A list is drawn by position, so that values of any kind can stand in it."""
        if not self.is_range:
            if self.is_ordered:
                return self.values[trial.suggest_int(self.name, 0, len(self.values) - 1)]
            labels = [word(value) for value in self.values]
            return self.values[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        drawn = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        digits = DIGITS if self.step is None else 12
        return min(max(float(f"{drawn:.{digits}g}"), self.low), self.high)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {"name": self.name, "text": self.text, **asdict(self), "values": list(self.values)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Dimension:
        values = tuple(tuple(v) if isinstance(v, list) else v for v in data["values"])
        known = {name: data[name] for name in ("group", "key", "low", "high", "log", "step", "whole")}
        return cls(values=values, **known)


def read_dimension(group: str, option: Option, given: Any, origin: str) -> Dimension:
    """Return the values of an option as the user wrote them.

    Args:
        group: the option's group.
        option: the option, whose type every value must have.
        given: text of the command line or a file, or a file's list.
        origin: where it stands, for errors.

    Raises:
        InputError: naming the place, what stands there and what would be right.
    """
    if isinstance(given, str) and (match := _RANGE.fullmatch(given.strip())):
        return _read_range(group, option, match, f"{origin}={given!r}")
    if isinstance(given, str):
        values = [_parsed(option, text, origin) for text in _parts(option, given)]
    elif isinstance(given, list | tuple):
        values = [_checked(option, value, origin) for value in given]
    else:
        raise InputError(f"{origin}={given!r} should be a list of values, or a range such as '1e-4..1e-2 log'")
    shown = ",".join(word(value) for value in values)
    if len(values) < 2:
        raise InputError(f"{origin}={shown!r} leaves nothing to search; give it as --{group}.{option.name} {shown}")
    labels = [word(value) for value in values]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InputError(f"{origin}={shown!r} names {twice} twice")
    return Dimension(group, option.name, tuple(values))


def _parts(option: Option, text: str) -> list[str]:
    has_commas = "list of" in option.type_name
    separator = "|" if "|" in text or has_commas else ","
    return [part.strip() for part in split_outside(text, separator)]


def _parsed(option: Option, text: str, origin: str) -> Any:
    try:
        return option.parse(text)
    except InputError:
        raise InputError(f"{origin}: {text!r} should be {option.wanted(text)}") from None


def _checked(option: Option, value: Any, origin: str) -> Any:
    try:
        return option.check(value)
    except InputError:
        raise InputError(f"{origin}: {value!r} should be {option.wanted(value)}") from None


def _read_range(group: str, option: Option, match: re.Match[str], place: str) -> Dimension:
    whole, real = int in option.alternatives, float in option.alternatives
    if not (whole or real):
        raise InputError(
            f"{place}: a range is of numbers, and {group}.{option.name} is {option.type_name}; "
            "list its values, as in a,b,c"
        )
    ends = [_number(match[name], whole and not real, place, option) for name in ("low", "high")]
    low, high = ends
    whole = whole and all(isinstance(end, int) for end in ends)
    if not low < high:
        raise InputError(f"{place}: the range should rise")
    log, step = _range_words(match["rest"].split(), place)
    if log and low <= 0:
        raise InputError(f"{place}: a logarithmic range begins above 0")
    if step is not None:
        if log:
            raise InputError(f"{place}: a range is drawn evenly by log or by step, not both; list the values instead")
        if whole and step != int(step):
            raise InputError(f"{place}: the step between whole numbers should be whole")
        steps = (high - low) / step
        if abs(steps - round(steps)) > 1e-9 * max(1.0, steps):
            last = low + math.floor(steps) * step
            raise InputError(f"{place}: steps of {word(step)} from {word(low)} reach {word(last)}, not {word(high)}")
    return Dimension(group, option.name, (), low, high, log, step, whole)


def _range_words(words: list[str], place: str) -> tuple[bool, float | None]:
    log, step = False, None
    while words:
        first = words.pop(0)
        if first == "log":
            log = True
        elif first == "step" and words:
            step = _number(words.pop(0), False, place, None)
            if step <= 0:
                raise InputError(f"{place}: the step should be above 0")
        else:
            raise InputError(f"{place}: {first!r} behind a range should be log, or step and a number")
    return log, step


def _number(text: str, whole: bool, place: str, option: Option | None) -> int | float:
    if re.fullmatch(r"[+-]?\d+(_\d+)*", text):
        return int(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or whole:
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{place}: {text!r} should be {kind}" + (f" ({option.type_name})" if option else ""))
    return value
