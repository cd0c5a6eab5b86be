"""What a transplant costs and saves, measured: loss by kind of text, recall, time and bytes of a token, samples.

All models answer the same `Probe`. Losses are compared piece by piece; decoding is timed in turns, the original among
the models, behind caches that were really filled with text.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from blockyard.bench.decode import FILL_CHUNK, MOST_STEPS
from blockyard.bench.timing import Case, Clock, Times, interleave
from blockyard.errors import InputError
from blockyard.generation.decode import read
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.stream import generate
from blockyard.generation.text import Decoder as TextDecoder
from blockyard.machine.memory import refuse_beyond_memory
from blockyard.models.lm import TransformerLM, check_ids
from blockyard.nn.parity import evaluating
from blockyard.report.stats import quartiles, speed_word
from blockyard.transplant.measure import Difference, difference, difference_over, recall_losses, token_losses
from blockyard.transplant.record import ALL, Decode, LayerRow, Measures, Recall, Sample

# Contexts at which a token is timed: a page, a chapter, and what a cache is feared for.
CONTEXTS = (512, 2048, 8192)
# The copy test: tokens read twice, and how far apart its copies may lie. Two distances, since a window forgets by
# distance and a low rank does not.
COPIED, APART = 400, (300, 900)
# A copy shorter than this says nothing of recall.
LEAST_COPIED = 16
PROMPT_TOKENS, SAMPLE_TOKENS = 48, 64


@dataclass(frozen=True)
class CopyTest:
    """A text to be read twice with another between.

    Attributes:
        kind: of the text that is read twice.
        between_kind: of the one between.
        text: token ids [n].
        between: token ids [m].
    """

    kind: str
    between_kind: str
    text: Tensor
    between: Tensor


@dataclass(frozen=True)
class Probe:
    """What every model of a transplant is asked; all of it is text of the reporting role.

    Attributes:
        texts: token ids [pieces, length] by kind.
        copies: the copy tests.
        prompts: token ids by kind, to be continued.
        sample_tokens: tokens of a continuation.
        first_token: what every piece begins with; None for nothing.
    """

    texts: Mapping[str, Tensor]
    copies: tuple[CopyTest, ...]
    prompts: Mapping[str, Tensor]
    sample_tokens: int
    first_token: int | None


def make_probe(
    texts: Mapping[str, Tensor],
    first_token: int | None = None,
    *,
    copied: int = COPIED,
    apart: Sequence[int] = APART,
    context: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    sample_tokens: int = SAMPLE_TOKENS,
) -> Probe:
    """Make the questions of the texts to report on.

    Every kind is copied with each distance, from other places of its text, another kind standing between (itself where
    there is only one). Short texts make short copies; too short ones none.

    Args:
        texts: token ids [pieces, length] by kind.
        first_token: the token that every piece begins with; None where they begin with text.
        copied: tokens of a copy test's text, at most.
        apart: tokens between its copies, at most.
        context: of the model: what it reads at once is no longer, since neither model was trained on more, and learned
            positions end there; None for no end.
        prompt_tokens: of the text that is to be continued, at most.
        sample_tokens: of the continuation.

    Raises:
        InputError: for no text, or a kind called "all".
    """
    if not texts:
        raise InputError("texts: name at least one kind of text to report on")
    if ALL in texts:
        raise InputError(f"texts: {ALL!r} stands for all kinds together; call that kind something else")
    # Copies are cut from running text, without the first tokens of its pieces.
    running = {kind: (ids if first_token is None else ids[:, 1:]).reshape(-1) for kind, ids in texts.items()}
    kinds, copies = list(texts), list[CopyTest]()
    front = int(first_token is not None)
    for i, kind in enumerate(kinds):
        other = kinds[(i + 1) % len(kinds)]
        for place, distance in enumerate(apart):
            text, between = running[kind], running[other]
            # A place of its own for each test; one text lends from its other half.
            part = len(text) // len(apart)
            most, wanted = 2 * copied + distance, min(copied, part // (1 if other != kind else 2))
            if context is not None and front + most > context:
                # As far apart for their length as they would have been.
                wanted, distance = min(wanted, (context - front) * copied // most), (context - front) * distance // most
            length = wanted
            start = place * part
            beside = start + length if other == kind else 0
            room = min(distance, (part - length) if other == kind else len(between))
            if length >= LEAST_COPIED and room >= 1:
                test = CopyTest(kind, other, text[start : start + length], between[beside : beside + room])
                copies.append(test)
    # The last piece: what is copied mostly lies before it.
    if context is not None:
        prompt_tokens = min(prompt_tokens, max(1, context // 2 - front))
        sample_tokens = min(sample_tokens, max(1, context - front - prompt_tokens))
    prompts = {kind: ids[-1, : prompt_tokens + front] for kind, ids in texts.items()}
    return Probe(dict(texts), tuple(copies), prompts, sample_tokens, first_token)


def text_losses(model: TransformerLM, texts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the loss of every token by kind of text, [pieces, length − 1] each: what choices are compared by.

    Raises:
        InputError: for ids beyond the model's vocabulary.
    """
    for ids in texts.values():
        check_ids(ids, model.config.vocab_size)
    # On the CPU, where those of all models meet.
    return {kind: token_losses(model, ids).cpu() for kind, ids in texts.items()}


