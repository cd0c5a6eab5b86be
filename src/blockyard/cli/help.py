"""What `--help` prints: everything where it fits a page; else what people use and the names of the groups of options.

    blockyard train lm --help             ten options, and which groups there are
    blockyard train lm --help attn        one group, one block's options (`tva`), or options with a word in their name
    blockyard train lm --help all         everything

Where blocks are chosen on the line, of the options of blocks theirs alone.
"""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Iterable, Sequence

from blockyard.cli.command import Command
from blockyard.cli.parser import HelpFormatter, WholeValues
from blockyard.cli.shape import Flag, Meaning, Section, Shape, chosen_blocks
from blockyard.errors import InputError, suggest

HELP, ALL = ("-h", "--help"), "all"
# Lines that are read without scrolling much; a longer help begins with what people use.
PAGE = 60
# Options that such a help describes.
MOST = 10
ASK = Flag(HELP, "[GROUP]", (Meaning("show this help; with a group's name its options, with `all` every option"),))


def asks_help(words: Sequence[str]) -> bool:
    """Return whether a command's words ask for help; behind `--` stand other things."""
    return any(word in HELP or word.startswith("--help=") for word in _before_dashes(words))


def _before_dashes(words: Sequence[str]) -> list[str]:
    return list(words[: words.index("--")] if "--" in words else words)


def _wanted(words: Sequence[str]) -> str:
    """Return the word behind `--help`; "" when there is none."""
    words = _before_dashes(words)
    for i, word in enumerate(words):
        if word.startswith("--help="):
            return word.removeprefix("--help=")
        if word in HELP:
            return words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("-") else ""
    return ""


def help_text(command: Command, shape: Shape, words: Sequence[str]) -> str:
    """Return a command's help, as much of it as the words ask for.

    Args:
        command: the command.
        shape: its arguments.
        words: those behind its name.

    Raises:
        InputError: for a group that there is not, or a block that cannot be chosen.
    """
    chosen = chosen_blocks(shape, words)
    _check_chosen(shape, words, chosen)
    wanted = _wanted(words)
    if wanted and wanted != ALL:
        found, of = _asked(shape, wanted)
        if found:
            return _page(command, shape, found, of or chosen)
        if not any(not flag.words for flag in shape.flags):
            known = [*(section.name for section in shape.sections), ALL]
            there = suggest(wanted, known) or f"; there are: {', '.join(known)}"
            raise InputError(f"--help {wanted}: `blockyard {command.name}` has no such group of options{there}")
    every = [_own(shape.sections[0]), *shape.sections[1:]]
    whole = _page(command, shape, every, chosen)
    if wanted == ALL or whole.count("\n") < PAGE:
        return whole
    return _short(command, shape, chosen)


def _own(section: Section) -> Section:
    """Return the command's own arguments with `--help`, those by their place first."""
    placed = [flag for flag in section.flags if not flag.words]
    return Section("", "", (*placed, ASK, *(flag for flag in section.flags if flag.words)))


def _check_chosen(shape: Shape, words: Sequence[str], chosen: frozenset[str] | None) -> None:
    for block in sorted(chosen or ()):
        kind, _, name = block.partition(":")
        flag = shape.find(f"--{kind}.impl")
        if flag is not None and name not in flag.values:
            near = suggest(name, flag.values) or f"; there are: {', '.join(flag.values)}"
            raise InputError(f"{flag.name}: no {name!r} here{near}")


def _asked(shape: Shape, wanted: str) -> tuple[list[Section], frozenset[str] | None]:
    """Return the group of that name, or the options of the block of that name and that block, or those with the word in
    their own; nothing when there are none."""
    for section in shape.sections:
        if section.name == wanted:
            return [section], None
    of_block = frozenset(f"{kind}:{wanted}" for kind in ("attn", "ffn", "block"))
    found = [
        Section(section.name, f"options of {wanted}", tuple(flag for flag in section.flags if flag.blocks & of_block))
        for section in shape.sections
    ]
    if any(section.flags for section in found):
        return found, of_block
    named = tuple(flag for flag in shape.flags if wanted.strip("-").replace("-", "_") in flag.name)
    return ([Section("", f"options with {wanted!r} in their name", named)] if named else []), None


def _short(command: Command, shape: Shape, chosen: frozenset[str] | None) -> str:
    """Return what people use, the options of the blocks that are chosen, and the names of the groups."""
    common = [flag for word in command.common if (flag := shape.find(word)) is not None][:MOST]
    placed = [flag for flag in shape.sections[0].flags if not flag.words]
    shown = [Section("", "what people use", (*placed, *common))]
    for section in shape.sections if chosen is not None else ():
        mine = tuple(flag for flag in section.flags if flag.blocks & (chosen or frozenset()))
        blocks = {block for flag in mine for block in flag.blocks & (chosen or frozenset())}
        names = sorted({block.partition(":")[2] for block in blocks})
        shown.append(Section(section.name, f"options of {', '.join(names)}", mine))
    lines = [
        "All options, by group:",
        *textwrap.wrap(f"(`blockyard {command.name} --help GROUP` shows one group, `--help {ALL}` all)", _columns()),
    ]
    width = max(len(section.name) for section in shape.sections)
    for section in shape.sections:
        # A family whose blocks are not chosen has nothing to say.
        if many := len(_counting(section, chosen)):
            head = f"  {section.name:<{width}}  {many:>3}  "
            lines += textwrap.wrap(head + section.title, _columns(), subsequent_indent=" " * len(head))
    return _page(command, shape, shown, chosen, "\n".join(lines))


def _counting(section: Section, chosen: frozenset[str] | None) -> list[Flag]:
    return [flag for flag in section.flags if chosen is None or not flag.blocks or flag.blocks & chosen]


def _columns() -> int:
    return shutil.get_terminal_size().columns - 2


def _page(
    command: Command, shape: Shape, sections: Iterable[Section], chosen: frozenset[str] | None, below: str = ""
) -> str:
    """Return usage, summary, sections of options, and an example."""
    example = f"Example:\n  {_broken(command.example)}" if command.example else ""
    parser = WholeValues(
        prog=f"blockyard {command.name}",
        usage=f"%(prog)s {shape.usage}",
        description="\n".join(textwrap.wrap(command.summary, _columns())),
        epilog="\n\n".join(filter(None, [below, example])).replace("%", "%%"),
        formatter_class=HelpFormatter,
        add_help=False,
    )
    for section in sections:
        flags = _counting(section, chosen)
        if not flags:
            continue
        title = f"{section.name}: {section.title}" if section.name and section.title else section.title or "options"
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag, chosen)
    return parser.format_help().rstrip("\n")


def _broken(command: str) -> str:
    """Return a command line, gone on below before an option where it is longer than the screen."""
    lines = [""]
    for i, part in enumerate(command.split(" --")):
        word = part if i == 0 else f" --{part}"
        if lines[-1] and len(lines[-1] + word) > _columns() - 4:
            lines[-1] += " \\"
            word = f"     {word}"
        lines += [word] if lines[-1].endswith("\\") else [lines.pop() + word]
    return "\n".join(lines)


def _add(group: argparse._ArgumentGroup, flag: Flag, chosen: frozenset[str] | None) -> None:
    help = flag.help(chosen).replace("%", "%%")
    if not flag.words:
        group.add_argument(flag.metavar, help=help, nargs="?")
    elif flag.value == "none":
        group.add_argument(*flag.words, help=help, action="store_true")
    elif flag.value == "optional":
        group.add_argument(*flag.words, help=help, nargs="?", metavar=flag.metavar)
    else:
        group.add_argument(*flag.words, help=help, metavar=flag.metavar)
