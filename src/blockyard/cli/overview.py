"""What `blockyard` prints: alone, what it is for in a few lines; with `--help`, every command with its line.

Commands stand under what people want of them. Only the files of commands are imported, so that this costs no torch.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from blockyard.cli.command import Command, Purpose
from blockyard.cli.finding import command_names, load_command

PURPOSES: dict[Purpose, str] = {
    "train": "train a model on your data, search for its best options",
    "use": "write, classify and forecast with a trained model; take models in and out",
    "compare": "which blocks are better, faster, smaller, at an equal budget",
    "understand": "what the blocks are and can do, and what your files are read as",
    "extend": "a block of your own; settings in your editor and shell",
}


def first_page() -> str:
    """Return what there is, in about ten lines."""
    loaded = _loaded("")
    lines = ["blockyard: interchangeable Transformer blocks, compared at equal budgets", ""]
    width = max(map(len, PURPOSES))
    for purpose in PURPOSES:
        head = f"  {purpose:<{width}}  "
        names = [command.name for command in loaded if command.purpose == purpose]
        lines += textwrap.wrap(head + _together(names), _columns(), subsequent_indent=" " * len(head))
    return "\n".join(
        [
            *lines,
            "",
            "  blockyard demo",
            "  blockyard train lm --data.path my_texts/ --out runs/mine",
            "  blockyard compare lm --blocks 'standard,tva+vft' --data.path my_texts/",
            "",
            "`blockyard --help`: what commands do; `blockyard COMMAND --help`: their options",
        ]
    )


def _together(names: Sequence[str]) -> str:
    """Word "train lm | price; generate"."""
    found: dict[str, list[str]] = {}
    for name in names:
        first, _, second = name.partition(" ")
        found.setdefault(first, []).extend([second] if second else [])
    return "; ".join(f"{first} {' | '.join(seconds)}".strip() for first, seconds in found.items())


def overview(first: str = "") -> str:
    """Return every command with its line, or those of a first word (`train`), under what people want of them."""
    loaded = _loaded(first)
    width = max(len(command.name) for command in loaded)
    lines = [f"usage: blockyard {first or 'COMMAND'} ..."]
    if not first:
        lines += ["", "Interchangeable Transformer blocks: train, generate, compare at equal budgets."]
    for purpose, what in PURPOSES.items():
        mine = [command for command in loaded if command.purpose == purpose]
        if mine:
            lines += ["", *([] if first else [f"{purpose}: {what}"])]
        for command in mine:
            head = f"  {command.name:<{width}}  "
            lines += textwrap.wrap(head + command.summary, _columns(), subsequent_indent=" " * len(head))
    lines += ["", "`blockyard COMMAND --help`: a command's options; `blockyard --version`"]
    return "\n".join(lines)


def _loaded(first: str) -> list[Command]:
    names = [name for name in command_names() if not first or name.split()[0] == first]
    return sorted((load_command(name) for name in names), key=lambda command: (command.order, command.name))


def _columns() -> int:
    return shutil.get_terminal_size().columns
