"""`blockyard info NAME`: one block in full; an attention and an FFN that share the name are both shown, and a block
that an attention becomes together with an FFN is shown with each of the two."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError, suggest

if TYPE_CHECKING:
    from blockyard.registry.register import Entry

# The shape at which costs are shown: a small language model's block.
SAMPLE = {"d_model": 512, "n_heads": 8, "tokens": 1024}


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s NAME [options]"
    parser.plain("name", "a name from `blockyard list`, such as standard or tva, or the folder of a run",
                 metavar="NAME", nargs="?")  # fmt: skip
    parser.plain("--json", "print it as JSON", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.models.order import described

    if arguments.name is None:
        raise InputError("info about what? Give a name from `blockyard list`: blockyard info standard")
    if is_run(arguments.name):
        return show_run(arguments.name, as_json=arguments.json)
    pages = [
        {**described(entry), "costs": costs(entry), "flags": flags(entry)} for entry in entries_named(arguments.name)
    ]
    if arguments.json:
        import json

        print(json.dumps(pages, indent=2))
        return 0
    print("\n\n".join(page(description) for description in pages))
    return 0


def is_run(name: str) -> bool:
    """Return whether a name is the folder of a run, rather than a block's."""
    from pathlib import Path

    from blockyard.training.folder import CONFIG

    return "\0" not in name and (Path(name) / CONFIG).is_file()


def show_run(folder: str, *, as_json: bool) -> int:
    """Print what a run folder holds, its weights left alone."""
    from pathlib import Path

    from blockyard.models.estimate import count_model
    from blockyard.pretrained.folder import read_origin
    from blockyard.registry.pattern import format_choice, parse_choice, without_defaults
    from blockyard.tasks.run import read_run
    from blockyard.training.checkpoint import list_checkpoints
    from blockyard.training.folder import CHECKPOINTS

    run = read_run(folder)
    kind, path = run.kind, Path(folder)
    assets = kind.load_assets(path)
    model = kind.fit(run.model, assets)
    origin = read_origin(path)
    facts: dict[str, Any] = {
        "task": run.task,
        "blocks": model.choice,
        "shape": f"d_model={model.d_model}, n_layers={model.n_layers}, n_heads={model.n_heads}, length={model.length}",
        "parameters": count_model(model, kind.build_model, f"the model of {folder}").parameters,
        "checkpoints": [step for step, _ in list_checkpoints(path / CHECKPOINTS)],
    }
    if hasattr(assets, "vocab_size"):
        facts["tokenizer"] = f"{assets.name}, {assets.vocab_size:,} tokens"
        facts["chat template"] = getattr(assets, "chat_template", None) is not None
    if origin is not None:
        facts["imported from"] = f"{origin.where} ({origin.family}, {origin.dtype})"
    if as_json:
        import json

        print(json.dumps(facts, indent=2))
        return 0
    # All of them would fill the line; --json and config.yaml have them.
    facts["blocks"] = format_choice(without_defaults(parse_choice(model.choice)))
    print(f"{folder} (run)")
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:,}" if type(value) is int else value
        print(f"  {name:<13}  {'yes' if shown is True else 'no' if shown is False else shown}")
    return 0


