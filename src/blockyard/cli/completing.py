"""Which words may follow on a command line that is being typed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blockyard.cli.command import Command
from blockyard.cli.finding import TOP, command_names, load_command
from blockyard.cli.help import ALL, HELP
from blockyard.cli.shape import Flag, Shape, chosen_blocks
from blockyard.cli.shape_cache import shape_of


def following(words: Sequence[str]) -> list[str]:
    """Return the words that may stand in the place of the last one; none where the shell should offer files.

    Args:
        words: those behind `blockyard`, the last one begun or empty. `--name = value` is read as `--name=value`: bash
            cuts words there.
    """
    words = _joined(words)
    begun = words[-1] if words else ""
    names = command_names()
    if len(words) <= 1:
        return _beginning(begun, [*sorted({name.split()[0] for name in names}), *TOP])
    if words[0] in ("help", "schema"):
        return following(words[1:])
    name = " ".join(words[:2])
    if len(words) == 2 and any(name.startswith(f"{words[0]} ") for name in names):
        return _beginning(begun, [*(n.split()[1] for n in names if n.startswith(f"{words[0]} ")), "--help"])
    if name in names and words[0] != name:
        return _options(load_command(name), words[2:])
    return _options(load_command(words[0]), words[1:]) if words[0] in names else []


def _joined(words: Sequence[str]) -> list[str]:
    found: list[str] = []
    for word in words:
        after_sign = len(found) > 0 and found[-1].startswith("--") and found[-1].endswith("=")
        if found and ((word == "=" and found[-1].startswith("--") and "=" not in found[-1]) or after_sign):
            found[-1] += word
        else:
            found.append(word)
    return found


def _options(command: Command, words: Sequence[str]) -> list[str]:
    """Return what may follow behind a command's name: options, or the values of one."""
    shape = shape_of(command)
    begun, before = words[-1], words[:-1]
    flag, equals, value = begun.partition("=")
    if equals:
        # bash replaces what stands behind the sign, zsh and fish are given it whole by their scripts.
        return _beginning(value, _values(shape.find(flag)))
    last = before[-1] if before else ""
    if last in HELP:
        return _beginning(begun, [*(section.name for section in shape.sections), ALL])
    waiting = shape.find(last)
    if waiting is not None and waiting.value == "needed":
        return _beginning(begun, _values(waiting))
    if waiting is not None and waiting.value == "optional" and not begun.startswith("-"):
        return _beginning(begun, _values(waiting))
    placed = [flag for flag in shape.flags if not flag.words]
    if placed and not begun.startswith("-"):
        # What may stand in the first place, if it is not a file.
        return _beginning(begun, placed[0].values) if all(word.startswith("-") for word in before) else []
    return _beginning(begun, _flags(shape, before))


def _flags(shape: Shape, before: Sequence[str]) -> list[str]:
    """Return the options that may follow; of blocks those of the chosen ones."""
    chosen = chosen_blocks(shape, before)
    flags = [flag for flag in shape.flags if flag.words and not (chosen and flag.blocks and not flag.blocks & chosen)]
    return [*(flag.name for flag in flags), "--help"]


def _values(flag: Flag | None) -> Iterable[str]:
    return flag.values if flag is not None else ()


def _beginning(begun: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(begun)]
