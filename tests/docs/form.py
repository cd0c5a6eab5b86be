"""The form of blocks, looked at without running them: Python compiles, imports exist, commands know their options."""

from __future__ import annotations

import ast
import functools
import importlib
from collections.abc import Iterator

from blockyard.cli.app import HELP_WORDS
from blockyard.cli.finding import TASK_VERBS, command_names, find_command, load_command
from blockyard.cli.help import asks_help, help_text
from blockyard.cli.parser import Parser, underscored
from blockyard.cli.shape_cache import shape_of
from blockyard.errors import InputError
from blockyard.registry.pattern import parse_choice, split_choices
from blockyard.registry.plugins import plugins_in
from tests.docs.blocks import Block
from tests.docs.shell import check_set_up, commands_in, lines_of


def faults(block: Block) -> Iterator[str]:
    """Yield what is wrong with the form of a block."""
    if block.language == "python":
        yield from _faults_of_python(block)
    if block.language != "sh":
        return
    known_by_one: set[str] = set()
    for line in lines_of(block):
        if line.is_set_up:
            wrong = check_set_up(line)
            yield from [f"line {line.number}: {wrong}"] if wrong else []
            continue
        if block.words and not line.is_simple and commands_in(line):
            yield f"line {line.number}: `run with` cannot add words to a line that a shell reads"
        for words in commands_in(line):
            wrong = fault_of_command(words)
            yield from [f"line {line.number}: {wrong}"] if wrong else []
            known_by_one |= {word for word in block.words if word.startswith("--") and word in flags_of(words)}
    for word in block.words:
        if word.startswith("--") and word.split("=")[0] not in known_by_one:
            yield f"no command of the block knows {word} of its `run with`"


def _faults_of_python(block: Block) -> Iterator[str]:
    try:
        tree = ast.parse(block.code, block.place)
    except SyntaxError as error:
        yield f"line {error.lineno}: {error.msg}"
        return
    if block.reason is None:
        return  # it runs, and with it its imports
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "blockyard":
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                if not hasattr(module, alias.name):
                    yield f"line {node.lineno}: {node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "blockyard":
                    importlib.import_module(alias.name)


@functools.cache
def parser_of(name: str) -> Parser:
    """Return the parser of a command; what it declares is the same for every line without plug-ins."""
    return load_command(name, whole=True).parser()


def flags_of(words: list[str]) -> frozenset[str]:
    """Return the options that a command knows."""
    if not words or words[0].startswith("-") or words[0] in HELP_WORDS:
        return frozenset()
    try:
        return frozenset(parser_of(find_command(words)[0])._option_string_actions)
    except InputError:
        # No such command, or one of a plug-in: said elsewhere.
        return frozenset()


def fault_of_command(words: list[str]) -> str | None:
    """Return why a command line could not be typed so; None when its command, options and choices of blocks exist."""
    shown = "blockyard " + " ".join(words)
    try:
        if not words or words[0] in (*HELP_WORDS, "--version", "-V"):
            return None
        if len(words) == 2 and words[1] in HELP_WORDS and any(n.startswith(f"{words[0]} ") for n in command_names()):
            return None
        # A plug-in may bring the task itself, and options with any name.
        if plugins_in(words) and words[0] in TASK_VERBS and " ".join(words[:2]) not in command_names():
            return None
        name, rest = find_command(words)
        if asks_help(rest):
            command = load_command(name, whole=True)
            help_text(command, shape_of(command), rest)
            return None
        parser = parser_of(name)
        given = vars(parser.parse(_known(parser, rest) if plugins_in(rest) else rest))
        if plugins_in(rest):
            return None
        # A transplant's choices say for which layers, too.
        named = [] if name == "transplant" else split_choices(given.get("--blocks") or "standard")
        for choice in [*named, *(given[option] for option in ("--attn.impl", "--model.pattern") if option in given)]:
            parse_choice(choice)
        if "--ffn.impl" in given:
            parse_choice(f"standard+{given['--ffn.impl']}")
    except InputError as error:
        return f"{shown}: {error}"
    return None


def _known(parser: Parser, rest: list[str]) -> list[str]:
    """Leave out the options of plug-ins, which the parser cannot know: `--decay.decay 0.9`."""
    kept: list[str] = []
    skip = False
    for word in rest:
        flag = underscored(word).split("=")[0]
        if word.startswith("--"):
            skip = "." in flag and flag not in parser._option_string_actions
        if not skip:
            kept.append(word)
        elif not word.startswith("--"):
            skip = False
    return kept


def with_words(typed: list[str], words: tuple[str, ...]) -> list[str]:
    """Return the words behind `blockyard`, with those of `run with` that the command knows."""
    known = flags_of(typed) if not asks_help(typed) else frozenset()
    added, take = [], False
    for word in words:
        if word.startswith("--"):
            take = word.split("=")[0] in known
        if take:
            added.append(word)
    return [*typed, *added]
