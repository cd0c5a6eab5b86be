"""What a comparison on a recall task adds to its report: accuracy over the size of the task, or the random floor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from blockyard.report.chart import Chart
from blockyard.report.drawing import draw_line, name_powers
from blockyard.report.palette import Palette
from blockyard.report.parts import Parts, Section, Table
from blockyard.report.schema import Choice, Report
from blockyard.report.stats import interval
from blockyard.report.units import plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANINGS = {
    "mqar": "key-value pairs, then every key again at a random place: its value is to be given",
    "induction": "the token that once followed the last one is to be given",
    "copy": "a string is to be written once more",
    "lag": "the token a fixed number of positions ago is to be given",
    "selective_copy": "tokens scattered among blanks are to be given in order",
    "random": "uniformly random tokens: nothing can be recalled",
}


class RecallParts(Parts):
    """Accuracy over size."""

    def facts(self, report: Report) -> list[tuple[str, str]]:
        data = report["settings"]["data"]
        facts = [("Task", str(data["task"])), ("Length", str(data["length"])), ("Vocabulary", str(data["vocab_size"]))]
        return [*facts, ("Rows", _rows(data))] if data["task"] == "mqar" else facts

    def how_to_read(self, report: Report) -> list[str]:
        task = report["settings"]["data"]["task"]
        if task == "random":
            floor = report["quality"]["floor"]
            return [
                f"The tokens are {MEANINGS[task]}, so no causal model can have a loss below ln V = {floor:.3f} nats. A "
                "choice that does sees the future: its figures on other tasks mean nothing."
            ]
        guess = "guessing gives about 0"
        if task == "mqar":
            guess += ", and knowing no more than which values a row has gives 1 in as many as it has pairs"
        return [
            f"The task is {task}: {MEANINGS[task]}. Accuracy is the share of right answers on sequences that were not "
            f"trained on, the mean over the sizes; higher is better, and {guess}."
        ]

    def sections(self, report: Report) -> list[Section]:
        rows: dict[str, dict[int, list[float]]] = {c["name"]: accuracies(c) for c in report["choices"]}
        sizes = sorted({size for by_size in rows.values() for size in by_size})
        if not sizes:
            return []
        if report["settings"]["data"]["task"] == "random":
            return [_floor(report)]
        word = next(run["figures"]["size"] for c in report["choices"] for run in c["runs"] if "figures" in run)
        cells = [
            [name, *(plus_minus(*interval(by_size[size])) if size in by_size else "–" for size in sizes)]
            for name, by_size in rows.items()
        ]
        table = Table(f"Accuracy by {word}", ["choice", *(str(size) for size in sizes)], cells)
        charts = [_over_sizes(rows, sizes, word)] if len(sizes) > 1 else []
        lede = "One model for all sizes: every training row is of one of them."
        return [Section("How much it recalls", lede, [table], charts)]


def _rows(data: Mapping[str, Any]) -> str:
    """Return how rows of mqar were drawn, in words."""
    # Records from before there was a choice do not name it.
    if data.get("definition", "early") == "early":
        return "early: values may repeat, noise of values"
    noise = "blanks" if data.get("noise") == "zeros" else "random tokens"
    passes = f"pairs stand {data['passes']} times, " if data.get("passes", 1) != 1 else ""
    return f"zoology's: {passes}{noise} between questions, power_a {data.get('power_a')}"


def accuracies(choice: Choice) -> dict[int, list[float]]:
    """Return the accuracy of every run of a choice that finished, by size."""
    found: dict[int, list[float]] = {}
    for run in choice["runs"]:
        figures = run.get("figures") or {}
        for size, accuracy in zip(figures.get("sizes", []), figures.get("accuracy", [])):
            found.setdefault(size, []).append(accuracy)
    return found


def _floor(report: Report) -> Section:
    floor = report["quality"]["floor"]
    rows = []
    for row in report["ranking"]:
        mean = row["final"]["mean"]
        if mean is not None:
            rows.append([row["name"], f"{mean:.4f}", f"{mean - floor:+.4f}"])
    columns = ["choice", "loss (nats/token)", "above ln V"]
    return Section("Does it see the future?", f"ln V = {floor:.4f} nats.", [Table("", columns, rows)])


def _over_sizes(rows: dict[str, dict[int, list[float]]], sizes: list[int], word: str) -> Chart:
    def draw(axes: Axes, palette: Palette) -> None:
        for index, by_size in enumerate(rows.values()):
            look, known = palette.style(index), [size for size in sizes if size in by_size]
            if not known:
                continue
            means = [sum(by_size[size]) / len(by_size[size]) for size in known]
            draw_line(axes, known, means, look, markersize=5)
            axes.fill_between(
                known,
                [min(by_size[s]) for s in known],
                [max(by_size[s]) for s in known],
                color=look.colour,
                alpha=0.18,
                linewidth=0,
            )
        name_powers(axes, sizes)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(word)
        axes.set_ylabel("accuracy")

    caption = "Share of right answers on sequences not trained on. Line: mean over the seeds; band: their range."
    return Chart("recall-sizes", f"Accuracy over {word}", caption, draw, group="own")
