"""Lines of `sh` blocks: which are commands of ours, which are checked for form alone, and which want a shell."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import dataclass

from tests.docs.blocks import Block
from tests.fixtures.folders import ROOT

# They set up an environment, which a test has: their form is checked.
ACTIVATE = ("source .venv/bin/activate", ". .venv/bin/activate")
SET_UP = ("pip", "hf download", "git", "cd", "make", "python3 -m venv", *ACTIVATE)
SCRIPT = re.compile(r"<<|^\s*(for|while|if|until|case|function)\b|\(\)\s*\{", re.MULTILINE)
QUOTED = re.compile(r"'[^']*'|\"[^\"$`]*\"")


@dataclass(frozen=True)
class Line:
    """A command of a block, its continuations joined.

    Args:
        number: of the file, from 1.
        text: as a shell reads it.
    """

    number: int
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def is_set_up(self) -> bool:
        """Whether it makes an environment."""
        typed = " ".join(self.words)
        return any(typed == start or typed.startswith(f"{start} ") for start in SET_UP)

    @property
    def is_ours(self) -> bool:
        """Whether it is one `blockyard` command and nothing that a shell is needed for."""
        return self.words[:1] == ["blockyard"] and self.is_simple

    @property
    def is_simple(self) -> bool:
        """Whether it is one command that reads and writes where it stands: words may be added at its end."""
        return not re.search(r"[|&;<>$`*?~]", QUOTED.sub("", self.text.split(" #")[0]))


def lines_of(block: Block) -> list[Line]:
    """Read the commands of a block; one that is a script (loops, here-documents) is a single one.

    Raises:
        ValueError: a quotation that is not closed.
    """
    if SCRIPT.search(block.text):
        return [Line(block.line, block.text)]
    found, pending, start = [], "", block.line
    for offset, line in enumerate(block.text.splitlines()):
        start = start if pending else block.line + offset
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        whole = Line(start, pending + line)
        pending = ""
        if whole.words:
            found.append(whole)
    if pending:
        raise ValueError(f"{block.place}: the last line ends with a backslash")
    return found


def commands_in(line: Line) -> list[list[str]]:
    """Return the words after each `blockyard` of a line, be it behind a pipe, in `<( )` or behind `-m`."""
    lexer = shlex.shlex(line.text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    segments: list[list[str]] = [[]]
    for token in lexer:
        if token and set(token) <= set("();<>|&"):
            # What a stream is sent to or read from is no word of the command.
            segments.append([">"] if set(token) & set("<>") and "(" not in token else [])
        elif not re.fullmatch(r"\$\w+", token):
            # What a variable holds is not known.
            segments[-1].append(token)
    found = []
    for segment in segments:
        at = 0 if segment[:1] == ["blockyard"] else None
        for index in range(1, len(segment)):
            if segment[index] == "blockyard" and segment[index - 1] == "-m":
                at = index
        if at is not None:
            found.append(segment[at + 1 :])
    return found


def check_set_up(line: Line) -> str | None:
    """Return what is wrong with a line that sets up an environment; None when it can be typed so."""
    words = line.words
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        unknown = [target for target in targets if not re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE)]
        return f"the Makefile has no {unknown[0]}" if unknown else None
    if words[0] == "cd":
        return None if len(words) == 2 else "cd wants one folder"
    if words[0] == "git":
        return None if words[1:2] == ["clone"] and len(words) in (3, 4) else "only `git clone` sets something up"
    if words[0] == "pip":
        if words[1:2] != ["install"] or len(words) < 3:
            return "only `pip install …` sets something up"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for extras in re.findall(r"(?:blockyard|\.|\.whl)\[([\w,.-]+)\]", " ".join(words)):
            for extra in extras.split(","):
                if extra not in project["optional-dependencies"]:
                    return f"there is no extra {extra!r}"
    return None
