"""What the metadata take from elsewhere: addresses from one table, README.md with links that work on an index.

Hatchling calls `ReleaseMetadata` whenever it builds (pyproject.toml, `tool.hatch.metadata.hooks`). An index shows the
README far from the files beside it, so relative links become absolute ones, to the tag of this version; images to the
files themselves. While `tool.blockyard.release` has no repository, links stay as they are and there are no URLs:
`release_check.py` refuses to publish that.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOT = Path(__file__).resolve().parent.parent
PICTURES = (".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp")
# `](target)` and `](target "title")`; `[name]: target`; `src="target"` and `href="target"` of HTML.
_LINK = re.compile(r"""(?P<before>\]\(\s*|^\[[^\]]+\]:\s+|\b(?:src|href)=["'])(?P<target>[^\s)"'>]+)""", re.MULTILINE)
# Code, whose brackets are no links: fenced blocks and spans within a line.
_CODE = re.compile(
    r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)\s*$|(?P<ticks>`+)(?!`)[^\n]+?(?<!`)(?P=ticks)(?!`)", re.M | re.S
)


class Addresses(NamedTuple):
    """Where the project is found, as `tool.blockyard.release` of pyproject.toml has it; "" where there is none yet.

    Args:
        repository: `https://HOST/OWNER/NAME`, without a slash at its end.
        contact: an e-mail address for what should not be public.
    """

    repository: str = ""
    contact: str = ""

    def file(self, path: str, version: str) -> str:
        """Return the address of a file as it is in a version: the page that shows it, of a picture the file itself."""
        kind = "raw" if path.lower().partition("#")[0].endswith(PICTURES) else "blob"
        return f"{self.repository}/{kind}/v{version}/{path.removeprefix('./')}"

    def urls(self, version: str) -> dict[str, str]:
        """Return the links that an index shows beside the package."""
        if not self.repository:
            return {}
        return {
            "Repository": self.repository,
            "Documentation": f"{self.repository}/tree/v{version}/docs",
            "Changelog": self.file("CHANGELOG.md", version),
            "Issues": f"{self.repository}/issues",
        }


def read_addresses(root: Path = ROOT) -> Addresses:
    """Read the table of addresses; a key that is missing or misspelt is an error (TypeError), not an empty address."""
    table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["blockyard"]["release"]
    missing = {"repository", "contact"} - table.keys()
    if missing:
        raise TypeError(f"tool.blockyard.release of pyproject.toml has no {', '.join(sorted(missing))}")
    return Addresses(**table)


def relative_links(text: str) -> Iterator[re.Match[str]]:
    """Yield the links of a Markdown text that point to files beside it; what stands in code is none."""
    code = [found.span() for found in _CODE.finditer(text)]
    for found in _LINK.finditer(text):
        target = found["target"]
        if target.startswith(("#", "/")) or re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE):
            continue
        if not any(begin <= found.start() < end for begin, end in code):
            yield found


def with_absolute_links(text: str, addresses: Addresses, version: str) -> str:
    """Return the text with relative links made absolute; the text as it is where there is no repository."""
    if not addresses.repository:
        return text
    parts, done = [], 0
    for found in relative_links(text):
        begin, end = found.span("target")
        parts += [text[done:begin], addresses.file(found["target"], version)]
        done = end
    return "".join([*parts, text[done:]])


class ReleaseMetadata(MetadataHookInterface):
    """Fills in the fields that pyproject.toml calls dynamic, but for the version, which is read from the package."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        addresses, version = read_addresses(root), metadata["version"]
        text = (root / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": with_absolute_links(text, addresses, version),
        }
        metadata["urls"] = addresses.urls(version)
