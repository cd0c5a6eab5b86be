"""Speculative decoding: a small model proposes, the model itself checks several proposals in one pass.

Leviathan et al. 2022 (arXiv 2211.17192) and Chen et al. 2023 (arXiv 2302.01318). A proposed token x is kept with
probability min(1, p(x) / q(x)), p being the model's distribution and q the draft's, both after temperature, top-k and
the like; at the first that is not kept, a token is drawn from what p has over q. The text then follows p exactly,
whatever the draft is; a poor draft costs time, never quality. Greedy text is that of the model token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blockyard.errors import InputError, at_least
from blockyard.generation.decode import Decoder, PastContext
from blockyard.generation.reading import PREFILL_CHUNK, evaluating, has_cache, read
from blockyard.generation.sampling import SamplingConfig, check_finite, draw_weighted, probabilities

if TYPE_CHECKING:
    from blockyard.models.lm import TransformerLM
    from blockyard.protocol.cache import ModelCache


@dataclass
class Acceptance:
    """What the draft was worth.

    Args:
        proposed: tokens that the draft proposed.
        accepted: of those, tokens that were kept.
        passes: forward passes of the model itself, each of which yields one token more than it accepts.
    """

    proposed: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def rate(self) -> float:
        """Share of the proposals that were kept; 0 when none was made."""
        return self.accepted / self.proposed if self.proposed else 0.0


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return what p [..., V] has over q, as weights to draw from when a proposal of q is not kept.

    Σ_x max(p − q, 0) is the probability that a proposal is not kept; where rounding leaves nothing of it, p itself.
    """
    # The one distribution that mends the mistake of having drawn from q: kept with min(1, p/q), and else this, is p.
    over = (p - q).clamp_(min=0)
    return torch.where(over.sum(-1, keepdim=True) > 0, over, p)


def verify(p: Tensor, q: Tensor, proposals: Tensor, kept_by: Tensor, last: Tensor) -> list[int]:
    """Return the tokens that a round yields: the proposals up to the first that is not kept, and one drawn token.

    Args:
        p: the model's distributions [k + 1, V] at the k proposals and behind them, float64.
        q: the draft's distributions [k, V] at its proposals, float64.
        proposals: the tokens [k] drawn from q.
        kept_by: uniform numbers [k] in [0, 1) that decide what is kept.
        last: a uniform number [1] that draws the last token.
    """
    # In float64 throughout: p and q of a good draft differ by less than float32 sums of a vocabulary are exact.
    k = len(proposals)
    at = torch.arange(k, device=p.device), proposals
    # u < p / q, without dividing: q is above 0 at what was drawn from it.
    kept = kept_by.to(p) * q[at] < p[at]
    # Up to the first that is not kept: what follows it was proposed behind another text.
    accepted = int(kept.cumprod(0).sum()) if k else 0
    # All kept: the pass has scored one token more than was proposed, and that one is free.
    weights = p[k] if accepted == k else residual(p[accepted], q[accepted])
    token = draw_weighted(weights[None], last.to(p))
    return [*proposals[:accepted].tolist(), int(token)]


