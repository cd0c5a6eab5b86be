"""Colours, line styles and markers of the charts, the same for a choice everywhere it appears.

Okabe and Ito's palette, which stays distinct under every common colour blindness; each choice also has its own line
style and marker, so nothing rests on colour alone. In HTML a figure is drawn in placeholder colours which become CSS
variables: one drawing serves light, dark and print.
"""

from __future__ import annotations

from dataclasses import dataclass

# (light, dark): the dark column lightens what would sink into a dark page. Yellow is left out: invisible on white.
SERIES = (
    ("#0072b2", "#56b4e9"),  # blue
    ("#d55e00", "#f0803c"),  # vermillion
    ("#009e73", "#2fc79a"),  # bluish green
    ("#cc79a7", "#e29ac3"),  # reddish purple
    ("#b97f00", "#e6b040"),  # orange, darkened for white paper
    ("#5f5f5f", "#b8b8b8"),  # grey
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (2, 1.5), (7, 2, 2, 2), (9, 3), (3, 1, 1, 1, 1, 1))

# Marker outlines in a 12 x 12 box, for the key drawn in HTML.
MARKER_PATHS = {
    "o": "M6 2.2a3.8 3.8 0 1 0 .01 0z",
    "s": "M2.6 2.6h6.8v6.8h-6.8z",
    "^": "M6 1.8l4.4 8h-8.8z",
    "D": "M6 1.4l4.6 4.6-4.6 4.6-4.6-4.6z",
    "v": "M6 10.2l4.4-8h-8.8z",
    "P": "M4.4 1.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8v-3.2h2.8z",
    "X": "M3.4 1.6l2.6 2.6 2.6-2.6 1.8 1.8-2.6 2.6 2.6 2.6-1.8 1.8-2.6-2.6-2.6 2.6-1.8-1.8 2.6-2.6-2.6-2.6z",
}


@dataclass(frozen=True)
class Style:
    """How one choice is drawn."""

    colour: str
    marker: str
    dashes: tuple[float, ...]
    css: str  # the CSS variable that stands for the colour


@dataclass(frozen=True)
class Palette:
    """The colours of one drawing: of paper (`light`), or the placeholders that become CSS variables."""

    ink: str
    soft: str
    grid: str
    paper: str
    series: tuple[str, ...]

    def style(self, index: int) -> Style:
        """Return the look of choice number `index`; marker and dashes vary on after the colours repeat."""
        n = len(self.series)
        return Style(
            colour=self.series[index % n],
            marker=MARKERS[index % len(MARKERS)],
            dashes=DASHES[(index + index // n) % len(DASHES)],
            css=f"var(--c{index % n})",
        )


LIGHT = Palette("#1b1f24", "#5b6570", "#dfe3e8", "#ffffff", tuple(light for light, _ in SERIES))
PLACEHOLDER = Palette("#010101", "#010102", "#010103", "#010104", tuple(f"#0102{i:02x}" for i in range(len(SERIES))))

CSS_OF = {
    PLACEHOLDER.ink: "currentColor",
    PLACEHOLDER.soft: "var(--soft)",
    PLACEHOLDER.grid: "var(--line)",
    PLACEHOLDER.paper: "var(--paper)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(PLACEHOLDER.series)},
}
