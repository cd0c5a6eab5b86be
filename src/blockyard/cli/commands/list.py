"""`blockyard list`: what is registered, and what each block can do."""

from __future__ import annotations

import argparse
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

    heads = ["name", *TRAIT_HEADS.values(), "order", "cache", "options"]
    rows = [
        [
            mixer.name,
            *("yes" if getattr(mixer.traits, trait) else "-" for trait in TRAIT_HEADS),
            order_word(mixer),
            mixer.traits.cache,
            option_names(mixer),
        ]
        for mixer in mixers
    ]
    print_table("Mixers (--attn.impl)", heads, rows)
    rows = [[ffn.name, option_names(ffn)] for ffn in ffns]
    print_table("Feed-forward parts (--ffn.impl)", ["name", "options"], rows)
    if blocks:
        rows = [[block.name, block.summary] for block in blocks]
        print_table("Paired blocks (built when both are chosen)", ["name", "what it is"], rows)
    print("`blockyard info NAME` shows one of them: traits, options, costs, source.")


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
    example="blockyard list --json",
)
