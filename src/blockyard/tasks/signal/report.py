"""What a comparison of signal models adds to its report: accuracy over SNR, confusions, constellations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockyard.report.chart import Chart
from blockyard.report.palette import Palette
from blockyard.report.parts import Parts, Section, Table, first_finished
from blockyard.report.schema import Report


class SignalParts(Parts):
    """Accuracy over SNR, the maximum-likelihood bound, confusion matrices, constellations."""

    def how_to_read(self, report: Report) -> list[str]:
        lines = [
            "Accuracy is the share of right decisions on validation frames made apart from those of the training, the "
            "same number at every SNR and of every class. SNR is Es/N0 in dB.",
        ]
        if any("bound" in figures for figures in _figures(report).values()):
            lines.append(
                "The bound is the maximum-likelihood classifier that knows the SNR and the phase, by Monte Carlo: no "
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
            lede = f"Samples of the validation frames at {highest:g} dB, as the models get them."
            sections.append(Section("Constellations", lede, charts=[_constellation_chart(shown)]))
        return sections


def _figures(report: Report) -> dict[str, Mapping[str, Any]]:
    """Choice -> the figures of its first finished run."""
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


def _mean_accuracy(choice: Any) -> list[float] | None:
    """Accuracy at each SNR, averaged over the seeds that finished."""
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
    return Table("Right decisions, per cent, at each SNR in dB", ["", *(f"{snr:g}" for snr in first["snr"])], rows)


def _over_snr(report: Report) -> Chart:
    def draw(axes: Any, palette: Palette) -> None:
        bound: Any = None
        for index, choice in enumerate(report["choices"]):
            curve = _mean_accuracy(choice)
            run: Any = first_finished(choice["runs"])
            if curve is None or run is None:
                continue
            look = palette.style(index)
            figures = run["figures"]
            axes.plot(
                figures["snr"], [100 * value for value in curve], color=look.colour, linewidth=1.7,
                dashes=look.dashes or (None, None), marker=look.marker, markersize=4.5,
            )  # fmt: skip
            bound = bound or (figures.get("bound") and (figures["snr"], figures["bound"]))
            chance = 100 / len(figures["classes"])
            axes.axhline(chance, color=palette.grid, linewidth=0.8)
        if bound:
            snr, values = bound
            axes.plot(snr, [100 * v for v in values["accuracy"]], color=palette.ink, linewidth=1.0, dashes=(1, 1.5))
            axes.annotate(
                "maximum likelihood", (snr[len(snr) // 2], 100 * values["accuracy"][len(snr) // 2]),
                xytext=(-6, 4), textcoords="offset points", ha="right", fontsize=8, color=palette.ink,
            )  # fmt: skip
        axes.set_xlabel("SNR (dB)")
        axes.set_ylabel("right decisions (%)")
        axes.set_ylim(0, 102)

    caption = "Right decisions at each SNR; dotted: what no classifier can exceed; thin line: guessing."
    if any("bound" in figures for figures in _figures(report).values()):
        caption += f" The bound knows SNR and phase. {_knowledge(report)}"
    return Chart("accuracy-over-snr", "Accuracy over SNR", caption, draw, group="signal")


def _telling(found: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The SNR at which mistakes say most, the same for all: where the best accuracy is nearest to three quarters."""
    shown = [figures for figures in found.values() if "confusion" in figures]
    if not shown:
        return None
    if "snr" not in shown[0]:
        return next(iter(shown[0]["confusion"]))
    best = [max(values) for values in zip(*(figures["accuracy"] for figures in shown))]
    nearest = min(range(len(best)), key=lambda i: abs(best[i] - 0.75))
    return f"{shown[0]['snr'][nearest]:g}"


def _confusion_chart(name: str, snr: str, classes: list[str], shares: list[list[float]]) -> Chart:
    def draw(axes: Any, palette: Palette) -> None:
        count = len(classes)
        for row, values in enumerate(shares):
            for column, value in enumerate(values):
                side = 0.96 * value**0.5
                axes.add_patch(_square(column, row, side, palette.style(0 if row == column else 1).colour))
                if value >= 0.005:
                    axes.text(
                        column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7, color=palette.ink
                    )
        axes.set_xticks(range(count), classes, rotation=45, ha="right", fontsize=7)
        axes.set_yticks(range(count), classes, fontsize=7)
        axes.set_xlim(-0.5, count - 0.5)
        axes.set_ylim(count - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(False)

    where = f" at {snr} dB" if snr != "all" else ""
    caption = "Per cent of each row; the area of a square is its share."
    slug = "".join(c if c.isalnum() else "-" for c in f"{name}-{snr}")
    return Chart(f"confusion-{slug}", f"{name}{where}", caption, draw, legend=False, group="signal")


def _square(x: float, y: float, side: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - side / 2, y - side / 2), side, side, facecolor=colour, alpha=0.45, linewidth=0)


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
