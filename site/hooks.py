"""What the site needs beyond mkdocs: pages from files of the repository's root, API pages, formulas without a network.

README.md, README.zh.md, CHANGELOG.md, …   become index.md, zh/index.md, changes.md, …
docs/api.md                                the one list of public names: each section becomes a page with the
                                           docstrings of its names, and each name there a link to its own
tutorials                                  those that lie in docs/tutorials are put under "Tutorials"
a fence of `math`                          is written as MathML, which browsers draw by themselves
comments of HTML                           are left out: they are for the tests of code blocks
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository's root.
FROM_ROOT = {
    "index.md": "README.md",
    "zh/index.md": "README.zh.md",
    "changes.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}
SECTION = re.compile(r"^## (blockyard[\w.]*)$")
NAME = re.compile(r"^- `(\w+)`: (.*)$")
FENCE = re.compile(r"^( *)(`{3,})[^`]*$")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def sections() -> dict[str, list[str]]:
    """Read the packages of docs/api.md with their names."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "api.md").read_text(encoding="utf-8").splitlines():
        if section := SECTION.match(line):
            found[section[1]] = []
        elif entry := NAME.match(line):
            found[list(found)[-1]].append(entry[1])
    return {package: names for package, names in found.items() if names}


def root_pages() -> dict[str, str]:
    return {page: name for page, name in FROM_ROOT.items() if (ROOT / name).is_file()}


def title_of(page: Path) -> str:
    """Return the first heading of a page."""
    return next(line[2:] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("# "))


def tutorials(folder: str) -> list[Any]:
    """List the pages of a folder of docs/ for the navigation, an overview first."""
    files = sorted(
        (ROOT / "docs" / folder).glob("*.md"), key=lambda file: (file.stem not in ("README", "index"), file.name)
    )
    return [{title_of(file): f"{folder}/{file.name}"} for file in files]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that are made of files."""
    made = {
        "Tutorials": tutorials("tutorials"),
        "教程": tutorials("zh/tutorials"),
        "Packages": [{package: f"api/{package}.md"} for package in sections()],
    }
    config.nav = _filled(config.nav or [], made)
    if "contributing.md" in root_pages():
        reference = next(entry["Reference"] for entry in config.nav if "Reference" in entry)
        reference.append({"Contributing": "contributing.md"})
    config.extra_css.append("site.css")
    return config


def _filled(entries: list[Any], made: dict[str, list[Any]]) -> list[Any]:
    kept = []
    for entry in entries:
        if isinstance(entry, dict):
            (title, inside), *_ = entry.items()
            if isinstance(inside, list):
                inside = made[title] if not inside else _filled(inside, made)
                # A part that has no page yet is none.
                if not inside:
                    continue
            entry = {title: inside}
        kept.append(entry)
    return kept


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/, and the style sheet."""
    for page, name in root_pages().items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    for package, names in sections().items():
        text = [f"# {package}", f"[What each name is, in a line](../api.md#{package.replace('.', '')})"]
        text += [f"::: {package}.{name}" for name in names]
        files.append(File.generated(config, f"api/{package}.md", content="\n\n".join(text) + "\n"))
    style = (Path(__file__).parent / "site.css").read_text(encoding="utf-8")
    files.append(File.generated(config, "site.css", content=style))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Write a page as the site has it: links, names of the API, formulas, no comments."""
    uri = page.file.src_uri
    markdown = re.sub(r"^ *<!--.*?-->\n?", "", markdown, flags=re.DOTALL | re.MULTILINE)
    markdown = _outside_code(markdown, lambda text: _links(text, uri, files))
    if uri == "api.md":
        markdown = _names(markdown)
    if uri.startswith("zh/"):
        # A line's end between two characters of Chinese is no blank.
        markdown = re.sub(r"(?<=[\u3000-\u9fff\uff00-\uffef])\n(?=[\u4e00-\u9fff])", "", markdown)
    return re.sub(r"^```math\n(.*?)^```$", _formula, markdown, flags=re.DOTALL | re.MULTILINE)


def _outside_code(markdown: str, change: Any) -> str:
    """Change the lines of a page that stand in no fence."""
    parts: list[str] = []
    fence = ""
    for line in markdown.splitlines():
        opened = FENCE.match(line)
        if opened and not fence:
            fence = opened[2]
        elif fence and line.strip() == fence:
            fence = ""
        elif not fence:
            line = change(line)
        parts.append(line)
    return "\n".join(parts) + "\n"


def _links(text: str, uri: str, files: Files) -> str:
    """Point links to where the site has their targets; what it has not, sources and tests, is named without a link."""

    def one(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if re.match(r"[a-z]+:|#", target):
            return link[0]
        path, _, anchor = target.partition("#")
        here = posixpath.dirname(root_pages().get(uri) or f"docs/{uri}")
        file = posixpath.normpath(posixpath.join(here, path))
        known = {name: made for made, name in root_pages().items()}
        found = known.get(file, file.removeprefix("docs/") if file.startswith("docs/") else "")
        if found.endswith(("gallery", "tutorials", "notebooks")):
            found += "/README.md"
        if files.get_file_from_path(found) is None:
            # One within docs/ that is not there is a fault, which mkdocs tells.
            return link[0] if file.startswith("docs/") or picture or not (ROOT / file).exists() else words
        there = posixpath.relpath(found, posixpath.dirname(uri) or ".")
        return f"{picture}[{words}]({there}{'#' + anchor if anchor else ''})"

    return LINK.sub(one, text)


def _names(markdown: str) -> str:
    package, lines = "", []
    for line in markdown.splitlines():
        if section := SECTION.match(line):
            package = section[1]
        elif entry := NAME.match(line):
            line = f"- [`{entry[1]}`](api/{package}.md#{package}.{entry[1]}): {entry[2]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _formula(fence: re.Match[str]) -> str:
    return f'<div class="formula">{convert(fence[1].strip(), display="block")}</div>'
