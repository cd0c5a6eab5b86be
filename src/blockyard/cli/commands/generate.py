"""`blockyard generate`: text from a trained language model, printed as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blockyard.cli.app import see_current_folder
from blockyard.cli.command import Command
from blockyard.cli.parser import Parser
from blockyard.errors import InputError


@dataclass(frozen=True)
class GenerateOptions:
    """What to write, apart from how each token is drawn.

    Args:
        prompt: the text to continue; "-" reads it from standard input.
        tokens: how many tokens to write at most.
        past_context: at the end of the trained context, go on with the latest half of it or stop.
        num_samples: how many continuations; the next one's seed is one higher.
        echo: print the prompt before its continuation.
    """

    prompt: str = "\n"
    tokens: int = 256
    past_context: Literal["slide", "stop"] = "slide"
    num_samples: int = 1
    echo: bool = True


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.flat import add_flat
    from blockyard.generation import SamplingConfig
    from blockyard.options import options_of

    parser.usage = "%(prog)s DIR [options]"
    parser.plain("run", "folder of a trained run", metavar="DIR", nargs="?")
    add_flat(parser, "what to write", options_of(GenerateOptions))
    parser.plain("--stop", "end at this text, which is not printed; may be repeated",
                 metavar="TEXT", action="append", default=[])  # fmt: skip
    add_flat(parser, "how each token is drawn", options_of(SamplingConfig))


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.flat import read_flat
    from blockyard.generation import SamplingConfig
    from blockyard.options import options_of
    from blockyard.training.run import load_run

    if arguments.run is None:
        raise InputError("which run? Give the folder of a trained one: blockyard generate DIR")
    options = GenerateOptions(**read_flat(arguments, options_of(GenerateOptions)))
    sampling = SamplingConfig(**read_flat(arguments, options_of(SamplingConfig)))
    if options.tokens < 1:
        raise InputError(f"--tokens={options.tokens} should be 1 or more")
    if options.num_samples < 1:
        raise InputError(f"--num_samples={options.num_samples} should be 1 or more")
    prompt = read_prompt() if options.prompt == "-" else options.prompt
    # A run may name plug-ins that lie there, as `train lm` found them.
    see_current_folder()
    model, tokenizer, _ = load_run(Path(arguments.run))
    if sampling.seed is None and sampling.temperature > 0:
        sampling = dataclasses.replace(sampling, seed=fresh_seed())
        note(f"seed {sampling.seed}")
    for number in range(options.num_samples):
        if options.num_samples > 1:
            write(f"--- {number + 1} of {options.num_samples}\n")
        drawn = sampling if sampling.seed is None else dataclasses.replace(sampling, seed=sampling.seed + number)
        write_sample(model, tokenizer, prompt, options, drawn, arguments.stop)
    return 0


def write_sample(
    model: Any, tokenizer: Any, prompt: str, options: GenerateOptions, sampling: Any, stop: list[str]
) -> None:
    """Print one continuation, each piece as soon as it is certain."""
    from blockyard.generation import generate_text

    pieces = generate_text(
        model, tokenizer, prompt, max_new_tokens=options.tokens, sampling=sampling, stop=stop,
        past_context=options.past_context, on_note=note,
    )  # fmt: skip
    if options.echo:
        write(prompt)
    try:
        for piece in pieces:
            write(piece)
    finally:
        # Also after Ctrl-C: the shell's prompt begins on a line of its own.
        write("\n")


def write(text: str) -> None:
    """Print at once; a character that the terminal's encoding lacks is shown as ?."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="replace").decode(encoding))
    sys.stdout.flush()


def note(line: str) -> None:
    """Tell the user something without mixing it into the text."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def read_prompt() -> str:
    """The whole standard input as text."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--prompt -: standard input is not UTF-8 text (byte {error.start})") from None


def fresh_seed() -> int:
    """A seed nobody chose, small enough to type again."""
    import secrets

    return secrets.randbelow(2**31)


COMMAND = Command(
    "generate", "text from a trained language model, streaming", add_arguments, run, order=20,
    example='blockyard generate runs/lm-001 --prompt "def main(" --tokens 200 --temperature 0.8',
)  # fmt: skip
