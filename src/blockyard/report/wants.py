"""What a choice must meet to be asked about, as it is typed: cache<1KiB, decode>=standard, memory<=0.5*standard."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blockyard.errors import InputError, suggest
from blockyard.report.schema import Choice
from blockyard.report.stats import SPEED_MARGIN

# How each figure of a report's choice is called; speeds are in the task's units per second, sizes in bytes.
FIGURES: dict[str, str] = {
    "cache": "bytes of cache per token",
    "decode": "generated tokens per second",
    "train": "training tokens per second",
    "memory": "bytes of memory that training needs",
    "parameters": "all parameters",
    "flops": "forward FLOPs per token",
}
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_UNITS = {"": 1, "B": 1, "k": 1e3, "kB": 1e3, "M": 1e6, "MB": 1e6, "G": 1e9, "GB": 1e9, "T": 1e12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# What is measured comes and goes by as much; what is counted does not.
_NOISE = dict.fromkeys(("decode", "train", "memory"), SPEED_MARGIN)
_WANT = re.compile(r"\s*([a-z]+)\s*(<=|>=|<|>)\s*(.+?)\s*")
_NUMBER = re.compile(r"([0-9][0-9_]*\.?[0-9]*(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")


@dataclass(frozen=True)
class Want:
    """One condition: a figure, a comparison, and a number or a part of another choice's figure.

    Args:
        text: as it was typed.
        figure: one of FIGURES.
        compare: <, <=, > or >=.
        value: a number, or the factor on the other choice's figure.
        other: the choice whose figure it is; None for a plain number.
    """

    text: str
    figure: str
    compare: str
    value: float
    other: str | None = None

    def met_by(self, choice: Choice, choices: Iterable[Choice]) -> bool | None:
        """Return whether a choice meets it; None where a figure is missing. Measured figures have 2 % of grace."""
        mine, bound = figure_of(choice, self.figure), self.value
        if self.other is not None:
            its = next((figure_of(c, self.figure) for c in choices if c["name"] == self.other), None)
            if its is None:
                return None
            bound *= its
        if mine is None:
            return None
        grace = _NOISE.get(self.figure, 0.0) if self.other is not None and "=" in self.compare else 0.0
        return _COMPARE[self.compare](mine, bound * (1 + grace if "<" in self.compare else 1 - grace))


def figure_of(choice: Choice, figure: str) -> float | None:
    """Return a figure of FIGURES; None where it was not, or could not be, measured."""
    speed, memory = choice["speed"], choice["memory"]
    if figure in ("decode", "train"):
        measured = speed.get(f"{figure}_wall") if speed else None
        # mypy: a measurement by a key that is not written out.
        return measured["median"] if measured else None  # type: ignore[index]
    if figure == "memory":
        return memory["peak_bytes"] if memory else None
    key = {"cache": "cache_bytes_per_token", "parameters": "parameters", "flops": "flops_per_token"}[figure]
    # mypy: as above.
    return choice[key]  # type: ignore[literal-required]


def parse_want(text: str, names: Iterable[str]) -> Want:
    """Read a condition.

    Args:
        text: FIGURE, one of < <= > >=, and a number with or without a unit, a choice, or FACTOR*CHOICE.
        names: the choices.

    Raises:
        InputError: for what is none of these.
    """
    found = _WANT.fullmatch(text)
    if found is None:
        raise InputError(f"want={text!r} should be a figure, < <= > or >=, and a number or a choice, as in cache<1KiB")
    figure, compare, value = found.groups()
    if figure not in FIGURES:
        raise InputError(f"want={text!r}: {figure!r} is not one of: {', '.join(FIGURES)}{suggest(figure, FIGURES)}")
    number = _NUMBER.fullmatch(value)
    if number is not None and number[2] in _UNITS:
        return Want(text, figure, compare, float(number[1].replace("_", "")) * _UNITS[number[2]])
    factor, star, rest = value.partition("*")
    known, other = list(names), value
    part = 1.0
    if value not in known and star:
        try:
            part, other = float(factor), rest.strip()
        except ValueError:
            other = value
    if other not in known:
        raise InputError(
            f"want={text!r}: {value!r} is neither a number (with {', '.join(u for u in _UNITS if u)}) nor one of the "
            f"choices: {', '.join(known)}{suggest(other, known)}"
        )
    return Want(text, figure, compare, part, other)
