"""`blockyard generate`: text from a trained language model, printed as it comes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from blockyard.cli.command import Command
from blockyard.cli.console import minding_interrupts
from blockyard.cli.console import write_as_it_is as write
from blockyard.cli.parser import Parser
from blockyard.cli.prompts import read_prompts
from blockyard.errors import InputError, at_least, at_most

if TYPE_CHECKING:
    from blockyard.generation import Batch, SamplingConfig
    from blockyard.models.lm import TransformerLM
    from blockyard.text.tokenizer import Tokenizer

# Of texts that are listed before the first is written, or held at once.
MOST = {"num_samples": 100_000, "batch_size": 100_000}


@dataclass(frozen=True)
class GenerateOptions:
    """What to write, apart from how each token is drawn.

    Args:
        tokens: how many tokens to write at most.
        past_context: at the end of the trained context, go on with the latest half of it or stop.
        num_samples: how many continuations of each prompt; the next one's seed is one higher. With beams, the best.
        batch_size: how many texts are written at a time; where one ends, the next begins. Fewer where the memory does
            not hold their caches.
        echo: print the prompt before its continuation.
        chat: take every prompt for a message, and write the answer as the model's chat template has it; nothing is
            echoed.
        system: with chat, what is said to the model before the message.
        prefill_chunk: prompt tokens read at a time, which bounds the memory of long prompts; none reads all at once.
    """

    tokens: int = 256
    past_context: Literal["slide", "stop"] = "slide"
    num_samples: int = 1
    batch_size: int = 64
    echo: bool = True
    chat: bool = False
    system: str | None = None
    prefill_chunk: int | None = 2048


@dataclass(frozen=True)
class BeamOptions:
    """The most probable text instead of a drawn one.

    Args:
        beams: how many continuations are followed at a time; none draws tokens instead.
        length_penalty: a text of n tokens is ranked by its log-probability / n ** length_penalty; 0 prefers short ones.
    """

    beams: int | None = None
    length_penalty: float = 1.0


@dataclass(frozen=True)
class DraftOptions:
    """A smaller model that proposes tokens, which changes the speed and not the text's quality.

    Args:
        draft: folder of a trained run with the same tokenizer; none writes without.
        draft_tokens: how many tokens it proposes at a time.
    """

    draft: str | None = None
    draft_tokens: int = 4


def add_arguments(parser: Parser) -> None:
    from blockyard.cli.settings import add_flat
    from blockyard.cli.sources import add_trust
    from blockyard.generation import SamplingConfig
    from blockyard.registry.options import options_of

    parser.usage = "%(prog)s DIR [options]"
    parser.plain("run", "folder of a trained run", metavar="DIR", nargs="?")
    parser.plain(
        "--prompt",
        'the text to continue (a line break by default); "-" reads it from standard input; may be repeated',
        metavar="TEXT",
        action="append",
        default=[],
    )
    parser.plain(
        "--prompt_file",
        'a file of prompts: one on each line, or in each line\'s "prompt" of a .jsonl file; "-" reads lines of '
        "standard input; may be repeated",
        metavar="FILE",
        action="append",
        default=[],
    )
    add_trust(parser, "the run or the draft")
    add_flat(parser, "writing", "what to write", options_of(GenerateOptions))
    parser.plain(
        "--stop", "end at this text, which is not printed; may be repeated", metavar="TEXT", action="append", default=[]
    )
    add_flat(parser, "sampling", "how each token is drawn", options_of(SamplingConfig))
    add_flat(parser, "beams", "beam search", options_of(BeamOptions))
    add_flat(parser, "draft", "a smaller model that proposes", options_of(DraftOptions))


def run(arguments: argparse.Namespace) -> int:
    from blockyard.cli.settings import read_flat
    from blockyard.cli.sources import trusted
    from blockyard.generation import SamplingConfig
    from blockyard.registry.options import options_of
    from blockyard.tasks.run import load_run

    if arguments.run is None:
        raise InputError("which run? Give the folder of a trained one: blockyard generate DIR")
    options = GenerateOptions(**read_flat(arguments, options_of(GenerateOptions)))
    drawing = read_flat(arguments, options_of(SamplingConfig))
    searching = read_flat(arguments, options_of(BeamOptions))
    helping = read_flat(arguments, options_of(DraftOptions))
    beams, draft, sampling = BeamOptions(**searching), DraftOptions(**helping), SamplingConfig(**drawing)
    at_least(1, **{f"--{name}": getattr(options, name) for name in ("tokens", "num_samples", "batch_size")})
    for name, most in MOST.items():
        at_most(most, **{f"--{name}": getattr(options, name)})
    prompts = read_prompts(arguments.prompt, arguments.prompt_file)
    drawn_only = [*drawing, *helping, *(["stop"] if arguments.stop else [])]
    drawn_only += ["past_context"] if "--past_context" in vars(arguments) else []
    check_together(options, beams, draft, drawn_only, [*searching], [*helping])
    if options.system is not None and not options.chat:
        raise InputError("--system belongs to a conversation: give --chat too")
    trust = trusted(arguments)
    model, tokenizer, run = load_run(arguments.run, tasks=("lm",), trust=trust)
    if "" in prompts and run.data.pack == "documents" and not getattr(tokenizer, "prefix_ids", ()):
        # An empty prompt is the separator, which no row of such a training has in it.
        raise InputError(
            "the run was trained with data.pack=documents, which reads no separator: give a first character"
        )
    if options.chat:
        from blockyard.text.library import Conversation

        tokenizer, options = Conversation(tokenizer, options.system), dataclasses.replace(options, echo=False)
    # Text number n draws with seed + n, whichever texts are written beside it.
    texts = [prompt for prompt in prompts for _ in range(options.num_samples)]
    if beams.beams is not None:
        check_lengths(model, tokenizer, prompts, options.batch_size)
        write_beams(model, tokenizer, prompts, options, beams)
        return 0
    chosen = ""
    if sampling.seed is None and sampling.temperature > 0:
        sampling = dataclasses.replace(sampling, seed=fresh_seed())
        chosen = f"seed {sampling.seed}"
    helper = None if draft.draft is None else load_draft(Path(draft.draft), tokenizer, trust)
    proposed = accepted = passes = 0
    # A draft serves one text at a time; without one all texts are one batch, whose places they take one after another.
    at_a_time = 1 if helper is not None else len(texts)
    for start in range(0, len(texts), at_a_time):
        drawn = sampling if sampling.seed is None else dataclasses.replace(sampling, seed=sampling.seed + start)
        some = texts[start : start + at_a_time]
        batch = make_batch(model, tokenizer, some, options, drawn, arguments.stop, helper, draft)
        if start == 0 and chosen:
            # Now that nothing can be refused any more: an error stands alone.
            note(chosen)
        with minding_interrupts() as check:
            write_batch(batch, texts, start, options, check)
        if batch.acceptance is not None:
            proposed += batch.acceptance.proposed
            accepted += batch.acceptance.accepted
            passes += batch.acceptance.passes
    if passes:
        share = f" ({accepted / proposed:.0%})" if proposed else ""
        note(
            f"draft: {accepted} of {proposed} proposed tokens were kept{share}; the model read "
            f"{(accepted + passes) / passes:.2f} tokens a pass"
        )
    return 0


def check_together(
    options: GenerateOptions,
    beams: BeamOptions,
    draft: DraftOptions,
    drawn_only: list[str],
    searching: list[str],
    helping: list[str],
) -> None:
    """Refuse options that do not go together, rather than ignore one of them.

    Args:
        drawn_only: options given that only drawn text has.
        searching, helping: options given for beams, and for a draft.
    """
    if draft.draft is None and helping:
        raise InputError(f"--{helping[0]} needs a draft: name its run with --draft DIR")
    if beams.beams is None:
        if searching:
            raise InputError(f"--{searching[0]} belongs to beam search: give --beams N too")
        return
    at_least(1, **{"--beams": beams.beams})
    if drawn_only:
        raise InputError(f"--{drawn_only[0]} does not go with --beams, which draws nothing: leave one of them out")
    if options.num_samples > beams.beams:
        raise InputError(f"--num_samples={options.num_samples}: there are no more texts than --beams={beams.beams}")


def check_lengths(model: TransformerLM, tokenizer: Tokenizer, texts: Sequence[str], at_a_time: int) -> None:
    """Refuse prompts of unequal length for beams of a model that cannot read them side by side, before any is written.

    Raises:
        InputError: when a batch would have padding, and the model does not take it.
    """
    from blockyard.generation import prompt_tokens
    from blockyard.generation.reading import check_padding

    lengths = [len(prompt_tokens(tokenizer, text)) for text in texts] if at_a_time > 1 else []
    if any(len(set(lengths[start : start + at_a_time])) > 1 for start in range(0, len(lengths), at_a_time)):
        try:
            check_padding(model)
        except InputError as error:
            raise InputError(
                f"{error}, which prompts of unequal length need when they are read together: "
                "--batch_size 1 writes one after another"
            ) from None


def load_draft(folder: Path, tokenizer: Tokenizer, trust: bool) -> TransformerLM:
    """Return the draft's model; `trust` agrees to the plug-ins that its run names.

    Raises:
        InputError: when its tokenizer is another one.
    """
    from blockyard.tasks.run import load_run

    model, its, _ = load_run(folder, tasks=("lm",), trust=trust)
    if its.fingerprint() != tokenizer.fingerprint():
        raise InputError(
            f"--draft={folder}: its tokenizer ({its.name}, {its.vocab_size} tokens) is not the run's "
            f"({tokenizer.name}, {tokenizer.vocab_size} tokens); train both with the same --data.tokenizer"
        )
    return model


def make_batch(
    model: TransformerLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: GenerateOptions,
    sampling: SamplingConfig,
    stop: list[str],
    helper: TransformerLM | None,
    draft: DraftOptions,
) -> Batch:
    """Return the texts as rows of one batch."""
    from blockyard.generation import Batch, end_of_text, prompt_tokens

    return Batch(
        model,
        [prompt_tokens(tokenizer, prompt) for prompt in prompts],
        max_new_tokens=options.tokens,
        sampling=sampling,
        stop=stop,
        tokenizer=tokenizer,
        end_tokens=end_of_text(tokenizer),
        past_context=options.past_context,
        prefill_chunk=options.prefill_chunk,
        batch_size=options.batch_size,
        draft=helper,
        draft_tokens=draft.draft_tokens,
        on_note=note,
    )


def write_batch(
    batch: Batch, texts: Sequence[str], start: int, options: GenerateOptions, check: Callable[[], None]
) -> None:
    """Print the texts in order: the first that is unfinished as it comes, those behind it when it is their turn.

    `check` is called after every step: it ends the writing if the user wants it.
    """
    rows = len(batch.finished)
    waiting: dict[int, str] = {}
    turn = 0
    begin(texts, start, options)
    try:
        for step in batch.steps():
            check()
            for row, (_tokens, text) in step.items():
                waiting[row] = waiting.get(row, "") + text
            while True:
                write(waiting.pop(turn, ""))
                if batch.finished[turn] is None or turn + 1 == rows:
                    break
                write("\n")
                turn += 1
                begin(texts, start + turn, options)
    finally:
        # Also after Ctrl-C: the shell's prompt begins on a line of its own.
        write("\n")


def begin(texts: Sequence[str], number: int, options: GenerateOptions) -> None:
    """Print what stands before a text."""
    if len(texts) > 1:
        write(f"--- {number + 1} of {len(texts)}\n")
    if options.echo:
        write(texts[number])


def write_beams(
    model: TransformerLM, tokenizer: Tokenizer, prompts: list[str], options: GenerateOptions, beams: BeamOptions
) -> None:
    """Print the most probable continuations of every prompt, best first."""
    from blockyard.generation import beam_search, end_of_text, prompt_tokens

    total, number = len(prompts) * options.num_samples, 0
    for start in range(0, len(prompts), options.batch_size):
        some = prompts[start : start + options.batch_size]
        found = beam_search(
            model,
            [prompt_tokens(tokenizer, prompt) for prompt in some],
            max_new_tokens=options.tokens,
            beams=beams.beams or 1,
            n_best=options.num_samples,
            length_penalty=beams.length_penalty,
            end_tokens=end_of_text(tokenizer),
            prefill_chunk=options.prefill_chunk,
        )
        for prompt, best in zip(some, found):
            for hypothesis in best:
                number += 1
                if total > 1:
                    write(f"--- {number} of {total}, log-probability {hypothesis.log_probability:.2f}\n")
                write((prompt if options.echo else "") + tokenizer.decode(hypothesis.tokens) + "\n")


def note(line: str) -> None:
    """Tell the user something without mixing it into the text."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def fresh_seed() -> int:
    """Return a seed nobody chose, small enough to type again."""
    import secrets

    return secrets.randbelow(2**31)


COMMAND = Command(
    "generate",
    "text from a trained language model, streaming",
    add_arguments,
    run,
    order=20,
    builds=True,
    common=(
        "--prompt",
        "--tokens",
        "--temperature",
        "--top_k",
        "--top_p",
        "--seed",
        "--num_samples",
        "--stop",
        "--chat",
        "--draft",
    ),
    example='blockyard generate runs/lm-001 --prompt "def main(" --tokens 200 --temperature 0.8',
)
