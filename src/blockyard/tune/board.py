"""What a person watching a search sees: a live table of the best and the latest trials, or a line when one ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from blockyard.compare.live import LiveTable, board_for
from blockyard.errors import require
from blockyard.report import units
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


class Board(Protocol):
    """Shows the runs of a search."""

    def show(self, lines: Sequence[Line], *, now: bool = False) -> None: ...

    def say(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_board(shown: bool, metric: str) -> Board:
    """A table when standard error is a terminal and rich is installed, plain lines otherwise, or nothing."""
    board: Board = board_for(shown, lambda: Table(metric), lambda: Lines(metric))
    return board


class Lines:
    """One plain line when a run ends."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        self._told: dict[str, str] = {}
        self._begun = False

    def show(self, lines: Sequence[Line], *, now: bool = False) -> None:
        for line in lines:
            if line.status != self._told.get(line.name, "training"):
                self._told[line.name] = line.status
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

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        return


class Table(LiveTable):
    """The best trial, those in training, and the latest."""

    def __init__(self, metric: str) -> None:
        self._metric = metric
        super().__init__()

    def _table(self, lines: Sequence[Line]) -> Any:
        table = require("rich.table", extra="train").Table(box=None, pad_edge=False)
        bar = require("rich.progress_bar", extra="train").ProgressBar
        text = require("rich.text", extra="train").Text
        for name in ("run", "progress", self._metric, "", "settings"):
            table.add_column(name, justify="right" if name == self._metric else "left", no_wrap=name == "run")
        for line in shown_lines(lines):
            table.add_row(
                text(line.name + (" *" if line.is_best else "")),
                bar(total=1.0, completed=min(1.0, line.part), width=12),
                units.NOTHING if line.value is None else f"{line.value:.4f}",
                line.status,
                text(line.note if line.status in ("failed", "diverged") else line.text),
            )
        return table


def shown_lines(lines: Sequence[Line]) -> list[Line]:
    """What fits on a screen: the best one, what is in training, and the latest."""
    best = [line for line in lines if line.is_best]
    recent = [line for line in lines if line.status == "training" or line in lines[-LATEST:]]
    return [*best, *(line for line in recent if line not in best)]
