"""What a person watching a search sees: a live table of the best and the latest trials, or a line when one ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blockyard.compare.live import Lines as PlainLines
from blockyard.compare.live import LiveTable, board_for, number
from blockyard.report.units import word

LATEST = 8


@dataclass
class Line:
    """How far one run is.

    Args:
        name: "trial 7", or "default seed 1".
        settings: what was drawn.
        part: share of the budget, 0 to 1.
        value: its figure so far.
        status: training, finished, pruned, diverged, failed, repeated.
        note: why it ended, if not at its end.
        is_best: whether no finished one is better.
    """

    name: str
    settings: Mapping[str, Any]
    part: float = 0.0
    value: float | None = None
    status: str = "training"
    note: str = ""
    is_best: bool = False

    @property
    def text(self) -> str:
        """The settings in one line."""
        return ", ".join(f"{name}={word(value)}" for name, value in self.settings.items())


def make_board(shown: bool, metric: str) -> Any:
    """Return a table when standard error is a terminal and rich is installed, plain lines otherwise, or nothing."""
    return board_for(shown, lambda: Table(metric), lambda: Lines(metric))


class Lines(PlainLines):
    """One plain line when a run ends."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric
        self._ended: dict[str, str] = {}
        self._begun = False

    def show(self, lines: Sequence[Any], *, now: bool = False) -> None:
        for line in lines:
            if line.status != self._ended.get(line.name, "training"):
                self._ended[line.name] = line.status
                # What had ended before this process began is only counted.
                if self._begun:
                    self.say(self._text(line))
        self._begun = True

    def _text(self, line: Line) -> str:
        settings = f": {line.text}" if line.settings else ""
        figure = f"{self._metric} {line.value:.4f}" if line.value is not None else ""
        if line.status == "finished":
            return f"{line.name}: {figure}{' (the best so far)' if line.is_best else ''}{settings}"
        if line.status == "pruned":
            return f"{line.name}: stopped at {line.part:.0%}, {figure}{settings}"
        return f"{line.name}: {line.status}{f', {line.note}' if line.note else ''}{settings}"


class Table(LiveTable):
    """The best trial, those in training, and the latest."""

    bar_width = 12

    def __init__(self, metric: str) -> None:
        self.columns = {"run": "left", "progress": "left", metric: "right", "": "left", "settings": "left"}
        super().__init__()

    def show(self, lines: Sequence[Line], *, now: bool = False) -> None:
        super().show(shown_lines(lines), now=now)

    def cells(self, line: Line) -> Sequence[str | float]:
        about = line.note if line.status in ("failed", "diverged") else line.text
        return (line.name + (" *" if line.is_best else ""), line.part, number(line.value), line.status, about)


def shown_lines(lines: Sequence[Line]) -> list[Line]:
    """Return what fits on a screen: the best one, what is in training, and the latest."""
    best = [line for line in lines if line.is_best]
    recent = [line for line in lines if line.status == "training" or line in lines[-LATEST:]]
    return [*best, *(line for line in recent if line not in best)]
