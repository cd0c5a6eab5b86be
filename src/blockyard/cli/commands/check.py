"""`blockyard check pkg.module:Class` or `FILE.py:Class`: the conformance suite on one's own mixer or FFN."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError, suggest

if TYPE_CHECKING:
    from blockyard.conformance import Report, Row

    # What is checked by itself: a paired block is two of these.
    Part = Literal["attn", "ffn"]


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s pkg.module:Class [options]"
    parser.plain(
        "target",
        "a mixer or FFN class (FILE.py:Class too), or a registered name",
        metavar="pkg.module:Class",
        nargs="?",
    )
    parser.plain(
        "--kind", "what it is: attn or ffn; by default as registered, else by its constructor", choices=("attn", "ffn")
    )
    parser.plain(
        "--with",
        "an option of its constructor, such as rank=8; may be repeated",
        dest="options",
        metavar="KEY=VALUE",
        action="append",
        default=[],
    )
    parser.plain("--slow", "the slow checks too", action="store_true")
    parser.plain("--device", "where it is checked: cpu, cuda, cuda:N or auto", default="cpu")
    parser.plain("--all", "a line for each skipped check, too, rather than for each reason", action="store_true")
    parser.plain("--json", "print the report as JSON", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    if arguments.target is None:
        raise InputError("check what? Give a class: blockyard check pkg.module:Class (or FILE.py:Class)")
    found = targets(arguments.target, arguments.kind)

    from blockyard.bench.record import find_device
    from blockyard.conformance import check
    from blockyard.conformance.subject import SIZES
    from blockyard.models.estimate import check_class
    from blockyard.registry.options import options_of

    device = str(find_device(arguments.device))
    reports = []
    for cls, kind in found:
        if not arguments.json:
            print(f"conformance of {cls.__module__}:{cls.__qualname__}{taken_for(cls, kind)}", flush=True)
        options = read_options(cls, arguments.options)
        given = {name: size for name, size in SIZES.items() if name in options_of(cls)}
        check_class(cls, {**given, **options}, f"{cls.__name__} of this size")
        shown = None if arguments.json else print_row if arguments.all else print_unless_skipped
        report = check(cls, kind=kind, slow=arguments.slow, device=device, on_row=shown, **options)
        reports.append(report)
        if not arguments.json:
            if not arguments.all:
                print("".join(f"  skipped  {line}\n" for line in skipped_by_reason(report.rows)), end="")
            print(summary(report))
    if arguments.json:
        import json

        print(json.dumps([report.to_dict() for report in reports], indent=2))
    return 0 if all(report.ok for report in reports) else 1


def taken_for(cls: type, kind: Part | None) -> str:
    """Return what a class is checked as, where only its constructor says so."""
    from blockyard.conformance.subject import subject_of
    from blockyard.registry.register import Kind, entries

    kinds: tuple[Kind, ...] = ("attn", "ffn", "block")
    if kind is not None or any(entry.cls is cls for each in kinds for entry in entries(each)):
        return ""
    if subject_of(cls, None, None, {}).kind == "attn":
        return " as a mixer"
    return " as an FFN, since its constructor names no n_heads (--kind attn checks a mixer)"


def print_row(row: Row) -> None:
    """Print one check's outcome, as it comes."""
    print(f"  {row.outcome:7}  {row.name}" + (f": {' '.join(row.reason.split())}" if row.reason else ""), flush=True)


def print_unless_skipped(row: Row) -> None:
    """Print one check's outcome, as it comes; those that do not apply are many, and are counted at the end."""
    if row.outcome != "skipped":
        print_row(row)