class SpeculativeDecoder(Decoder):
    """A `Decoder` of one row that a draft model speeds up.

    Args:
        model: the model whose text it is.
        prompts: one prompt.
        sampling: how tokens are drawn, from both models' logits alike.
        draft: a language model with the same vocabulary, several times faster.
        draft_tokens: most tokens proposed before the model looks at them.
        past_context, use_cache, prefill_chunk, note: see `Decoder`.

    Attributes:
        acceptance: counts of what was proposed and kept.

    Raises:
        InputError: for several prompts, another vocabulary, `draft_tokens` below 1, and as `Decoder` says.
    """

    def __init__(
        self,
        model: TransformerLM,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        draft: TransformerLM,
        draft_tokens: int = 4,
        past_context: PastContext = "slide",
        use_cache: bool = True,
        prefill_chunk: int | None = PREFILL_CHUNK,
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        if len(prompts) != 1:
            raise InputError(f"a draft serves one prompt at a time, not {len(prompts)}")
        at_least(1, draft_tokens=draft_tokens)
        ours, theirs = model.config.vocab_size, draft.config.vocab_size
        if ours != theirs:
            raise InputError(
                f"the draft has a vocabulary of {theirs} tokens, the model one of {ours}; they should share a tokenizer"
            )
        super().__init__(
            model,
            prompts,
            sampling,
            past_context=past_context,
            use_cache=use_cache,
            prefill_chunk=prefill_chunk,
            note=note,
        )
        self.acceptance = Acceptance()
        # The one row is there from the beginning.
        self._places, self._seen = [self.waiting.popleft()], {0: self._tokens_of(0)}
        self._proposes = draft_tokens
        self._target = _Reader(model, self._modules, self.use_cache, self._chunk)
        self._draft = _Reader(draft, list(draft.modules()), use_cache and has_cache(draft, note), self._chunk)
        self._begin = 0  # where the draft's own, possibly shorter, window begins in the model's
        self._ready: list[int] = []  # tokens that are certain and not yet handed out

    def step(self) -> dict[int, int]:
        """Return the next token of the row: {0: token}."""
        if not self._ready:
            self._ready = self._round()
        token = self._ready.pop(0)
        self._seen[0][token] = True
        self.windows[0].append(token)
        return {0: token}

    def _round(self) -> list[int]:
        if len(self.windows[0]) > self.context:
            self._slide(0)
            self._begin = 0
            self._target.forget()
            self._draft.forget()
        window = self.windows[0]
        # At the end of the context fewer are proposed, so that windows slide where they would without a draft.
        proposals, q = self._propose(window, min(self._proposes, self.context - len(window)))
        count = len(proposals)
        self._target.start(window)
        logits = self._target.score([*window, *proposals], count + 1)
        p = probabilities(check_finite(logits), self.sampler.config, self._seen_with(proposals))
        uniform = self.sampler.uniform(0, count + 1)
        tokens = verify(p, q, torch.tensor(proposals, dtype=torch.long, device=p.device), uniform[:-1], uniform[-1:])
        # The last token was drawn, not read.
        self._target.keep(len(window) + len(tokens) - 1)
        self._draft.keep(len(window) + len(tokens) - 1 - self._begin)
        self.acceptance.proposed += count
        self.acceptance.accepted += len(tokens) - 1
        self.acceptance.passes += 1
        return tokens

    def _propose(self, window: list[int], count: int) -> tuple[list[int], Tensor]:
        """Return tokens drawn from the draft, and the distributions [count, V] that they were drawn from."""
        context = self._draft.model.config.context
        if len(window) - self._begin + count - 1 > context:
            # Half of its context again, as the model itself slides.
            self._begin = max(0, len(window) - max(1, context // 2))
            self._draft.forget()
        # The draft may have a shorter context than the model; its window begins later then.
        text = window[self._begin :]
        count = max(0, min(count, context - len(text) + 1))
        proposals: list[int] = []
        drawn_from = [torch.zeros(0, self.model.config.vocab_size, dtype=torch.float64, device=self.device)]
        if count:
            self._draft.start(text)
        for _ in range(count):
            # One token at a time: a draft is many small passes, which is why it should be small.
            logits = check_finite(self._draft.score([*text, *proposals], 1))
            q = probabilities(logits, self.sampler.config, self._seen_with(proposals)[-1:])
            proposals.append(int(draw_weighted(q, self.sampler.uniform(0))))
            drawn_from.append(q.to(self.device))
        return proposals, torch.cat(drawn_from)

    def _seen_with(self, proposals: list[int]) -> Tensor:
        """Return what a repetition penalty counts [k + 1, V]: before the first proposal, and behind each."""
        # A penalty counts what stands before a position, so every position of the pass has its own.
        seen = self._seen[0].repeat(len(proposals) + 1, 1)
        for place, token in enumerate(proposals):
            seen[place + 1 :, token] = True
        return seen


# Tokens that a recurrent state reads again together with new proposals; more are read once, in a pass of their own.
_READ_AGAIN = 8


class _Reader:
    """A model and its cache, which is taken back to what was accepted."""

    def __init__(self, model: TransformerLM, modules: list[Any], use_cache: bool, chunk: int | None) -> None:
        self.model, self._modules, self._use_cache, self._chunk = model, modules, use_cache, chunk
        self._device = next(model.parameters()).device
        self._cache: ModelCache | None = None
        self._point: Any = None

    def forget(self) -> None:
        """Forget what was read: the window begins elsewhere."""
        self._cache = None

    def start(self, tokens: list[int]) -> None:
        """Begin a round behind these tokens: read what has long been certain, and mark the place to go back to."""
        if not self._use_cache:
            return
        if self._cache is None:
            self._cache = self.model.new_cache(1)
        # All but the last: it is read with the proposals, whose first it predicts.
        held, certain = self._cache.length, len(tokens) - 1
        if certain - held > (_READ_AGAIN if held else 0):
            self._read(tokens[held:certain], 0)
        self._point = self._cache.snapshot()

    def score(self, tokens: list[int], last: int) -> Tensor:
        """Return logits [last, V] at the last of all tokens; only those that the cache does not hold are read."""
        return self._read(tokens if self._cache is None else tokens[self._cache.length :], last)

    def _read(self, tokens: list[int], last: int) -> Tensor:
        ids = torch.tensor([tokens], device=self._device)
        with evaluating(self._modules):
            return read(self.model, ids, self._cache, chunk=self._chunk, last=last)[0]

    def keep(self, length: int) -> None:
        """Take back what was read beyond the first `length` tokens."""
        if self._cache is None or self._cache.length <= length:
            return
        try:
            # The usual case: keys and values of refused tokens are forgotten by moving a number.
            self._cache.crop(length)
        except InputError:
            # A recurrent state goes back only to where it was kept; what was accepted since is read again.
            self._go_back()

    def _go_back(self) -> None:
        """Go back to the mark of this round; or, where a window has dropped what stood there, to nothing."""
        assert self._cache is not None
        try:
            self._cache.rollback(self._point)
        except InputError:
            self.forget()
