"""`blockyard import MODEL`: a pretrained model of others as a run folder."""

from __future__ import annotations

import argparse

from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


def add_arguments(parser: Parser) -> None:
    parser.usage = "%(prog)s MODEL --out DIR [options]"
    parser.plain("model", "a folder with config.json and safetensors, or a .gguf file", metavar="MODEL", nargs="?")
    parser.plain("--out", "folder of the run", metavar="DIR")
    parser.plain("--tokenizer", "a folder with a tokenizer.json, where the model brings none", metavar="DIR")


def run(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from blockyard.files import user_path
    from blockyard.pretrained import load_pretrained, write_run
    from blockyard.pretrained.folder import lacks_tokenizer
    from blockyard.text.library import TOKENIZER
    from blockyard.training.folder import CONFIG, check_run_folder

    if arguments.model is None:
        raise InputError("import what? Give a folder or a .gguf file: blockyard import MODEL --out DIR")
    if arguments.out is None:
        raise InputError("where to? Give the run's folder: --out DIR")
    # Before minutes of reading.
    if (Path(arguments.out) / CONFIG).exists():
        raise InputError(f"{arguments.out} already holds a run; give another --out")
    check_run_folder(Path(arguments.out), resume=False)
    folder = user_path(arguments.model)
    if folder.is_dir() and arguments.tokenizer is None and not (folder / TOKENIZER).is_file():
        raise lacks_tokenizer(folder)
    found = load_pretrained(arguments.model, tokenizer=arguments.tokenizer)
    write_run(found, arguments.out)
    config = found.model.config
    total = sum(p.numel() for p in found.model.parameters())
    print(f"{found.family}: {total:,} parameters, {config.n_layers} layers of {config.choice}")
    print(
        str(found.parity) if found.parity else "not compared with transformers, which is not installed or does not fit"
    )
    print(arguments.out)
    return 0


COMMAND = Command(
    "import", "a pretrained model (Llama, Qwen, GPT-2, Mixtral, …) as a run", add_arguments, run, order=21, builds=True,
    example="blockyard import SmolLM2-135M-Instruct --out runs/smollm",
)  # fmt: skip
