"""`blockyard list`: what is registered, and what each block can do."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from typing import TYPE_CHECKING

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser

if TYPE_CHECKING:
    from blockyard.registry.register import Entry, Kind

TRAIT_HEADS = {
    "causal": "causal",
    "bidirectional": "both ways",
    "padding": "padding",
    "attn_mask": "mask",
    "cross": "cross",
    "weights": "weights",
}


def add_arguments(parser: Parser) -> None:
    parser.plain("--json", "print everything as JSON: traits, options, sources", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.models.order import described
    from blockyard.registry.register import entries

    if arguments.json:
        import json

        kinds: dict[str, Kind] = {"attention": "attn", "ffn": "ffn", "block": "block"}
        print(json.dumps({word: [described(e) for e in entries(kind)] for word, kind in kinds.items()}, indent=2))
        return 0
    print_lists(entries("attn"), entries("ffn"), entries("block"))
    return 0


def print_lists(mixers: list[Entry], ffns: list[Entry], blocks: list[Entry]) -> None:
    """Print three tables and where to read on."""
    from blockyard.cli.table import print_table

    heads = ["name", *TRAIT_HEADS.values(), "order", "cache"]
    rows = [
        [
            mixer.name,
            *("yes" if getattr(mixer.traits, trait) else "-" for trait in TRAIT_HEADS),
            order_word(mixer),
            mixer.traits.cache,
        ]
        for mixer in mixers
    ]
    print_table("Mixers (--attn.impl)", heads, rows)
    print_words("Options of the mixers", [(mixer.name, option_names(mixer)) for mixer in mixers])
    print_words("Feed-forward parts (--ffn.impl) and their options", [(ffn.name, option_names(ffn)) for ffn in ffns])
    if blocks:
        print_words("Paired blocks (built when both are chosen)", [(block.name, block.summary) for block in blocks])
    print("`blockyard info NAME` shows one of them: traits, options, costs, source.")


def print_words(title: str, rows: list[tuple[str, str]]) -> None:
    """Print names with words behind them that go on below where the line ends."""
    print(title)
    width = max((len(name) for name, _ in rows), default=0)
    for name, words in rows:
        head = f"  {name:<{width}}  "
        columns = shutil.get_terminal_size().columns
        print("\n".join(textwrap.wrap(head + words, max(columns, len(head) + 20), subsequent_indent=" " * len(head))))
    print()


def order_word(entry: Entry) -> str:
    """Return whether a mixer knows the order of positions by itself, tried where its traits do not say so."""
    from blockyard.models.order import mixer_knows_order

    known = mixer_knows_order(entry)
    return "?" if known is None else "yes" if known else "-"


def option_names(entry: Entry) -> str:
    """Return the options that a word of the command line can express."""
    return ", ".join(name for name, option in entry.options.items() if option.settable) or "-"


COMMAND = Command(
    "list",
    "the registered mixers and FFNs with their traits",
    add_arguments,
    run,
    order=40,
    purpose="understand",
    example="blockyard list --json",
)