def skipped_by_reason(rows: Sequence[Row]) -> list[str]:
    """Return a line for each reason why checks were skipped: traits that are not claimed are one, with their counts,
    and a check that is alone with its reason is named."""
    from collections import Counter

    from blockyard.conformance.suite import UNCLAIMED

    skipped = [row for row in rows if row.outcome == "skipped"]
    traits = Counter(row.reason.removeprefix(UNCLAIMED) for row in skipped if row.reason.startswith(UNCLAIMED))
    lines = []
    if traits:
        told = ", ".join(f"{trait} ({count})" for trait, count in traits.most_common())
        lines.append(f"{counted(traits.total())}: {UNCLAIMED}{told}; --all names them")
    others = Counter(row.reason for row in skipped if not row.reason.startswith(UNCLAIMED))
    for reason, count in others.items():
        name = next(row.name for row in skipped if row.reason == reason)
        lines.append(f"{name if count == 1 else counted(count)}: {' '.join(reason.split())}")
    return lines


def counted(count: int) -> str:
    """Return a number of checks in words."""
    return f"{count} check{'' if count == 1 else 's'}"


def summary(report: Report) -> str:
    """Return the last lines of a report: the facts that it found, and how many checks went how."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in report.counts().items())
    facts = "".join(f"note: {fact}\n" for fact in report.facts)
    return f"{facts}{'ok' if report.ok else 'FAILED'}: {counts}\n"


def targets(text: str, kind: Part | None) -> list[tuple[type, Part | None]]:
    """Return the classes that the argument names, each with what it is ("attn", "ffn" or None = find out).

    Raises:
        InputError: when it names no class, with the nearest name.
    """
    from blockyard.registry.register import implementation, names

    if text.endswith(".py"):
        raise InputError(f"{text!r}: which class of the file? Write {text}:{' or :'.join(classes_in(text)) or 'Class'}")
    if ":" in text:
        return [(find_class(text), kind)]
    kinds: Sequence[Part] = ("attn", "ffn") if kind is None else (kind,)
    registered: list[tuple[type, Part | None]] = [
        (implementation(each, text).cls, each) for each in kinds if text in names(each)
    ]
    if not registered:
        hint = suggest(text, [name for each in kinds for name in names(each)])
        raise InputError(f"{text!r} is no registered name{hint}; a class is given as pkg.module:Class or FILE.py:Class")
    return registered


def classes_in(file: str) -> list[str]:
    """Return the names of the classes that a file defines, without running it; none where it cannot be read."""
    import ast

    try:
        with open(file, "rb") as source:
            body = ast.parse(source.read()).body
    except (OSError, SyntaxError, ValueError):
        return []
    return [statement.name for statement in body if isinstance(statement, ast.ClassDef)]


def find_class(text: str) -> type:
    """Import the class of `pkg.module:Class` or `FILE.py:Class`; who names a file trusts its code.

    Raises:
        InputError: no such module or file, or nothing of that name in it, or no class.
    """
    from blockyard.registry.plugins import import_file, import_module, see_current_folder

    # A path may hold a colon itself.
    module_name, _, name = text.rpartition(":")
    see_current_folder()
    module = (import_file if module_name.endswith(".py") else import_module)(module_name, "check")
    classes = [
        key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    found = getattr(module, name, None)
    if found is None:
        hint = suggest(name, classes) or (f"; its classes: {', '.join(classes)}" if classes else "; it has no class")
        what = "" if module_name.endswith(".py") else "module "
        raise InputError(f"{what}{module_name!r} has no class {name!r}{hint}")
    if not isinstance(found, type):
        raise InputError(f"{text} is a {type(found).__name__}, not a class")
    return found


def read_options(cls: type, words: Sequence[str]) -> dict[str, Any]:
    """Return `--with key=value` words as the types that the constructor declares."""
    from blockyard.registry.options import options_of, unknown_option
    from blockyard.tasks.given import Setting, read_value

    known = options_of(cls)
    read = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InputError(f"--with {word!r} should be KEY=VALUE, such as rank=8")
        key = key.replace("-", "_")
        if key not in known:
            raise InputError(f"--with {word}: {cls.__name__} has no option {unknown_option(key, known)}")
        read[key] = read_value(known[key], Setting("", key, value, f"--with {key}", is_word=True))
    return read


COMMAND = Command(
    "check",
    "the conformance suite on a mixer or FFN of your own",
    add_arguments,
    run,
    order=50,
    purpose="extend",
    builds=True,
    example="blockyard check my_package.mixers:MyMixer --with window=64",
)
