"""Generation as a stream: tokens, or text, as soon as they are certain."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Required, SupportsIndex, TypedDict, Unpack

from torch import Tensor

from blockyard.errors import InputError
from blockyard.generation.decode import BATCH_SIZE, Decoder, PastContext
from blockyard.generation.reading import PREFILL_CHUNK
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.speculative import Acceptance, SpeculativeDecoder
from blockyard.generation.text import Decoder as TextDecoder
from blockyard.generation.text import StopMatcher, TextStream

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM


class Coder(TextDecoder, Protocol):
    """What text generation asks of a tokenizer; `separator_id`, the id between two documents, is used if it has one,
    and so are `end_ids`, which end a text, and `prefix_ids`, which stand before every one."""

    def encode(self, text: str) -> list[int]: ...


class WritingOptions(TypedDict, total=False):
    """Options that every way of writing hands on to `Batch`, which describes them and has their defaults."""

    max_new_tokens: Required[int | Sequence[int]]
    sampling: SamplingConfig | None
    stop: str | Sequence[str]
    past_context: PastContext
    use_cache: bool
    prefill_chunk: int | None
    batch_size: int
    draft: TransformerLM | None
    draft_tokens: int
    on_note: Callable[[str], None] | None


class BatchOptions(WritingOptions, total=False):
    """The same, and what follows from the tokenizer where text is written."""

    tokenizer: TextDecoder | None
    end_tokens: Sequence[int]


class Batch:
    """The texts of several prompts while they are written; iterate over it to get what became certain in each step.

    Each step gives a list with one `(tokens, text)` per row, empty for rows that wait or have ended. Without
    a tokenizer the texts are "". At most `batch_size` rows are written at a time; when one ends, the next prompt takes
    its place.

    Args:
        model: a language model of this library.
        prompts: token ids, one list per row.
        max_new_tokens: upper limit of new tokens per row, 0 or more; one for all, or one for each prompt.
        sampling: how tokens are drawn; row i of a batch uses seed + i.
        stop: strings that end a row; they are not emitted, and text that may begin one is held back. Only new
            text is searched, not the prompt.
        tokenizer: turns tokens into text; needed for `stop` and for text.
        end_tokens: tokens that end a row; they are not emitted.
        past_context: "slide" or "stop", see `decode.Decoder`.
        use_cache: False recomputes everything for each token.
        prefill_chunk: prompt tokens read at a time; None reads a prompt at once.
        batch_size: most rows written at a time; fewer where the memory does not hold their caches, which is noted.
        draft: a smaller model that proposes tokens (one prompt only), see `speculative.SpeculativeDecoder`.
        draft_tokens: most tokens that it proposes at a time.
        on_note: called with a line when something the user should know happens (the context was passed).

    Attributes:
        notes: the lines given to `on_note`.
        acceptance: with a draft, how many of its proposals were kept; else None.
        finished: per row None while it runs, then "length", "stop" (string), "end" (token) or "context".

    Raises:
        InputError: for bad prompts or options, at construction.
    """

    def __init__(
        self,
        model: TransformerLM,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int | Sequence[int],
        sampling: SamplingConfig | None = None,
        stop: str | Sequence[str] = (),
        tokenizer: TextDecoder | None = None,
        end_tokens: Sequence[int] = (),
        past_context: PastContext = "slide",
        use_cache: bool = True,
        prefill_chunk: int | None = PREFILL_CHUNK,
        batch_size: int = BATCH_SIZE,
        draft: TransformerLM | None = None,
        draft_tokens: int = 4,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        limits = limits_of(max_new_tokens, len(prompts))
        if len(prompts) == 0:
            raise InputError("there is no prompt; give at least one")
        StopMatcher(stop)  # refuses bad stop strings even where no tokenizer is there to find them
        if stop and tokenizer is None:
            raise InputError(f"stop={stop!r} is matched on text: give the tokenizer too")
        self.notes: list[str] = []
        # Everything is refused here, not at the first token: a stream is often read far from where it was made.
        self.finished: list[str | None] = [None] * len(prompts)
        self._on_note, self._end = on_note, frozenset(end_tokens)
        # Of each row: tokens still to be drawn, and what makes text of them, from its first token to its last.
        self._left, self._streams = limits, dict[int, TextStream]()
        self._tokenizer, self._stop = tokenizer, stop
        # Without stop strings no token ever has to wait for what follows it.
        self._hold = bool(stop)
        common: dict[str, Any] = {
            "past_context": past_context,
            "use_cache": use_cache,
            "prefill_chunk": prefill_chunk,
            "note": self._note,
        }
        sampling = sampling or SamplingConfig()
        self.acceptance: Acceptance | None = None
        if draft is None:
            common |= {"batch_size": batch_size, "new_tokens": max(limits)}
            self._decoder: Decoder = Decoder(model, prompts, sampling, **common)
        else:
            fast = SpeculativeDecoder(model, prompts, sampling, draft=draft, draft_tokens=draft_tokens, **common)
            self._decoder, self.acceptance = fast, fast.acceptance

    @property
    def seed(self) -> int:
        """The seed in use, also when none was given."""
        return self._decoder.sampler.seed

    @property
    def tokens_read(self) -> int:
        """Tokens of prompts that went through the model so far; those of a beginning that prompts share count once."""
        return self._decoder.tokens_read

    def __iter__(self) -> Iterator[list[tuple[list[int], str]]]:
        for drawn in self.steps():
            out: list[tuple[list[int], str]] = [([], "")] * len(self.finished)
            for row, found in drawn.items():
                out[row] = found
            yield out

    def steps(self) -> Iterator[dict[int, tuple[list[int], str]]]:
        """Yield what became certain in each step by row, of those rows alone that were written."""
        idle = [row for row, left in enumerate(self._left) if not left]
        self._decoder.skip(idle)
        for row in idle:
            self.finished[row] = self.finished[row] or "length"
        while self._decoder.live or self._decoder.waiting:
            drawn = self._decoder.step()
            out = {row: self._take(row, token) for row, token in drawn.items()}
            # Before the step is given: a caller that stops reading leaves no row behind that nobody wants.
            self._decoder.finish([row for row in drawn if self.finished[row] is not None])
            yield out

    def _take(self, row: int, token: int) -> tuple[list[int], str]:
        """Return one new token of one row: (tokens, text) that it makes certain."""
        self._left[row] -= 1
        last, stream = not self._left[row], None
        if self._tokenizer is not None:
            stream = self._streams.get(row) or TextStream(self._tokenizer, self._stop)
            self._streams[row] = stream
        ended = token in self._end
        tokens, text = [] if ended else [token], ""
        if stream is not None:
            # The token that ends a row has text in some tokenizers ("</s>"), which is nobody's text.
            held, text = ([], "") if ended else stream.push(token)
            if stream.stopped:
                self.finished[row] = "stop"
            elif ended or last or self._decoder.full(row):
                rest, tail = stream.finish()
                held, text = held + rest, text + tail
                if stream.stopped:
                    self.finished[row] = "stop"
            tokens = held if self._hold else tokens
        if self.finished[row] is None:
            if ended:
                self.finished[row] = "end"
            elif last:
                self.finished[row] = "length"
            elif self._decoder.full(row):
                self.finished[row] = "context"
                self._note(f"stopped: the context of {self._decoder.context} tokens is full")
        if self.finished[row] is not None:
            self._streams.pop(row, None)
        return tokens, text

    def _note(self, line: str) -> None:
        # Once: every row of a batch passes the context, and one line says it.
        if line not in self.notes:
            self.notes.append(line)
            if self._on_note is not None:
                self._on_note(line)


def limits_of(max_new_tokens: int | Sequence[int], rows: int) -> list[int]:
    """Return the upper limit of every row; InputError for a negative one, or another number of them."""
    # `index` refuses 2.5 and takes numpy's integers.
    given = [max_new_tokens] * rows if isinstance(max_new_tokens, SupportsIndex) else list(max_new_tokens)
    limits = [operator.index(limit) for limit in given]
    if len(limits) != rows:
        raise InputError(
            f"max_new_tokens has {len(limits)} limits for {rows} prompts; give one for each, or one number"
        )
    # Asked of the number, too: without a prompt there is no row that has it.
    if min([*limits, operator.index(max_new_tokens) if isinstance(max_new_tokens, SupportsIndex) else 0]) < 0:
        raise InputError(f"max_new_tokens={max_new_tokens} is negative; use 0 or more")
    return limits


def generate(
    model: TransformerLM,
    prompt_ids: Sequence[int] | Tensor,
    **options: Unpack[BatchOptions],
) -> Iterator[int]:
    """Return tokens that continue one prompt, each as soon as it is certain.

    With stop strings, tokens wait while their text may still be part of one, and those that reach into it are
    not given; `generate_text` gives the exact text.

    Args:
        model: a language model of this library; it is not left in another mode, and no gradient is kept.
        prompt_ids: token ids [T], at least one.
        options: of `Batch`, by name; `max_new_tokens` must be given.

    Raises:
        InputError: for a bad prompt or option, at the call and not at the first token.
    """
    ids = prompt_ids.tolist() if isinstance(prompt_ids, Tensor) else list(prompt_ids)
    if ids and not isinstance(ids[0], int):
        raise InputError("prompt_ids is one prompt, token ids [T]; use generate_batch for several")
    batch = Batch(model, [ids], **options)
    return (token for ((tokens, _text),) in batch for token in tokens)


def generate_batch(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    **options: Unpack[BatchOptions],
) -> list[list[int]]:
    """Return the new tokens of several prompts, in their order; each row is what it would be alone.

    Row i draws with seed + i. At most `batch_size` rows are written at a time, each place by one prompt after another;
    a beginning that prompts share is read once. Arguments and errors as for `Batch`.
    """
    batch = Batch(model, prompts, **options)
    rows: list[list[int]] = [[] for _ in prompts]
    for step in batch.steps():
        for row, (tokens, _text) in step.items():
            rows[row] += tokens
    return rows


def generate_text(
    model: TransformerLM,
    tokenizer: Coder,
    prompt: str,
    *,
    end_tokens: Sequence[int] | None = None,
    **options: Unpack[WritingOptions],
) -> Iterator[str]:
    """Return text that continues the prompt, piece by piece; never half a character, never any of a stop string.

    The pieces joined equal the decode of all new tokens up to the stop string.

    Args:
        model: a language model of this library.
        tokenizer: the tokenizer that it was trained with.
        prompt: text to continue; empty begins a new document, when the tokenizer has a `separator_id`.
        end_tokens: tokens that end the text; None = the tokenizer's `separator_id`, the end of the document.
        options: further ones of `Batch`, by name; `max_new_tokens` must be given.

    Raises:
        InputError: for an empty prompt without a `separator_id`, or as `Batch` says; at the call.
    """
    ids = prompt_tokens(tokenizer, prompt)
    end_tokens = end_of_text(tokenizer) if end_tokens is None else end_tokens
    batch = Batch(model, [ids], tokenizer=tokenizer, end_tokens=end_tokens, **options)
    return (text for ((_tokens, text),) in batch if text)


def end_of_text(tokenizer: Coder) -> tuple[int, ...]:
    """Return the tokens that end a text unless told otherwise: the separator between documents and the tokenizer's own
    ends, as far as it has any."""
    separator = getattr(tokenizer, "separator_id", None)
    ends = tuple(getattr(tokenizer, "end_ids", ()))
    return ends if separator is None or separator in ends else (separator, *ends)


def prompt_tokens(tokenizer: Coder, prompt: str) -> list[int]:
    """Return the prompt's tokens; for an empty one the separator that stands before a document (InputError if none
    does)."""
    ids = list(tokenizer.encode(prompt))
    prefix = list(getattr(tokenizer, "prefix_ids", ()))
    if ids or prefix:
        return prefix + ids
    separator = getattr(tokenizer, "separator_id", None)
    if separator is None:
        raise InputError(
            "the prompt is empty, and this tokenizer has no separator to begin a document with; "
            "give at least one character, for example a line break"
        )
    return [separator]