def entries_named(name: str) -> list[Entry]:
    """Return everything registered under the name, and the paired blocks that it is a part of.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    from pathlib import Path

    from blockyard.registry.register import Kind, implementation, names
    from blockyard.tasks.kind import task_names

    kinds: tuple[Kind, ...] = ("attn", "ffn", "block")
    found = [implementation(kind, name) for kind in kinds if name in names(kind)]
    pairs = [] if "+" in name else [pair for pair in names("block") if name in pair.split("+")]
    found += [implementation("block", pair) for pair in pairs if found]
    if not found and name in task_names():
        raise InputError(f"{name!r} is a task, not a block: `blockyard train {name} --help` shows its options")
    if not found and "\0" not in name and Path(name).is_dir():
        # Such as what a killed import or training leaves.
        raise InputError(f"{name} is a folder that holds no run (no config.yaml in it)")
    if not found:
        known = list(dict.fromkeys(known for kind in kinds for known in names(kind)))
        hint = suggest(name, known) or f"; there are: {', '.join(known)}"
        raise InputError(f"no block named {name!r}{hint}")
    return found


def flags(entry: Entry) -> dict[str, str]:
    """Return option name -> its flag, for the options that a word can express (a module cannot be)."""
    group = entry.kind if entry.name == "standard" else entry.group
    return {name: f"--{group}.{name}" for name, option in entry.options.items() if option.settable}


def costs(entry: Entry) -> dict[str, Any]:
    """Return figures of the block's own cost formula at the sample shape, with its options at their defaults.

    Returns:
        The shape and `parameters`, `flops` (forward, one sequence), `cache_bytes_per_token` (float32); `note` when
        they are measured for want of a formula, or why there are none.
    """
    from blockyard.protocol.block import cost_of
    from blockyard.registry.register import accepted_arguments

    missing = [name for name, option in entry.options.items() if option.required]
    if missing:
        return {**SAMPLE, "note": f"not constructed: needs {', '.join(missing)}"}
    takes = accepted_arguments(entry.cls)
    values = {name: value for name, value in SAMPLE.items() if name in takes and name != "tokens"}
    # A language model builds its mixers causal.
    if "causal" in takes:
        values["causal"] = True
    module = entry.cls(**values)
    cost = cost_of(module, SAMPLE["tokens"], SAMPLE["d_model"])
    note = {} if hasattr(module, "cost") else {"note": "measured: the class has no cost formula"}
    return {
        **SAMPLE,
        "parameters": cost.parameters,
        "flops": cost.flops,
        "cache_bytes_per_token": cost.cache_bytes_per_token,
        **note,
    }


def page(description: dict[str, Any]) -> str:
    """Return a description as text."""
    kind = {"attn": "attention", "ffn": "FFN", "block": "paired block"}[description["kind"]]
    lines = [f"{description['name']} ({kind})", f"  {description['summary']}", ""]
    lines += ["  source   " + description["source"]]
    if "traits" in description:
        lines += ["  traits   " + traits_text(description["traits"])]
    lines += ["  costs    " + costs_text(description["costs"]), ""]
    return "\n".join(lines + options_lines(description)).rstrip()


def traits_text(traits: dict[str, Any]) -> str:
    """Return traits in words: those that hold, those that do not, the cache, the types."""
    words = {True: [], False: []}  # type: dict[bool, list[str]]
    for name, value in traits.items():
        if isinstance(value, bool):
            words[value].append(name.replace("_", " "))
    text = ", ".join(words[True]) or "none"
    if words[False]:
        text += f"; not: {', '.join(words[False])}"
    return f"{text}; cache: {traits['cache']}; {', '.join(traits['dtypes'])}"


def costs_text(figures: dict[str, Any]) -> str:
    """Return the figures of `costs` on one line."""
    shown = []
    if "parameters" in figures:
        shown.append(f"{figures['parameters']:,} parameters")
    if "flops" in figures:
        shown.append(f"{figures['flops'] / 1e9:,.3f} GFLOP forward")
    if figures.get("cache_bytes_per_token"):
        shown.append(f"{figures['cache_bytes_per_token']:,} cache bytes per token (float32)")
    if "note" in figures:
        shown.append(figures["note"])
    return f"{'; '.join(shown)} (d_model={SAMPLE['d_model']}, n_heads={SAMPLE['n_heads']}, T={SAMPLE['tokens']})"


def options_lines(description: dict[str, Any]) -> list[str]:
    """Return one entry per option: flag, type, default, and the text below."""
    import textwrap

    from blockyard.cli.settings import value_text

    options = description["options"]
    if not options:
        return ["  no options"]
    lines = ["  options"]
    for name, option in options.items():
        unset = option["default"] is None and "null" in option["type"].split(" | ")
        default = f"default {'null' if unset else value_text(option['default'])}"
        default = "required" if option["required"] else default
        flag = description["flags"].get(name, f"{name} (from Python)")
        lines.append(f"    {flag}  {option['type']}, {default}")
        lines += textwrap.wrap(option["help"], 92, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return lines


COMMAND = Command(
    "info",
    "one block in full: traits, options, costs, source",
    add_arguments,
    run,
    order=41,
    purpose="understand",
    example="blockyard info tva",
)
