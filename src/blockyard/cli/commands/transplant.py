"""`blockyard transplant MODEL`: other blocks in a trained model, with what they cost and save."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError

if TYPE_CHECKING:
    from blockyard.tasks.groups import Group
    from blockyard.transplant.record import Choice, Record


def groups() -> dict[str, Group]:
    """Return the terms of a transplant as option groups."""
    from blockyard.cli.tasks import RAY, RAY_HELP, prefixed_group
    from blockyard.registry.options import options_of
    from blockyard.tasks.groups import Group, by_name, dataclass_group
    from blockyard.transplant.heal import HealSettings
    from blockyard.transplant.outputs import OutputSettings
    from blockyard.transplant.settings import Budget, Pieces, Texts, TransplantConfig

    healing = options_of(HealSettings)
    # Without it nothing is trained.
    healing["tokens"] = replace(healing["tokens"], annotation=int | None, default=None)
    known = options_of(TransplantConfig)
    own = {name: known[name] for name in ("blocks", "layers", "workers", "engine")}
    return by_name(
        [
            Group("", "what is put where", own),
            dataclass_group("budget", "what it may cost: chooses layers and open widths", Budget),
            dataclass_group("data", "the text", Texts),
            dataclass_group("text", "how much of it is read for what", Pieces),
            Group("heal", "a training of what was put in, where heal.tokens says how much", healing),
            dataclass_group("outputs", "training of mixers unlike attention: research", OutputSettings),
            prefixed_group(known, RAY, RAY_HELP),
        ]
    )


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_groups
    from blockyard.cli.sources import add_trust

    parser.usage = "%(prog)s MODEL --blocks CHOICES --out DIR [options]"
    parser.plain(
        "model",
        "a folder with config.json and safetensors, a .gguf file, or a run folder",
        metavar="MODEL",
        nargs="?",
    )
    parser.plain("--out", "folder of the new run and the report; given again, it goes on", metavar="DIR")
    parser.plain("--tokenizer", "a folder with a tokenizer.json, where the model brings none", metavar="DIR")
    add_trust(parser, "the run")
    add_groups(parser, groups())


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import given_words, read_given
    from blockyard.cli.sources import trusted
    from blockyard.cli.tasks import RAY
    from blockyard.transplant.heal import HealSettings
    from blockyard.transplant.outputs import OutputSettings
    from blockyard.transplant.run import run_transplant
    from blockyard.transplant.settings import Budget, Pieces, Texts, TransplantConfig

    if arguments.model is None:
        raise InputError(
            "transplant into what? Give a model: blockyard transplant MODEL --blocks 'standard[window=256,sinks=4]' "
            "--out DIR"
        )
    if arguments.out is None:
        raise InputError("where to? Give the folder: --out DIR")
    given: dict[str, Any] = read_given(groups(), given_words(arguments))
    own = {**given.pop("", {}), **{RAY + name: value for name, value in given.pop("ray", {}).items()}}
    healing = given.get("heal", {})
    if healing and healing.get("tokens") is None:
        raise InputError(f"--heal.{next(iter(healing))} belongs to a healing: give --heal.tokens N too")
    config = TransplantConfig(
        **own,
        budget=Budget(**given.get("budget", {})),
        data=Texts(**given.get("data", {})),
        text=Pieces(**given.get("text", {})),
        heal=HealSettings(**healing) if healing else None,
        outputs=OutputSettings(**given.get("outputs", {})),
    )
    record = run_transplant(
        arguments.model, config, arguments.out, tokenizer=arguments.tokenizer, trust=trusted(arguments)
    )
    for choice in record.choices:
        print(told(choice, record))
    print(arguments.out)
    return 0


def told(choice: Choice, record: Record) -> str:
    """Word a choice in a line: what it costs by kind of text, and what its cache holds."""
    if choice.measures is None or choice.measures.above is None:
        return f"{choice.name}: refused: {choice.refused}"
    held, before = (
        next(each.cache_bytes for each in measures.decode if each.context == record.context)
        for measures in (choice.measures, record.original)
    )
    above = ", ".join(f"{kind} {cost}" for kind, cost in choice.measures.above.items())
    return f"{choice.blocks}: {above} nats per token; cache at {record.context:,} tokens {held / before:.0%}"


COMMAND = Command(
    "transplant",
    "other blocks in a trained model: what they cost and save",
    add_arguments,
    run,
    order=23,
    builds=True,
    common=(
        "--out",
        "--blocks",
        "--layers",
        "--budget.loss",
        "--budget.cache",
        "--budget.context",
        "--data.path",
        "--text.report",
        "--heal.tokens",
    ),
    example="blockyard transplant smollm2 --blocks 'standard[window=256,sinks=4]' --budget.loss 0.05 "
    "--data.path verse=verse.txt,code=src/,prose=docs/ --out runs/smaller",
)
