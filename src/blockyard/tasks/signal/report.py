"""What a comparison of signal models adds to its report: accuracy over SNR, confusions, constellations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.parts import Parts, Section, Table, first_finished
from blockyard.report.schema import Report
from blockyard.tasks.signal.charts import Curve, draw_accuracy, draw_calibration, draw_confusion, telling


class SignalParts(Parts):
    """Accuracy over SNR, the maximum-likelihood bound, confusion matrices, constellations."""

    def how_to_read(self, report: Report) -> list[str]:
        lines = [
            "Accuracy is the share of right decisions on validation frames made apart from those of the training, the "
            "same number at every SNR and of every class. SNR is Es/N0 in dB: energy of a symbol over density of the "
            "noise." + _per_sample(report),
        ]
        if any("calibration" in figures for figures in _figures(report).values()):
            lines.append(
                "The expected calibration error is the mean distance between the probability of an answer and how "
                "often such answers are right; calibrated with a temperature that half of the validation frames give, "
                "judged by the other half."
            )
        if any("bound" in figures for figures in _figures(report).values()):
            lines.append(
                f"The bound is the maximum-likelihood classifier that knows {_bound_knows(report)}, by Monte Carlo: no "
                "classifier of these frames is right more often, except by chance in this sample of them. "
                + _knowledge(report)
            )
        return lines

    def sections(self, report: Report) -> list[Section]:
        found = _figures(report)
        if not found:
            return []
        sections = []
        with_snr = {name: figures for name, figures in found.items() if "snr" in figures}
        if with_snr:
            first = next(iter(with_snr.values()))
            lede = f"{first['frames_per_snr']} frames per SNR; the mean of the seeds."
            if "bound" in first:
                lede += f" Bound: {first['bound']['frames']:,} frames per SNR."
            sections.append(
                Section(
                    "Accuracy over SNR", lede, tables=[_accuracy_table(report, with_snr)], charts=[_over_snr(report)]
                )
            )
        snr = _telling(found)
        calibrated = {name: figures["calibration"] for name, figures in found.items() if "calibration" in figures}
        if calibrated:
            lede = "Of the first seed of every choice, over all SNRs."
            tables, charts = [_calibration_table(calibrated)], [_calibration_chart(report, calibrated)]
            sections.append(Section("How sure, and how often right", lede, tables=tables, charts=charts))
        confusions = [
            _confusion_chart(name, snr, figures["classes"], figures["confusion"][snr])
            for name, figures in found.items()
            if snr is not None and snr in figures.get("confusion", {})
        ]
        if confusions:
            lede = "Rows are what was sent, columns what the model says; first seed of every choice."
            sections.append(Section("What is taken for what", lede, charts=confusions))
        shown = next((f["constellations"] for f in found.values() if "constellations" in f), None)
        if shown:
            highest = max(next(iter(with_snr.values()))["snr"])
            lede = f"Samples of the validation frames at {highest:g} dB (Es/N0), as the models get them."
            sections.append(Section("Constellations", lede, charts=[_constellation_chart(shown)]))
        return sections


def _figures(report: Report) -> dict[str, Mapping[str, Any]]:
    """Return the figures of each choice's first finished run."""
    found = {}
    for choice in report["choices"]:
        run: Any = first_finished(choice["runs"])
        if run is not None and run.get("figures"):
            found[choice["name"]] = run["figures"]
    return found


def _knowledge(report: Report) -> str:
    """Return whether the models, which all have the same options, know what the bound knows."""
    first = next(iter(_figures(report).values()))
    if first.get("condition", "none") == "snr":
        return "The models are told the SNR, too."
    return "The models are not told the SNR (model.condition=snr would)."


def _bound_knows(report: Report) -> str:
    bounds = [figures["bound"] for figures in _figures(report).values() if "bound" in figures]
    return "the SNR and the phase" if bounds[0]["coherent"] else "the SNR, and averages over phase and timing"


def _mean_accuracy(choice: Any) -> list[float] | None:
    """Return accuracy at each SNR, averaged over the seeds that finished."""
    curves = [r["figures"]["accuracy"] for r in choice["runs"] if r.get("figures") and "accuracy" in r["figures"]]
    return [sum(column) / len(column) for column in zip(*curves)] if curves else None


def _accuracy_table(report: Report, found: Mapping[str, Mapping[str, Any]]) -> Table:
    first = next(iter(found.values()))
    rows = []
    for choice in report["choices"]:
        curve = _mean_accuracy(choice)
        if curve is not None:
            rows.append([choice["name"], *(f"{100 * value:.1f}" for value in curve)])
    if "bound" in first:
        rows.append(["maximum likelihood", *(f"{100 * value:.1f}" for value in first["bound"]["accuracy"])])
    least, most = first.get("per_sample", (0.0, 0.0))
    beside = f"; that of a sample is {_span(least, most)} dB lower" if most else ""
    return Table(
        f"Right decisions, per cent, at each SNR in dB (Es/N0{beside})",
        ["", *(f"{snr:g}" for snr in first["snr"])],
        rows,
    )


