"""`blockyard claims`: what the source documents say, measured again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


def add_arguments(parser: Parser) -> None:
    parser.plain(
        "claims",
        "names, or beginnings of names, as in `vein` or `vein.block`; all when none is given",
        nargs="*",
        metavar="NAME",
    )
    parser.plain(
        "--document",
        "only the claims of one document: vein-flow, price-transformer, spectre-nlp, complex-block, basics",
        metavar="NAME",
    )
    parser.plain(
        "--upto",
        "leave out what costs more: instant (counting), seconds (timing), minutes (training)",
        metavar="COST",
        default="minutes",
    )
    parser.plain("--list", "only list the claims, measure nothing", action="store_true")
    parser.plain(
        "--resume",
        "keep every measurement in this file as soon as it is made, and take those it has: an "
        "interrupted command goes on",
        metavar="FILE",
    )
    parser.plain(
        "--model",
        "a pretrained model's folder: claims about migration are measured on it, and left out without one",
        metavar="FOLDER",
    )
    parser.plain("--json", "print everything as JSON", action="store_true")
    parser.plain(
        "--page",
        "also write the outcome as a page of Markdown; sections that were written by hand, between its marks, stay",
        metavar="FILE",
    )


def run(arguments: argparse.Namespace) -> int:
    import platform

    import torch

    from blockyard.claims.collect import SCHEMA, by_hand, choose, measure_claims, page, without_model
    from blockyard.claims.keep import MeasurementStore
    from blockyard.claims.trained import measuring_on
    from blockyard.cli.table import print_table
    from blockyard.files import check_writable, write_atomically
    from blockyard.machine.processor import processor_name

    chosen = choose(arguments.claims, arguments.document, arguments.upto)
    if arguments.list:
        print_table(
            "Claims",
            ["name", "claimed", "costs", "says"],
            [[c.key, c.claimed, f"{c.cost}, a model" if c.needs else c.cost, c.says] for c in chosen],
        )
        return 0
    # Before anything is said: a refusal is one line.
    for file in filter(None, (arguments.page, arguments.resume)):
        check_writable(file)
    if arguments.model is None:
        measurable = without_model(chosen, arguments.claims)
        if len(measurable) < len(chosen):
            print(
                f"{len(chosen) - len(measurable)} claims need a trained model (--model) and are left out",
                file=sys.stderr,
            )
        chosen = measurable
    machine = f"{processor_name()}, torch {torch.__version__.split('+')[0]}"
    kept = MeasurementStore(arguments.resume, f"{machine}, Python {platform.python_version()}")
    wanted = choose(arguments.claims, arguments.document)
    left_out = [c for c in wanted if c.key not in {chosen_one.key for chosen_one in chosen}]
    before = read_page(arguments.page)
    with measuring_on(arguments.model if any(claim.needs for claim in chosen) else None):
        rows = measure_claims(chosen, lambda text: print(text, file=sys.stderr), kept)
    if arguments.page:
        write_atomically(arguments.page, page(rows, machine, left_out, by_hand(before)))
    if arguments.json:
        import json

        print(json.dumps({"schema": SCHEMA, "claims": rows}, indent=2, ensure_ascii=False))
        return 0
    head = ["name", "claimed", "verdict", "measured", "why"]
    print_table("Claims", head, [[r["key"], r["claimed"], r["verdict"], r["measured"], r["why"]] for r in rows])
    return 0


def read_page(path: str | None) -> str:
    """Return the page that stands there, "" where there is none.

    Raises:
        InputError: for a file that cannot be read, before hours of measuring and before it is replaced.
    """
    if path is None or not Path(path).is_file():
        return ""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read the page {path}, whose sections written by hand would be lost: {error}"
        ) from error


COMMAND = Command(
    "claims",
    "measure again what the source documents claim",
    add_arguments,
    run,
    order=35,
    purpose="compare",
    example="blockyard claims vein --upto instant",
)
