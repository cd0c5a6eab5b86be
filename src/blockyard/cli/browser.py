"""Opening a page in a browser, where there is one and a person in front of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

WHEN = ("auto", "yes", "no")


def is_somebody_there() -> bool:
    """Return whether a person at a terminal of this machine would see a window: not in CI, not over a bare ssh."""
    terminal = sys.stdout.isatty() and sys.stderr.isatty()
    if not terminal or os.environ.get("CI"):
        return False
    if sys.platform in ("darwin", "win32"):
        return "SSH_CONNECTION" not in os.environ
    # Also over ssh, where it forwards a display. Without one a browser within the terminal would take it over.
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(page: Path, how: str) -> bool:
    """Open a page if that is wanted; returns whether a browser was told to.

    Args:
        page: the file.
        how: auto (if somebody is there), yes or no.
    """
    if how == "no" or (how == "auto" and not is_somebody_there()):
        return False
    # Imported here, as every overview imports this file.
    import webbrowser

    try:
        return webbrowser.open(page.absolute().as_uri())
    except (webbrowser.Error, OSError):
        return False
