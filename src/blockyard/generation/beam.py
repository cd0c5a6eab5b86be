"""Beam search: the most probable continuations, found by going on with the best few of each length.

All beams of all prompts are rows of one batch: a prompt is read once and its cache repeated, rows are reordered with
their beams, and the rows of a finished prompt are taken out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.generation.decode import check_prompt
from blockyard.generation.reading import PREFILL_CHUNK, check_chunk, evaluating, has_cache, pad_left, read
from blockyard.generation.sampling import check_finite

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM


@dataclass(frozen=True)
class Hypothesis:
    """One continuation.

    Args:
        tokens: the new tokens, without the one that ended it.
        log_probability: natural logarithm of its probability, the end token's included.
        score: log_probability / (number of tokens, the end's included) ** length_penalty; the ranking goes by it.
        finished: "end" (an end token) or "length" (max_new_tokens, or the model's context was full).
    """

    tokens: list[int]
    log_probability: float
    score: float
    finished: str


@dataclass
class _Search:
    """The state of one prompt: its open beams and the best finished hypotheses, best first."""

    # Per prompt, since a longer prompt leaves less room in the context.
    limit: int  # new tokens at most
    n_best: int
    length_penalty: float
    open: list[list[int]] = field(default_factory=lambda: [[]])
    found: list[Hypothesis] = field(default_factory=list)

    def add(self, tokens: list[int], log_probability: float, finished: str) -> None:
        # The end token has a probability, too, so it counts as a token where the mean is taken.
        length = len(tokens) + (finished == "end")
        score = log_probability / max(1, length) ** self.length_penalty
        self.found.append(Hypothesis(tokens, log_probability, score, finished))
        # Stable, so that of two with one score the one found first stays first: results repeat.
        self.found.sort(key=lambda hypothesis: -hypothesis.score)
        del self.found[self.n_best :]

    def settled(self, best_open: float) -> bool:
        """Return whether no open beam can still come among the best; none grows more probable, only longer."""
        # Anything could still enter.
        if len(self.found) < self.n_best:
            return False
        # The best that it can come to: no token of probability 1 changes the sum, and length only divides a negative
        # number by more.
        return best_open / self.limit**self.length_penalty <= self.found[-1].score


def beam_search(
    model: TransformerLM,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    beams: int = 4,
    n_best: int = 1,
    length_penalty: float = 1.0,
    end_tokens: Sequence[int] = (),
    prefill_chunk: int | None = PREFILL_CHUNK,
    use_cache: bool = True,
) -> list[list[Hypothesis]]:
    """Return the n best continuations of every prompt, best first; deterministic.

    A prompt's search ends when no open beam could still enter its n best. Each prompt's result is what it would be
    alone.

    Args:
        model: a language model of this library; it is not left in another mode, and no gradient is kept.
        prompts: token ids, one list per prompt, each shorter than the model's context.
        max_new_tokens: upper limit of new tokens, 1 or more; the room left in the context limits them too.
        beams: continuations that are followed at a time.
        n_best: how many are returned, at most `beams`; fewer where there are fewer.
        length_penalty: a continuation of n tokens is ranked by log-probability / n ** length_penalty: 0 prefers
            short ones, 1 ranks by the mean.
        end_tokens: tokens that end a continuation.
        prefill_chunk: prompt tokens read at a time; None reads a prompt at once.
        use_cache: False reads everything again for each token.

    Raises:
        InputError: for a bad prompt or option.
    """
    _check_options(max_new_tokens, beams, n_best, length_penalty)
    context, vocabulary = model.config.context, model.config.vocab_size
    # Beams cannot slide: their windows would drop different tokens and no longer be hypotheses of one prompt.
    rows = [check_prompt(prompt, vocabulary) for prompt in prompts]
    if not rows:
        raise InputError("there is no prompt; give at least one")
    if max(map(len, rows)) > context:
        raise InputError(
            f"a prompt has {max(map(len, rows))} tokens and the model's context is {context}; beams cannot slide past "
            "it, so shorten the prompt"
        )
    # The token that a full context predicts is the last that can be known.
    searches = [_Search(min(max_new_tokens, context + 1 - len(row)), n_best, length_penalty) for row in rows]
    modules = list(model.modules())
    with evaluating(modules):
        _Beams(model, rows, searches, beams, frozenset(end_tokens), check_chunk(prefill_chunk), use_cache).run()
    return [search.found for search in searches]


def _check_options(max_new_tokens: int, beams: int, n_best: int, length_penalty: float) -> None:
    at_least(1, max_new_tokens=max_new_tokens, beams=beams)
    if not 1 <= n_best <= beams:
        raise InputError(f"n_best={n_best} should be from 1 to beams={beams}")
    if not (math.isfinite(length_penalty) and length_penalty >= 0):
        raise InputError(f"length_penalty={length_penalty} should be 0 or more")


class _Beams:
    """The batch: `beams` rows for every prompt that is still searched."""

    def __init__(
        self,
        model: TransformerLM,
        rows: list[list[int]],
        searches: list[_Search],
        beams: int,
        ends: frozenset[int],
        chunk: int | None,
        use_cache: bool,
    ) -> None:
        self.model, self.rows, self.beams, self.chunk = model, rows, beams, chunk
        self.device = next(model.parameters()).device
        # Which they are, and a mask, by which beams that end are taken out of all candidates in one operation.
        known = sorted(end for end in ends if 0 <= end < model.config.vocab_size)
        self.ends = torch.tensor(known, dtype=torch.long, device=self.device)
        self.is_end = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self.is_end[self.ends] = True
        self.live = list(zip(rows, searches))
        self.cache = model.new_cache(len(rows)) if use_cache and has_cache(model, lambda line: None) else None
        self.mask: Tensor | None = None

    def run(self) -> None:
        logits = self._read_prompts()
        # Sums over a whole text: in float32 a thousand tokens would cost three digits, and ties would fall by chance.
        scores = torch.zeros(len(self.live), 1, dtype=torch.float64, device=self.device)
        while True:
            # One view [prompts, beams, V] of all rows: prompts do not compete with one another.
            likely = check_finite(logits).double().log_softmax(-1).view(len(self.live), -1, logits.shape[-1])
            candidates = scores[:, :, None] + likely
            stay, origins, tokens, scores = self._choose(candidates)
            if not stay:
                return
            self._follow(stay, origins, candidates.shape[1])
            logits = self._read_next(tokens)

    def _read_prompts(self) -> Tensor:
        ids, mask = pad_left(self.rows, self.device)
        logits = read(self.model, ids, self.cache, mask=mask, chunk=self.chunk)[:, -1]
        if mask is not None:
            most = max(search.limit for _, search in self.live)
            self.mask = F.pad(mask, (0, most), value=True)
        self.width = ids.shape[1]
        return logits

    def _choose(self, candidates: Tensor) -> tuple[list[int], list[list[int]], list[int], Tensor]:
        """Go on with the best candidates [prompts, open beams, V] of every prompt.

        Returns: the prompts that go on (places among the live ones), the beams their new beams come from, the new
        tokens (of all rows), and the new scores [prompts, beams].
        """
        opened, vocabulary = candidates.shape[1:]
        ending = candidates[:, :, self.ends]
        # At the first step there are as many candidates as tokens; fewer than beams only in a tiny vocabulary.
        candidates = candidates.masked_fill(self.is_end, -math.inf)
        # Over beams and tokens together: one good beam may have several heirs, and a poor one none.
        best = candidates.flatten(1).topk(min(self.beams, opened * vocabulary))
        # Read for all prompts together: one by one each would wait for the device.
        found, ending = (best.values.tolist(), best.indices.tolist()), ending.cpu()
        stay: list[int] = []
        origins: list[list[int]] = []
        tokens: list[int] = []
        kept: list[Tensor] = []
        for place, (_, search) in enumerate(self.live):
            values, picks = (each[place] for each in found)
            self._close(search, ending[place])
            chosen = [(value, *divmod(pick, vocabulary)) for value, pick in zip(values, picks) if value > -math.inf]
            grown = [(value, beam, [*search.open[beam], token]) for value, beam, token in chosen]
            if not grown or len(grown[0][2]) == search.limit:
                for value, _, text in grown:
                    search.add(text, value, "length")
                continue
            # The best of what is open is asked for; if that cannot enter any more, nothing can.
            if search.settled(grown[0][0]):
                continue
            # Too few to fill the rows: the rest are copies that nothing can come of.
            missing = self.beams - len(grown)
            search.open = [text for _, _, text in grown] + [grown[0][2]] * missing
            stay.append(place)
            origins.append([beam for _, beam, _ in grown] + [grown[0][1]] * missing)
            tokens += [text[-1] for text in search.open]
            values = [value for value, _, _ in grown] + [-math.inf] * missing
            kept.append(torch.tensor(values, dtype=torch.float64, device=self.device))
        return stay, origins, tokens, torch.stack(kept) if kept else candidates.new_zeros(0)

    def _close(self, search: _Search, ending: Tensor) -> None:
        """Keep hypotheses that end here [open beams, end tokens]."""
        if not ending.numel():
            return
        # More than n_best of them cannot matter: they would stand behind one another.
        best = ending.flatten().topk(min(search.n_best, ending.numel()))
        for value, pick in zip(best.values.tolist(), best.indices.tolist()):
            if value > -math.inf:
                search.add(list(search.open[pick // ending.shape[1]]), value, "end")

    def _follow(self, stay: list[int], origins: list[list[int]], opened: int) -> None:
        """Bring the rows in the order of the new beams."""
        if opened < self.beams and self.cache is not None:
            self.cache.repeat(self.beams)
        if opened < self.beams and self.mask is not None:
            self.mask = self.mask.repeat_interleave(self.beams, 0)
        # By row of the whole batch: every prompt has `beams` rows side by side.
        index = torch.tensor([place * self.beams + beam for place, row in zip(stay, origins) for beam in row])
        same = len(stay) == len(self.live)
        if self.cache is not None:
            self.cache.reorder(index) if same else self.cache.select(index)
        if self.mask is not None and not same:
            self.mask = self.mask[index.to(self.device)]
        self.live = [self.live[place] for place in stay]

    def _read_next(self, tokens: list[int]) -> Tensor:
        # Columns of the mask so far; the cache counts its own.
        self.width += 1
        if self.cache is None:
            texts = [[*row, *text] for row, search in self.live for text in search.open]
            ids, mask = pad_left(texts, self.device)
            return read(self.model, ids, None, mask=mask)[:, -1]
        mask = None if self.mask is None else self.mask[:, : self.width]
        return read(self.model, torch.tensor(tokens, device=self.device)[:, None], self.cache, mask=mask)[:, -1]
