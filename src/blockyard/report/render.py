"""The figures of a report, drawn with matplotlib: as SVG that takes its colours from the page, and as PNG.

Figures are small (360 points wide) with full-sized text: on a phone they fill the screen unscaled, on a desk they stand
two abreast, slightly enlarged.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from blockyard.errors import require
from blockyard.report.chart import WIDTH, Chart
from blockyard.report.charts.attention import attention_pictures
from blockyard.report.charts.costs import memory_over_length, speed_over_length, trade_offs
from blockyard.report.charts.curves import loss_curves
from blockyard.report.charts.differences import differences_from_the_best
from blockyard.report.charts.finals import final_losses
from blockyard.report.charts.kernels import learnt_kernels
from blockyard.report.charts.load import expert_loads
from blockyard.report.charts.positions import loss_over_position
from blockyard.report.charts.rates import figures_over_rate
from blockyard.report.fonts import with_letters
from blockyard.report.palette import CSS_OF, LIGHT, PLACEHOLDER, Palette
from blockyard.report.parts import Parts
from blockyard.report.schema import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RC = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's own font
    "svg.hashsalt": "blockyard",
    "path.simplify": True,
    "path.simplify_threshold": 0.4,
}


def charts_of(report: Report, parts: Parts) -> list[Chart]:
    """Return the figures that this report has data for, in reading order, its task's own among them."""
    own = [chart for section in parts.sections(report) for chart in section.charts]
    costs = [
        *trade_offs(report),
        speed_over_length(report),
        memory_over_length(report),
        loss_over_position(report),
    ]
    inside = [*attention_pictures(report), *learnt_kernels(report), *expert_loads(report)]
    found = [
        differences_from_the_best(report),
        final_losses(report),
        *loss_curves(report),
        figures_over_rate(report),
        *costs,
        *own,
        *inside,
    ]
    return [chart for chart in found if chart is not None]


def render_svg(chart: Chart, report: Report, prefix: str = "") -> str:
    """Return a figure of a report as `figure_svg` draws it."""
    return figure_svg(chart, [choice["name"] for choice in report["choices"]], prefix)


def render_png(chart: Chart, report: Report) -> bytes:
    """Return a figure of a report as `figure_png` draws it."""
    return figure_png(chart, [choice["name"] for choice in report["choices"]])


def figure_svg(chart: Chart, names: Sequence[str], prefix: str = "") -> str:
    """Return inline SVG without network addresses; text and lines in CSS colours, ids prefixed with the chart's name.

    Args:
        chart: what to draw.
        names: the choices, in the order of their colours and markers.
        prefix: of the ids, before the chart's name, where several pages stand in one.
    """
    figure = _figure(chart, names, PLACEHOLDER, legend=False)
    buffer = io.StringIO()
    with drawing_style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return for_the_page(buffer.getvalue(), prefix + chart.name, chart.title)


def figure_png(chart: Chart, names: Sequence[str]) -> bytes:
    """Return the figure on white paper with its own legend, 160 dots per inch."""
    figure = _figure(chart, names, LIGHT, legend=chart.legend and len(names) > 1)
    buffer = io.BytesIO()
    with drawing_style():
        figure.savefig(buffer, format="png", dpi=160, facecolor=LIGHT.paper)
    return buffer.getvalue()


def drawing_style() -> Any:
    """Return sizes and fonts of every figure, for as long as it is drawn."""
    return with_letters(**_RC)


def _figure(chart: Chart, names: Sequence[str], palette: Palette, *, legend: bool) -> Any:
    figures = require("matplotlib.figure", extra="report")
    lines = require("matplotlib.lines", extra="report")
    with drawing_style():
        rows = (len(names) + 1) // 2 if legend else 0
        figure = figures.Figure(figsize=(WIDTH, chart.height + 0.22 * rows), layout="constrained")
        axes = figure.add_subplot()
        dress(axes, palette)
        chart.draw(axes, palette)
        if legend:
            handles = []
            for i, name in enumerate(names):
                look = palette.style(i)
                handles.append(
                    lines.Line2D(
                        [],
                        [],
                        color=look.colour,
                        marker=look.marker,
                        markersize=5,
                        dashes=look.dashes or (None, None),
                        label=name,
                    )
                )
            figure.legend(
                handles=handles,
                loc="outside lower center",
                ncols=2,
                frameon=False,
                handlelength=3.2,
                labelcolor=palette.ink,
            )
    return figure


def dress(axes: Axes, palette: Palette) -> None:
    """Draw frame, ticks and grid in the palette's colours."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.soft)
    axes.tick_params(colors=palette.soft, labelcolor=palette.ink, length=3)
    axes.xaxis.label.set_color(palette.ink)
    axes.yaxis.label.set_color(palette.ink)
    axes.grid(True, color=palette.grid, linewidth=0.7)
    axes.set_axisbelow(True)


_COLOUR = re.compile(r"#[0-9a-f]{6}")
_TAG = re.compile(r"<[^>]*>")
_LONG_NUMBER = re.compile(r"(-?\d+\.\d{2})\d+")


def for_the_page(svg: str, name: str, title: str) -> str:
    """Return the drawing as an inline element.

    Args:
        svg: what matplotlib wrote, in the placeholder colours.
        name: prefix of every id, so that the figures of a page do not meet.
        title: what a screen reader says.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)  # HTML knows SVG without being told; no address remains
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = _COLOUR.sub(lambda found: CSS_OF.get(found.group(), found.group()), svg)
    # A hundredth of a point is far below a pixel; what is to be read (a tick at 0.001) keeps its digits.
    svg = _TAG.sub(lambda tag: _LONG_NUMBER.sub(r"\1", tag.group()), svg)
    # One font for the page and its figures; the sizes stay matplotlib's. A <style> would reach the whole page.
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"[ \t]*\n\s*", "\n", svg)
    opening = f'<svg role="img" aria-label="{escape(title)}"'
    svg = re.sub(r'<svg( (?:width|height)="[^"]*")*', opening, svg, count=1)
    return re.sub(r' (?:width|height)="[\d.]+pt"', "", svg, count=2).strip()
