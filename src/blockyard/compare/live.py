"""What a person watching a comparison sees: a live table on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from blockyard.errors import MissingExtra, require
from blockyard.report import units

PLAIN_SECONDS = 10.0
# Drawing a table of sixty runs takes rich some milliseconds, which come off the training.
TABLE_SECONDS = 0.25


@dataclass
class Line:
    """How far one run is.

    Args:
        name: the choice.
        seed: its seed.
        part: share of the budget spent, 0 to 1.
        loss: latest training loss, nats per token.
        val_loss: latest validation loss.
        tokens_per_second: tokens (or other units of input), over the training clock.
        status: waiting, training, finished, kept (from before), diverged.
    """

    name: str
    seed: int
    part: float = 0.0
    loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    status: str = "waiting"


# A worker's reporter is one, too: the training knows neither a terminal nor a pipe.
class Board(Protocol):
    """Shows the runs of a comparison."""

    def show(self, lines: list[Line], *, now: bool = False) -> None:
        """Show the state of all runs; `now` even if something was shown a moment ago."""
        ...

    def say(self, text: str) -> None:
        """Show one line that stays."""
        ...

    def close(self) -> None: ...


def make_board(shown: bool, unit: str = "token") -> Board:
    """Return a live table when standard error is a terminal and rich is there, plain lines otherwise, or nothing.

    Args:
        shown: whether to show anything.
        unit: what the task's input is counted in, in the singular.
    """
    board: Board = board_for(shown, lambda: Table(unit), lambda: Lines(unit))
    return board


def board_for(shown: bool, table: Callable[[], Any], lines: Callable[[], Any]) -> Any:
    """Return what `table` makes on a terminal where rich is there, elsewhere what `lines` makes, or nothing that
    shows."""
    if not shown:
        return Silent()
    if sys.stderr.isatty():
        try:
            return table()
        # Plain lines say the same.
        except MissingExtra:
            pass
    return lines()


class Silent:
    """Shows nothing."""

    def show(self, lines: Sequence[Any], *, now: bool = False) -> None:
        return

    def say(self, text: str) -> None:
        return

    def close(self) -> None:
        return


class Lines:
    """Every ten seconds one plain line for each run in training that has gone on since it last had one."""

    def __init__(self, unit: str = "token") -> None:
        self._unit = unit
        self._shown = time.monotonic()
        self._said: dict[tuple[str, int], float] = {}

    def show(self, lines: list[Line], *, now: bool = False) -> None:
        # `now` marks the end of a run, which has a line of its own.
        if time.monotonic() - self._shown < PLAIN_SECONDS:
            return
        self._shown = time.monotonic()
        for line in lines:
            run = (line.name, line.seed)
            # A run that waits for its turn has nothing new; in turns that is most of them.
            if line.status == "training" and self._said.get(run) != line.part:
                self._said[run] = line.part
                self.say("  ".join([f"{line.name} seed {line.seed}", *_figures(line, self._unit)]))

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        return


class LiveTable:
    """rich's live table, drawn by our own calls: a drawing thread would take turns with the training.

    A subclass says its `columns` (name -> "left" or "right") and the `cells` of a line; a number from 0 to 1 in the
    column "progress" becomes a bar.
    """

    columns: Mapping[str, Literal["left", "right"]]
    bar_width = 24

    def __init__(self) -> None:
        live = require("rich.live", extra="train")
        console = require("rich.console", extra="train").Console(stderr=True)
        # Not transient: the last state of the table stays on the screen above the report's path.
        self._live = live.Live(console=console, auto_refresh=False, transient=False)
        self._live.start()
        self._shown = 0.0

    def show(self, lines: Sequence[Any], *, now: bool = False) -> None:
        if not now and time.monotonic() - self._shown < TABLE_SECONDS:
            return
        self._shown = time.monotonic()
        self._live.update(self._table(lines), refresh=True)

    def cells(self, line: Any) -> Sequence[str | float]:
        """Return a line as a row."""
        raise NotImplementedError

    def _table(self, lines: Sequence[Any]) -> Any:
        table = require("rich.table", extra="train").Table(box=None, pad_edge=False)
        bar = require("rich.progress_bar", extra="train").ProgressBar
        text = require("rich.text", extra="train").Text
        for i, (name, side) in enumerate(self.columns.items()):
            # Names of choices are long and the thing that is looked for; they are not broken.
            table.add_column(name, justify=side, no_wrap=i == 0)
        for line in lines:
            cells = (
                # Text objects and not strings, which rich would read for markup: `tva[rank=4]` is a tag to it.
                text(cell) if isinstance(cell, str) else bar(total=1.0, completed=min(1.0, cell), width=self.bar_width)
                for cell in self.cells(line)
            )
            table.add_row(*cells)
        return table

    def say(self, text: str) -> None:
        # Above the table, which moves down.
        self._live.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._live.stop()


class Table(LiveTable):
    """All runs of a comparison."""

    def __init__(self, unit: str = "token") -> None:
        numbers = ("seed", "loss", "val loss", f"{unit}s/s")
        names = ("choice", "seed", "progress", *numbers[1:], "")
        self.columns = {name: "right" if name in numbers else "left" for name in names}
        super().__init__()

    def cells(self, line: Line) -> Sequence[str | float]:
        pace = units.NOTHING if line.tokens_per_second is None else f"{line.tokens_per_second:,.0f}"
        losses = (number(line.loss), number(line.val_loss))
        return (line.name, str(line.seed), line.part, *losses, pace, line.status)


def _figures(line: Line, unit: str) -> list[str]:
    found = [f"{min(1.0, line.part):.0%}"]
    if line.loss is not None:
        found.append(f"loss {line.loss:.4f}")
    if line.val_loss is not None:
        found.append(f"val_loss {line.val_loss:.4f}")
    if line.tokens_per_second is not None:
        found.append(f"{line.tokens_per_second:,.0f} {unit}s/s")
    return found


def number(value: float | None) -> str:
    """Write a loss, or a dash where there is none yet."""
    return units.NOTHING if value is None else f"{value:.4f}"
