"""`blockyard export RUN`: a run as a model of Hugging Face transformers."""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.sources import add_trust

    parser.usage = "%(prog)s RUN --to hf --out DIR [options]"
    parser.plain("run", "folder of a trained or imported run", metavar="RUN", nargs="?")
    parser.plain("--to", "what to write: hf, a folder for transformers' from_pretrained", choices=("hf",), default="hf")
    parser.plain("--out", "folder to write; a new one", metavar="DIR")
    parser.plain("--as", "original: the architecture that the run was imported from; yard: blockyard's own family; "
                 "auto: the original where the blocks still fit", choices=("auto", "original", "yard"), default="auto",
                 dest="family")  # fmt: skip
    add_trust(parser, "the run")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from blockyard.cli.sources import trusted
    from blockyard.pretrained import export_original, why_not_original
    from blockyard.pretrained.folder import check_new
    from blockyard.tasks.run import read_run

    for name, value in (("run", arguments.run), ("--out", arguments.out)):
        if value is None:
            raise InputError(f"{name} is missing: blockyard export RUN --to {arguments.to} --out DIR")
    trust, target = trusted(arguments), Path(arguments.out)
    check_new(target)
    # Its plug-ins, before anything asks what its blocks are.
    read_run(arguments.run, trust=trust)
    reason = why_not_original(arguments.run)
    if arguments.family == "original" or (arguments.family == "auto" and reason is None):
        export_original(arguments.run, target, trust=trust)
        print("in its original architecture", flush=True)
    else:
        write_own(arguments.run, target)
        why = "" if arguments.family == "yard" else f": {reason}"
        print(f"in blockyard's own family (`import blockyard.hf` before from_pretrained){why}", flush=True)
    print(target)
    return 0


def write_own(run: str, target: object) -> None:
    """Write a run as a model of the yard's family, its tokenizer beside it where it has files for one."""
    from pathlib import Path

    from blockyard.errors import require
    from blockyard.files import write_atomically, writing_folder

    require("transformers", extra="hf")
    from blockyard.hf import from_run
    from blockyard.text.library import BESIDE, TOKENIZER

    model = from_run(run)
    with writing_folder(Path(str(target))) as temporary:
        model.save_pretrained(temporary)
        for name in (TOKENIZER, *BESIDE):
            kept = Path(run) / "tokenizer" / name
            # What the model says of generation itself has been written.
            if kept.is_file() and not (temporary / name).exists():
                write_atomically(temporary / name, kept.read_bytes())


COMMAND = Command(
    "export", "a run as a model of Hugging Face transformers", add_arguments, run, order=22, builds=True,
    example="blockyard export runs/smollm --to hf --out smollm-hf",
)  # fmt: skip
