"""What a comparison of text classifiers adds to its report: macro-F1, and which classes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.parts import Parts, Section, Table, first_finished
from blockyard.report.schema import Choice, Report
from blockyard.report.stats import interval
from blockyard.report.units import plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A matrix with more classes than this is unreadable at the size of a figure.
MOST_CLASSES = 24


class ClassifyParts(Parts):
    """Macro-F1 and confusion matrices."""

    def facts(self, report: Report) -> list[tuple[str, str]]:
        data = report["provenance"]["data"]
        return [
            ("Classes", str(data["classes"])),
            ("Documents", f"{data['rows']:,} to train, {data['val_rows']:,} kept"),
        ]

    def how_to_read(self, report: Report) -> list[str]:
        return [
            "Accuracy is the share of documents kept aside whose class is found; higher is better. Macro-F1 is the "
            "mean of the classes' F1, so that rare classes count as much as common ones.",
            "Tokens and FLOPs are those of the documents on average, padding not counted.",
        ]

    def sections(self, report: Report) -> list[Section]:
        rows, charts = [], []
        for number, choice in enumerate(report["choices"]):
            found = [run["figures"] for run in choice["runs"] if run.get("figures")]
            if found:
                accuracy = plus_minus(*interval([figures["accuracy"] for figures in found]))
                rows.append(
                    [choice["name"], accuracy, plus_minus(*interval([figures["macro_f1"] for figures in found]))]
                )
                charts += _confusion(choice, number)
        if not rows:
            return []
        table = Table("Over all documents kept aside", ["choice", "accuracy", "macro-F1"], rows)
        return [Section("Which classes are found", "", [table], charts)]


def _confusion(choice: Choice, number: int) -> list[Chart]:
    run = first_finished(choice["runs"])
    figures = run.get("figures") if run else None
    if run is None or figures is None or len(figures["labels"]) > MOST_CLASSES:
        return []
    labels, counts = figures["labels"], figures["confusion"]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]

    def draw(axes: Axes, palette: Palette) -> None:
        colour = palette.style(number).colour
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                if share > 0:
                    # The area of a square is the share: readable in black and white, light and dark.
                    side = share**0.5 * 0.9
                    left, right, low, high = x - side / 2, x + side / 2, y - side / 2, y + side / 2
                    axes.fill([left, right, right, left], [low, low, high, high], color=colour, linewidth=0)
        axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.set_ylim(len(labels) - 0.4, -0.6)
        axes.set_aspect("equal")
        axes.set_xlabel("found")
        axes.set_ylabel("true")

    caption = (
        f"Seed {run['seed']}: the area of a square is the share of the row's class that was found to be the column's."
    )
    title = f"{choice['name']}: which class is taken for which"
    return [Chart(f"confusion-{number}", title, caption, draw, height=4.4, legend=False, group="own")]
