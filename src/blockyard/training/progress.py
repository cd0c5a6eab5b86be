"""What a person watching sees: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol

from blockyard.errors import MissingExtra, require

# A log file is read afterwards: a line every ten seconds is three thousand in a night.
PLAIN_SECONDS = 10.0
# Five times a second looks smooth; drawing takes milliseconds, which small steps would feel.
BAR_SECONDS = 0.2


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, step: int, row: dict[str, Any]) -> None:
        """Show a step; `row` is a line of metrics (loss, tokens_per_second, ...)."""
        ...

    def say(self, line: str) -> None:
        """Show one line that stays."""
        ...

    def close(self) -> None: ...


def make_progress(steps: int, shown: bool) -> Progress:
    """Return a bar when standard error is a terminal and rich is installed, plain lines otherwise, or nothing."""
    if not shown:
        return Silent()
    if sys.stderr.isatty():
        try:
            return Bar(steps)
        # rich is comfort: a core without it trains as well.
        except MissingExtra:
            pass
    return Lines(steps)


class Silent:
    """Shows nothing."""

    def update(self, step: int, row: dict[str, Any]) -> None:
        return

    def say(self, line: str) -> None:
        return

    def close(self) -> None:
        return


class Lines:
    """A plain line every ten seconds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.shown = time.monotonic()
        # Time and step that the pace is counted from: the first line, since compiling and first steps stand before it.
        self.since: tuple[float, int] | None = None

    def update(self, step: int, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.shown < PLAIN_SECONDS and step < self.steps:
            return
        self.shown = now
        parts = [f"step {step}/{self.steps}", *_figures(row)]
        if self.since is None:
            self.since = (now, step)
        elif step > self.since[1]:
            # From the first line to this one: evaluations are in it, as they are in what is left.
            each = (now - self.since[0]) / (step - self.since[1])
            parts.append(f"{_clock(each * (self.steps - step))} left")
        self.say("  ".join(parts))

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        return


class Bar:
    """rich's progress bar with loss, tokens/s and the time left."""

    def __init__(self, steps: int) -> None:
        rich = require("rich.progress", extra="train")
        columns = [
            rich.TextColumn("{task.description}"),
            rich.BarColumn(),
            rich.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            rich.TextColumn("{task.fields[figures]}"),
            rich.TimeRemainingColumn(),
        ]
        console = require("rich.console", extra="train").Console(stderr=True)
        # Drawn by our own calls: a drawing thread would take turns with the training.
        self._bar = rich.Progress(*columns, console=console, auto_refresh=False)
        self._bar.start()
        self._task = self._bar.add_task("training", total=steps, figures="")
        self._shown = 0.0
        self._steps = steps

    def update(self, step: int, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown < BAR_SECONDS and step < self._steps:
            return
        self._shown = now
        self._bar.update(self._task, completed=step, figures="  ".join(_figures(row)), refresh=True)

    def say(self, line: str) -> None:
        # Paths and option lists hold brackets, which rich would read as markup.
        self._bar.console.print(line, highlight=False, markup=False)

    def close(self) -> None:
        self._bar.stop()


def _figures(row: dict[str, Any]) -> list[str]:
    shown = []
    if row.get("loss") is not None:
        shown.append(f"loss {row['loss']:.4f}")
    if row.get("val_loss") is not None:
        shown.append(f"val_loss {row['val_loss']:.4f}")
    if row.get("max_load") is not None:
        shown.append(f"max load {row['max_load']:.2f}x")
    if row.get("tokens_per_second"):
        shown.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    return shown


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
