"""Letters of every script in figures: names of assets, classes and files are the user's.

matplotlib brings one font, which has Latin, Greek and Cyrillic letters; behind it stand those with more letters that
this machine has. What none of them has is drawn as boxes and told once, in one line.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from blockyard.errors import require

OWN = "DejaVu Sans"
# As they come with Linux, Windows and macOS: Chinese first, whose fonts have most letters of Japanese, then Korean.
_WITH_MORE = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Microsoft YaHei", "SimHei", "PingFang SC",
    "Hiragino Sans GB", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Noto Sans CJK JP", "Yu Gothic", "Hiragino Sans",
    "Noto Sans CJK KR", "Malgun Gothic", "Apple SD Gothic Neo", "NanumGothic", "Noto Sans Thai", "Noto Sans Devanagari",
    "Arial Unicode MS",
)  # fmt: skip
_MISSING = re.compile(r"Glyph (\d+) .*missing from font", re.DOTALL)
_told: set[str] = set()


@cache
def families() -> tuple[str, ...]:
    """Return the fonts that a letter is looked for in, in this order."""
    manager = require("matplotlib.font_manager", extra="report")
    # One that is not installed would be complained about at every text.
    installed = set(manager.get_font_names())
    return (OWN, *(name for name in _WITH_MORE if name in installed))


@contextmanager
def with_letters(**style: Any) -> Iterator[None]:
    """Draw with these fonts, and with further settings of matplotlib; what has no letter is said once a process."""
    # By name: behind the generic sans-serif matplotlib looks for one font alone.
    fonts = {"font.family": list(families())}
    with require("matplotlib", extra="report").rc_context(fonts | style), warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            yield
        finally:
            said = list(heard)
    missing = ""
    for each in said:
        if match := _MISSING.search(str(each.message)):
            missing += chr(int(match.group(1)))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    _tell("".join(dict.fromkeys(letter for letter in missing if letter not in _told)))


def save_figure(figure: Any, file: Any, **options: Any) -> None:
    """Write a figure into an open file, with the letters that its texts need.

    Args:
        figure: matplotlib's.
        file: open for writing bytes.
        options: of `Figure.savefig`.
    """
    with with_letters():
        # Texts keep the fonts of the moment at which they were made.
        for text in figure.findobj(require("matplotlib.text", extra="report").Text):
            if text.get_family() == ["sans-serif"]:
                text.set_family(list(families()))
        figure.savefig(file, **options)


def _tell(letters: str) -> None:
    if not letters:
        return
    _told.update(letters)
    print(
        f"note: no font here has the letters {letters[:8]}{'…' if len(letters) > 8 else ''}; figures show boxes for "
        "them (install one that has: Noto Sans CJK for Chinese, Japanese and Korean)",
        file=sys.stderr,
    )