def above_original(new: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Difference]:
    """Return how much larger losses are than the original's, by kind and over all of them.

    Args:
        new: from `text_losses`.
        original: the original's, on the same text.
    """
    found = {kind: difference(losses, original[kind]) for kind, losses in new.items()}
    return {**found, ALL: difference_over(list(new.values()), [original[kind] for kind in new])}


def measure(
    model: TransformerLM,
    probe: Probe,
    tokenizer: TextDecoder,
    *,
    original: Mapping[str, Tensor] | None = None,
    losses: Mapping[str, Tensor] | None = None,
    decode: Sequence[Decode] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Measures:
    """Measure one model, the original or a choice.

    Args:
        model: to be measured.
        probe: from `make_probe`, the same for all models.
        tokenizer: turns samples into text.
        original: the original's losses, from `text_losses`; None where this is the original.
        losses: this model's, where they are known already.
        decode: costs of a token, from `decode_costs`.
        say: told what begins.

    Raises:
        InputError: for ids beyond the model's vocabulary.
    """
    if losses is None:
        say("loss by kind of text")
        losses = text_losses(model, probe.texts)
    say("copy tests")
    recall = tuple(_recall(model, test, probe.first_token) for test in probe.copies)
    say("samples")
    samples = tuple(_sample(model, kind, ids, probe, tokenizer) for kind, ids in probe.prompts.items())
    parameters = list(model.parameters())
    return Measures(
        loss={kind: float(found.double().mean()) for kind, found in losses.items()},
        above=None if original is None else above_original(losses, original),
        recall=recall,
        decode=tuple(decode),
        parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.nbytes for p in parameters),
        samples=samples,
    )


def _recall(model: TransformerLM, test: CopyTest, first_token: int | None) -> Recall:
    first, second = recall_losses(model, test.text, test.between, first_token)
    means = (float(losses.double().mean()) for losses in (first, second))
    return Recall(test.kind, test.between_kind, len(test.text), len(test.between), *means)


def _sample(model: TransformerLM, kind: str, ids: Tensor, probe: Probe, tokenizer: TextDecoder) -> Sample:
    # Always the likeliest token: two models then differ by what they are, not by a draw.
    greedy = SamplingConfig(temperature=0.0)
    prompt = ids.tolist()
    written = list(generate(model, prompt, max_new_tokens=probe.sample_tokens, sampling=greedy))
    return Sample(kind, tokenizer.decode(prompt[probe.first_token is not None :]), tokenizer.decode(written))


class _Reader:
    """A model with a cache that grows from one context to the next, read token by token in between.

    Args:
        model: in eval mode.
        ids: the text that fills the cache, [n]; read again from its beginning where it is too short.
    """

    def __init__(self, model: TransformerLM, ids: Tensor) -> None:
        self.model, self.cache = model, model.new_cache(1)
        self.ids = ids.to(next(model.parameters()).device)

    def fill(self, context: int) -> None:
        """Read on until the cache has seen so many tokens."""
        start = self.cache.length
        places = torch.arange(start, context, device=self.ids.device) % len(self.ids)
        if len(places):
            # No logits of what only fills a cache: a vocabulary is wider than the model.
            read(self.model, self.ids[places][None], self.cache, chunk=FILL_CHUNK, last=1)
        # Growing is paid for once per doubling, not by whichever step is timed.
        self.cache.reserve(MOST_STEPS)
        self.point = self.cache.snapshot()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.model(self.ids[None, :1], cache=self.cache, last=1)

    def rewind(self) -> None:
        self.cache.rollback(self.point)
        self.point = self.cache.snapshot()


