"""Fenced blocks of a page of documentation, with what comments before them say of how they are run.

    <!-- not run: REASON -->              what it needs no test has: a GPU, a network, a cluster; its form is checked
    <!-- run with: --train.steps 2 -->    these words are added to each command of the block that knows them
    <!-- slow -->                         under the marker `slow` alone; its form is checked in any case

Several may stand above one block, each on a line of its own. A block within a comment of several lines, which no reader
sees, is a block like any other: it makes what the page takes for granted. A `python` block that begins with a comment
`# name.py` is a file of that name, as one that begins with `# name.yaml` is in `yaml`.
"""

from __future__ import annotations

import io
import re
import shlex
import textwrap
import tokenize
from dataclasses import dataclass
from pathlib import Path

from tests.fixtures.folders import ROOT

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[\w+-]*)[^`]*$")
NOTE = re.compile(r"^ *<!-- (?P<note>[^>]*) -->$")
FILE = re.compile(r"# ([\w.-]+\.(?:py|yaml|yml))$")
RUN = ("sh", "python")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: the file.
        number: of the blocks of its page, from 1.
        line: of the file, that the text begins on, from 1.
        language: as the fence names it; "" for none.
        text: what stands between the fences, without the indent of these.
        reason: why it is not run; None where it is.
        words: what is added to its commands.
        slow: run under the marker alone.
    """

    page: Path
    number: int
    line: int
    language: str
    text: str
    reason: str | None = None
    words: tuple[str, ...] = ()
    slow: bool = False

    @property
    def place(self) -> str:
        """Page, block and line, as a failure names them."""
        page = self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page.name
        return f"{page}, block {self.number} (line {self.line})"

    @property
    def file(self) -> str | None:
        """The name of the file that the block is; None for what is typed."""
        first = self.text.split("\n", 1)[0]
        named = FILE.match(first) if self.language in ("python", "yaml") else None
        return named[1] if named else None

    @property
    def code(self) -> str:
        """The text with empty lines before it, so that a traceback counts the lines of the page."""
        return "\n" * (self.line - 1) + self.text


def pages() -> list[Path]:
    """All pages whose blocks are run: README, and what lies in docs/."""
    return [*sorted(ROOT.glob("README*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """Read the fenced blocks of a page in order.

    Raises:
        ValueError: a fence that is not closed, or a comment straight above a block that is none of the three.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    found: list[Block] = []
    notes: list[str] = []
    number, at = 0, 0
    while at < len(lines):
        if noted := NOTE.match(lines[at]):
            notes.append(noted["note"].strip())
        elif opened := FENCE.match(lines[at]):
            end = next((i for i in range(at + 1, len(lines)) if lines[i].strip() == opened["fence"]), None)
            if end is None:
                raise ValueError(f"{page.name}: the fence in line {at + 1} is not closed")
            number += 1
            text = textwrap.dedent("\n".join(lines[at + 1 : end]) + "\n")
            about = _read(notes, f"{page.name}, line {at + 1}") if opened["language"] in RUN else {}
            found.append(Block(page, number, at + 2, opened["language"], text, **about))
            at, notes = end, []
        else:
            notes = []
        at += 1
    return found


def _read(notes: list[str], where: str) -> dict:
    about: dict = {}
    for note in notes:
        kind, _, rest = note.partition(":")
        if kind == "not run" and rest.strip():
            about["reason"] = rest.strip()
        elif kind == "run with" and rest.strip().startswith("--"):
            about["words"] = tuple(shlex.split(rest))
        elif note == "slow":
            about["slow"] = True
        else:
            raise ValueError(f"{where}: the comment {note!r} is none of: not run: REASON, run with: --WORDS, slow")
    return about


def bare(block: Block) -> str:
    """Return a block without its comments and spaces: what a translation of its page does not change."""
    if block.language == "python":
        tokens = tokenize.generate_tokens(io.StringIO(block.text).readline)
        return " ".join(token.string for token in tokens if token.type != tokenize.COMMENT and token.string.strip())
    # A line that goes on behind a backslash leaves the line's end as a word.
    return " ".join(word for word in shlex.split(block.text, comments=True) if word != "\n")


def original(page: Path) -> Path | None:
    """Return the English page of a Chinese one; None for any other page."""
    if page.name.endswith(".zh.md"):
        return page.with_name(page.name.replace(".zh.md", ".md"))
    docs = ROOT / "docs"
    if page.is_relative_to(docs / "zh"):
        return docs / page.relative_to(docs / "zh")
    return None


def runnable(page: Path, *, slow: bool) -> list[Block]:
    """The blocks of a page that a test runs: none of a translation that shows what its original shows.

    Args:
        page: the file.
        slow: also those that are marked so, where there is one.
    """
    found = [block for block in blocks_of(page) if block.reason is None and (slow or not block.slow)]
    # A file of settings alone does nothing.
    found = [block for block in found if block.language in RUN or block.file]
    if slow and not any(block.slow for block in found):
        return []
    first = original(page)
    if first is not None and first.is_file():
        shown = [bare(block) for block in blocks_of(first) if block.language in RUN or block.file]
        if all(bare(block) in shown for block in found):
            return []
    return found
