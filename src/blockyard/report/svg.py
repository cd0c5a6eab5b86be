"""From matplotlib's SVG to one that belongs to a page: no addresses, CSS colours, its own ids."""

from __future__ import annotations

import re
from html import escape

from blockyard.report.palette import CSS_OF

_COLOUR = re.compile(r"#[0-9a-f]{6}")
_TAG = re.compile(r"<[^>]*>")
_LONG_NUMBER = re.compile(r"(-?\d+\.\d{2})\d+")


def for_the_page(svg: str, name: str, title: str) -> str:
    """The drawing as an inline element.

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