def decode_costs(
    models: Mapping[str, TransformerLM],
    ids: Tensor,
    contexts: Sequence[int] = CONTEXTS,
    *,
    reference: str | None = None,
    rounds: int = 9,
    round_seconds: float = 0.1,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, tuple[Decode, ...]]:
    """Time one more token behind full caches, all models in turns, and count what the caches hold.

    Args:
        models: by name, on one device.
        ids: text that fills the caches, [n].
        contexts: tokens in them.
        reference: the model that speeds are relative to; the first one when not given.
        rounds: turns of each.
        round_seconds: how long a turn lasts; a token that takes longer is a turn of its own.
        say: told what begins.

    Raises:
        InputError: for a context below 1, or models and caches that do not fit into memory together.
    """
    if not contexts or min(contexts) < 1:
        raise InputError(f"contexts={','.join(map(str, contexts))} should be whole numbers of at least 1")
    first = next(iter(models)) if reference is None else reference
    device = next(models[first].parameters()).device
    held = sum(model.new_cache(1).bytes_per_token for model in models.values()) * (max(contexts) + MOST_STEPS)
    what = f"the caches of {len(models)} models at {max(contexts):,} tokens take at most {{}}"
    refuse_beyond_memory(held, what, device)
    readers = {name: _Reader(model, ids) for name, model in models.items()}
    found: dict[str, list[Decode]] = {name: [] for name in models}
    with evaluating(*models.values()):
        for context in sorted(set(contexts)):
            say(f"a token behind {context:,}")
            for reader in readers.values():
                reader.fill(context)
            held_by = {name: tuple(int(layer.nbytes) for layer in reader.cache) for name, reader in readers.items()}
            cases = {name: Case(reader.run, reader.rewind, MOST_STEPS) for name, reader in readers.items()}
            times = interleave(cases, Clock(device), rounds=rounds, round_seconds=round_seconds)
            for name in models:
                taken = (_seconds(times[name], device), _seconds(times[first], device))
                found[name].append(_decode(context, *taken, held_by[name], name == first))
    return {name: tuple(costs) for name, costs in found.items()}


def _seconds(times: Times, device: torch.device) -> list[float]:
    # The wall clock counts what other programs do; on an accelerator it is the device's own.
    return times.wall if device.type == "cuda" else times.cpu


def _decode(
    context: int, mine: list[float], theirs: list[float], layer_bytes: tuple[int, ...], is_reference: bool
) -> Decode:
    spread = quartiles([1000 * seconds for seconds in mine])
    ratios = [r / max(t, 1e-12) for r, t in zip(theirs, mine)]
    return Decode(
        context=context,
        ms_per_token=spread["median"],
        low=spread["low"],
        high=spread["high"],
        speed=1.0 if is_reference else median(ratios),
        word="" if is_reference else speed_word(ratios),
        cache_bytes=sum(layer_bytes),
        layer_bytes=layer_bytes,
    )


def decode_text(texts: Mapping[str, Tensor]) -> Tensor:
    """Return the text that fills caches: pieces of every kind in turn, [n]."""
    rows = itertools.zip_longest(*(ids.unbind(0) for ids in texts.values()))
    return torch.cat([piece for row in rows for piece in row if piece is not None])


def layer_rows(
    model: TransformerLM, original: TransformerLM, alone: Mapping[int, Difference] | None = None
) -> tuple[LayerRow, ...]:
    """Return what stands in every layer of a choice.

    Args:
        model: the choice.
        original: what it was made of.
        alone: what each layer by itself cost on the choosing text, where that was measured.
    """
    rows, known = list[LayerRow](), alone or {}
    for i, (cache, new, old) in enumerate(zip(model.new_cache(1), model.config.layers, original.config.layers)):
        rows.append(LayerRow(i, str(new), new != old, cache.bytes_per_token // cache.dtype.itemsize, known.get(i)))
    return tuple(rows)
