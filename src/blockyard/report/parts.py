"""What a task adds to a comparison and its report: a sample, sentences, sections with tables and charts.

A kind of task gives them by `TaskKind.report`, as a subclass of `Parts`. Every method has a default, so a task without
any has a report, too: the ranking, the curves, the costs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from blockyard.report.chart import Chart
from blockyard.report.schema import Report, Run, Sample


class Terms(Protocol):
    """What a task's parts may ask of a comparison's terms.

    Args:
        prompt: text that every model continues; None for the beginning of the held-out text.
        sample_tokens: tokens that each model writes.
        temperature: of that sampling.
    """

    @property
    def prompt(self) -> str | None: ...

    @property
    def sample_tokens(self) -> int: ...

    @property
    def temperature(self) -> float: ...


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first column holds names.

    Args:
        caption: what it shows, above it; "" for none.
        columns: the heads.
        rows: cells as they are to be read.
        words: columns that hold words rather than figures, by number.
        folded: whether the page shows it on request, under its caption.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page between the costs and the samples.

    Args:
        heading: its title.
        lede: a sentence or two below it; "" for none.
        tables: above the charts.
        charts: drawn like the report's own, each choice in its own colour and mark (`Palette.style(index)`).
    """

    heading: str
    lede: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    charts: Sequence[Chart] = field(default_factory=tuple)


class Parts:
    """A task's own parts; this one adds nothing."""

    def attention(self, folder: Path, data: Any) -> list[dict[str, Any]] | None:
        """Return what a finished run's attention looks at (`models/inside.py`), read from its folder."""
        return None

    def sample(self, terms: Terms, folder: Path, data: Any) -> Sample | None:
        """Return what a finished run writes, read from its folder; None for models that write nothing."""
        return None

    def notes(self, terms: Terms, data: Any, units_read: Mapping[str, int]) -> list[str]:
        """Return what a reader should know beside the figures.

        Args:
            terms: of the comparison.
            data: the task's data.
            units_read: tokens (or other units of input) that each run of a choice reads.
        """
        return []

    def facts(self, report: Report) -> list[tuple[str, str]]:
        """Return further terms at a glance, as label and value."""
        return []

    def how_to_read(self, report: Report) -> list[str]:
        """Return what the task's figures mean, first of all its quality."""
        return []

    def sections(self, report: Report) -> list[Section]:
        """Return sections made from `report` and nothing else; a run's `figures` are what the task's kind gave."""
        return []


def first_finished(runs: Sequence[Run]) -> Run | None:
    """Return the run with the lowest seed that finished."""
    return next((run for run in runs if run["status"] == "finished"), None)
