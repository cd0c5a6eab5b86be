"""argparse with this package's manners: one-line errors, `-` or `_` in names, suggestions for unknown options."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from blockyard.cli.shape import Flag, Meaning, Section, Shape
from blockyard.errors import InputError
from blockyard.registry.options import TRUTH_VALUES

# The section of what belongs to a command itself.
OWN = "command"
FLAG = re.compile(r"--[A-Za-z][\w.-]*(?==|$)")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps descriptions as written and gives the options' text room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class WholeValues(argparse.ArgumentParser):
    """argparse, but for one thing: it takes away a "--" among the values, also where it is the value.

    Of `--name=--` it would make an empty list.
    """

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if action.option_strings and arg_strings == ["--"] and action.nargs in (None, argparse.OPTIONAL):
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


class Parser(WholeValues):
    """An argument parser that raises `InputError` where argparse would print a usage text and exit.

    Args:
        command: the words that select the command, such as "train lm".
        summary: the line its help begins with.
        example: command lines its help ends with.
    """

    def __init__(self, command: str, summary: str, example: str = "") -> None:
        super().__init__(
            prog=f"blockyard {command}",
            description=summary,
            epilog=f"Example:\n  {example}" if example else None,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            usage="%(prog)s [options]",
        )
        # What help, completion and schemas are made of, gathered as arguments are declared.
        self.sections: list[tuple[str, str, list[Flag]]] = [(OWN, "options of the command itself", [])]
        # A command may know better than "unknown option": it may say whose option it is.
        self.explain_unknown: Callable[[str], str | None] = lambda flag: None

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command's name, options among the arguments wherever they stand; absent options are
        absent from the result."""
        namespace, rest = self.parse_known_intermixed_args(self._joined([underscored(word) for word in words]))
        if rest:
            raise InputError(self._unknown(rest[0]))
        return namespace

    def _joined(self, words: Sequence[str]) -> list[str]:
        """Write `--lr -1e-3` as `--lr=-1e-3`: argparse would take such a value for another option.

        Where the command takes a FILE, `--detect FILE` is `--detect=true FILE`: a switch takes no word but a truth
        value there.
        """
        has_arguments = any(not action.option_strings for action in self._actions)
        joined: list[str] = []
        takes_value, is_switch = False, False
        for word in words:
            if is_switch and word.lower() not in TRUTH_VALUES:
                joined[-1] += "=true"
            is_switch = False
            if takes_value and not word.startswith("--"):
                joined[-1] += f"={word}"
                takes_value = False
                continue
            joined.append(word)
            action = self._option_string_actions.get(word)
            takes_value = action is not None and action.nargs is None
            is_switch = has_arguments and action is not None and action.const == "true"
        return joined

    def _unknown(self, word: str) -> str:
        if not word.startswith("-") or word == "-":
            return f"unexpected argument {word!r}; see `{self.prog} --help`"
        flag = word.split("=")[0]
        told = self.explain_unknown(flag)
        if told:
            return told
        known = [option for option in self._option_string_actions if option.startswith("--")]
        return f"unknown option {flag!r}{nearest(flag, known)}; see `{self.prog} --help`"

    def plain(self, name: str, help: str, **settings: Any) -> None:
        """Declare an argument that belongs to the command itself, not to a group of options."""
        action = self.add_argument(name, help=help.replace("%", "%%"), **settings)
        values = tuple(map(str, settings.get("choices") or ()))
        usual = settings.get("metavar") or ("|".join(values) if values else action.dest.upper())
        takes = action.nargs != 0
        flag = Flag(
            (name,) if name.startswith("-") else (),
            usual if takes else "",
            (Meaning(help),),
            value="needed" if takes else "none",
            values=values,
        )
        self.sections[0][2].append(flag)

    @property
    def shape(self) -> Shape:
        """All that was declared, as plain data."""
        found = tuple(Section(name, title, tuple(flags)) for name, title, flags in self.sections if flags)
        return Shape((self.usage or "").removeprefix("%(prog)s").strip(), found)


def nearest(flag: str, known: Iterable[str]) -> str:
    """Word " (did you mean '--vft.rank'?)" or ""."""
    near = difflib.get_close_matches(flag, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def underscored(word: str) -> str:
    """Read `--model.d-model=64` as `--model.d_model=64`; values and other words stay as they are."""
    flag = FLAG.match(word)
    if not flag:
        return word
    return "--" + flag.group()[2:].replace("-", "_") + word[flag.end() :]
