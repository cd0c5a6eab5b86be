"""`blockyard export RUN`: a run as a model of Hugging Face transformers, a graph of torch.export, or ONNX."""

from __future__ import annotations

import argparse
from pathlib import Path

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.sources import add_trust

    parser.usage = "%(prog)s RUN --to hf|pt2|onnx --out DIR [options]"
    parser.plain("run", "folder of a trained or imported run", metavar="RUN", nargs="?")
    parser.plain(
        "--to",
        "what the folder holds: hf, a model for transformers' from_pretrained; pt2, model.pt2 for torch.export.load; "
        "onnx, model.onnx for onnxruntime",
        choices=("hf", "pt2", "onnx"),
        default="hf",
    )
    parser.plain("--out", "folder to write; a new one", metavar="DIR")
    parser.plain("--as", "of --to hf: original, the architecture that the run was imported from; yard, blockyard's own "
                 "family; auto, the original where the blocks still fit", choices=("auto", "original", "yard"),
                 default="auto", dest="family")  # fmt: skip
    add_trust(parser, "the run")


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.sources import trusted

    for name, value in (("run", arguments.run), ("--out", arguments.out)):
        if value is None:
            raise InputError(f"{name} is missing: blockyard export RUN --to {arguments.to} --out DIR")
    trust, target = trusted(arguments), Path(arguments.out)
    if arguments.to == "hf":
        _to_transformers(arguments.run, target, arguments.family, trust)
    else:
        _to_graph(arguments.run, target, arguments.to, arguments.family, trust)
    print(target)
    return 0


def _to_transformers(run: str, target: Path, family: str, trust: bool) -> None:
    from blockyard.pretrained import export_original, why_not_original
    from blockyard.pretrained.folder import check_new
    from blockyard.tasks.run import read_run

    check_new(target)
    # Its plug-ins, before anything asks what its blocks are.
    read_run(run, trust=trust)
    reason = why_not_original(run)
    if family == "original" or (family == "auto" and reason is None):
        export_original(run, target, trust=trust)
        print("in its original architecture", flush=True)
    else:
        write_own(run, target)
        why = "" if family == "yard" else f": {reason}"
        print(f"in blockyard's own family (`import blockyard.hf` before from_pretrained){why}", flush=True)


def _to_graph(run: str, target: Path, to: str, family: str, trust: bool) -> None:
    from blockyard.export import write_onnx, write_pt2

    if family != "auto":
        raise InputError(f"--as={family} is of --to hf; a graph has no architecture but its own")
    write = write_pt2 if to == "pt2" else write_onnx
    parity = write(run, target, trust=trust)
    print(parity or "not read again: onnxruntime is not installed, and nothing says whether the file is right")


def write_own(run: str, target: Path) -> None:
    """Write a run as a model of the yard's family, its tokenizer beside it where it has files for one."""
    from blockyard.errors import require
    from blockyard.files import writing_folder

    transformers = require("transformers", extra="hf")
    from blockyard.hf import from_run
    from blockyard.pretrained.sources import without_bars
    from blockyard.text.saved import copy_tokenizer

    model = from_run(run)
    with writing_folder(target) as temporary, without_bars(transformers):
        model.save_pretrained(temporary)
        # What the model says of generation itself has been written.
        copy_tokenizer(Path(run), temporary)


COMMAND = Command(
    "export", "a run for transformers, torch alone, or ONNX", add_arguments, run, order=22, builds=True,
    example="blockyard export runs/smollm --to hf --out smollm-hf",
)  # fmt: skip