def _per_sample(report: Report) -> str:
    """Return how much lower the SNR of a sample is, where there are several to a symbol."""
    least, most = next((f["per_sample"] for f in _figures(report).values() if "per_sample" in f), (0.0, 0.0))
    if not most:
        return ""
    return f" The SNR of a sample is {_span(least, most)} dB lower."


def _span(least: float, most: float) -> str:
    return f"{least:.1f} to {most:.1f}" if most > least else f"{most:.1f}"


def _over_snr(report: Report) -> Chart:
    def draw(axes: Any, palette: Palette) -> None:
        curves, bound, chance = [], None, 0.0
        for index, choice in enumerate(report["choices"]):
            curve = _mean_accuracy(choice)
            run: Any = first_finished(choice["runs"])
            if curve is None or run is None:
                continue
            figures = run["figures"]
            curves.append(Curve("", figures["snr"], curve, index))
            chance = 1 / len(figures["classes"])
            bound = bound or (figures.get("bound") and (figures["snr"], figures["bound"]["accuracy"]))
        if bound:
            curves.append(Curve("maximum likelihood", *bound, None))
        draw_accuracy(axes, palette, curves, chance)

    caption = "Right decisions at each SNR; dotted: what no classifier can exceed; thin line: guessing."
    if any("bound" in figures for figures in _figures(report).values()):
        caption += f" The bound knows {_bound_knows(report)}. {_knowledge(report)}"
    return Chart("accuracy-over-snr", "Accuracy over SNR", caption, draw, group="signal")


def _calibration_table(found: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [
        [name, f"{c['raw']['ece']:.3f}", f"{c['calibrated']['ece']:.3f}", f"{c['temperature']:.2f}"]
        for name, c in found.items()
    ]
    return Table(
        "Expected calibration error, in probability (0 to 1)", ["", "as trained", "calibrated", "temperature"], rows
    )


def _calibration_chart(report: Report, found: Mapping[str, Mapping[str, Any]]) -> Chart:
    looks = {choice["name"]: index for index, choice in enumerate(report["choices"])}

    def draw(axes: Any, palette: Palette) -> None:
        draw_calibration(axes, palette, [("", looks[name], curves["raw"]) for name, curves in found.items()])

    caption = "As trained; on the dotted line a probability says how often it is right. Larger marks: more frames."
    return Chart("calibration", "Share right over probability", caption, draw, group="signal")


def _telling(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return the SNR at which mistakes say most, the same for all: where the best accuracy is nearest to three
    quarters."""
    shown = [figures for figures in found.values() if "confusion" in figures]
    if not shown:
        return None
    if "snr" not in shown[0]:
        return next(iter(shown[0]["confusion"]))
    best = [max(values) for values in zip(*(figures["accuracy"] for figures in shown))]
    return f"{shown[0]['snr'][telling(best)]:g}"


def _confusion_chart(name: str, snr: str, classes: list[str], shares: list[list[float]]) -> Chart:
    def draw(axes: Any, palette: Palette) -> None:
        draw_confusion(axes, palette, classes, shares)

    where = f" at {snr} dB (Es/N0)" if snr != "all" else ""
    caption = "Per cent of each row; the area of a square is its share."
    slug = "".join(c if c.isalnum() else "-" for c in f"{name}-{snr}")
    return Chart(f"confusion-{slug}", f"{name}{where}", caption, draw, legend=False, group="signal")


def _constellation_chart(shown: Mapping[str, list[list[float]]]) -> Chart:
    def draw(axes: Any, palette: Palette) -> None:
        # One cell per class on a common grid, so that the figure has one pair of axes.
        columns = min(3, len(shown))
        reach = max((abs(v) for points in shown.values() for z in points for v in z), default=1.0) * 1.15
        for number, (name, points) in enumerate(shown.items()):
            x0, y0 = 2 * reach * (number % columns), -2.3 * reach * (number // columns)
            look = palette.style(number)
            axes.scatter([x0 + z[0] for z in points], [y0 + z[1] for z in points], s=2, color=look.colour, alpha=0.6)
            axes.text(x0, y0 + reach, name, ha="center", fontsize=8, color=palette.ink)
        axes.set_aspect("equal")
        axes.set_axis_off()

    return Chart("constellations", "What is sent, with noise", "In-phase across, quadrature up.", draw,
                 legend=False, group="signal")  # fmt: skip
