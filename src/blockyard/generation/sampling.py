"""From the logits of the next token to a choice of it: every filter is a small pure function on [B, V].

The order is the usual one: repetition penalty on the raw logits, temperature, then top-k, top-p and min-p, each
seeing what the one before it left. Temperature 0 is greedy and needs no random number.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    Args:
        temperature: divides the logits; below 1 sharpens, above 1 flattens, 0 always takes the most likely
            token.
        top_k: keep the k most likely tokens (and those tied with the last of them); None keeps all.
        top_p: keep the smallest set of most likely tokens whose probabilities reach top_p; None keeps all.
        min_p: keep tokens at least min_p times as likely as the most likely one; None keeps all.
        repetition_penalty: tokens already read or written lose: positive logits are divided by it, negative
            ones multiplied (CTRL, arXiv 1909.05858); 1 changes nothing.
        seed: seed of an own random generator: the same seed gives the same text whatever else draws random
            numbers; None draws a new seed.

    Raises:
        InputError: when a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature={self.temperature} is out of range; use 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k={self.top_k} keeps no token; use 1 or more, or leave it out to keep all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p={self.top_p} is out of range; use a number above 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise InputError(f"min_p={self.min_p} is out of range; use a number from 0 to 1")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise InputError(
                f"repetition_penalty={self.repetition_penalty} is out of range; "
                "use a positive number (1 changes nothing)"
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed={self.seed} is out of range; use a whole number from 0 to 2**63 - 1")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make the tokens of `seen` (bool [B, V]) less likely: divide logits above zero, multiply those below."""
    # Dividing a negative logit would make the token likelier: hence the two cases (CTRL, section 4.1).
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide the logits by the temperature (above 0)."""
    # The largest logit moves to 0 first: a tiny temperature then sends the others to -inf, never anything to
    # NaN.
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Return -inf for all but the k largest logits; ties with the k-th stay, so the order of tokens is no matter."""
    # A threshold and not an index: which of two equal logits stands first differs between kernels.
    kth = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < kth, -math.inf)


# In vocabularies larger than this the nucleus is looked for among so many of the most likely tokens, where it nearly
# always lies. Sorting them takes a tenth of sorting 49,152 tokens, which for 64 rows takes as long as a step of a model
# of 135 million parameters (AMD EPYC Zen 4, one thread).
CANDIDATES = 1024


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Return -inf outside the nucleus: the smallest set of most likely tokens whose probabilities reach p."""
    # An accelerator sorts faster than it could be asked whether the candidates sufficed.
    if logits.shape[-1] > 4 * CANDIDATES and logits.device.type == "cpu":
        # In float64: a float32 sum of a vocabulary's probabilities may pass p = 1 early, and the tail would be cut.
        likely, wide = logits.topk(CANDIDATES).values, logits.double()
        chances = (likely.double() - wide.logsumexp(-1, keepdim=True)).exp()
        before = chances.cumsum(-1) - chances
        # Of NaN none is below p; the caller refuses those logits.
        least = likely.gather(-1, ((before < p).sum(-1, keepdim=True) - 1).clamp(min=0))
        inside = logits >= least
        # Only where it ends among the candidates, and no token beyond it is as likely as its last one: which of those
        # belong to it is a matter of their order.
        if bool((before[:, -1] >= p).all()) and torch.equal(inside.sum(-1), (before < p).sum(-1)):
            return logits.masked_fill(~inside, -math.inf)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(-1)
    # A token stays when those before it have not reached p yet: the most likely one always does.
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= p)
    return logits.masked_fill(outside, -math.inf)


def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Return -inf for tokens less than min_p times as likely as the most likely one."""
    if min_p == 0:
        return logits
    # By logits, p(x) ≥ min_p · p(max) being a difference of them: no softmax is needed.
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(min_p), -math.inf)


def process(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Return all of the configuration's filters in order; temperature 0 leaves the most likely tokens alone.

    Args:
        logits: float [B, V].
        config: the sampling options.
        seen: bool [B, V], the tokens already read or written; needed for a repetition penalty.

    Returns:
        Logits [B, V] whose softmax is the distribution to draw from.
    """
    if config.repetition_penalty != 1 and seen is not None:
        logits = penalise_repetition(logits, seen, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    # Before the filters: what "probability" means to top-p and min-p is the distribution that is drawn from.
    logits = apply_temperature(logits, config.temperature)
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    if config.min_p is not None:
        logits = keep_min_p(logits, config.min_p)
    return logits


def probabilities(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """Return the distribution [B, V] that the next token is drawn from, float64; at temperature 0 all of it on one
    token."""
    processed = process(logits, config, seen)
    if config.temperature == 0:
        return F.one_hot(processed.argmax(-1), logits.shape[-1]).double()
    return processed.double().softmax(-1)


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the token where the cumulated probability first exceeds `uniform` [B] in [0, 1)."""
    return draw_weighted(logits.double().softmax(-1), uniform)


def draw_weighted(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the token where the cumulated weight [B, V] first exceeds the share `uniform` [B] in [0, 1) of its total.

    One number per row, drawn on the CPU, gives the same text on every device, which a device's own generator
    would not.
    """
    # Weights, not probabilities: dividing by a sum that rounding made inexact would shift every border.
    cumulated = weights.double().cumsum(-1)
    total = cumulated[:, -1:].contiguous()
    # A share of the total instead of dividing all weights by it.
    target = uniform.to(cumulated).unsqueeze(-1) * total
    chosen = torch.searchsorted(cumulated, target, right=True)
    # Rounding may lift the target to the total itself: never go past the last token that has any probability.
    last = torch.searchsorted(cumulated, total)
    return torch.minimum(chosen, last).squeeze(-1)


def check_finite(logits: Tensor) -> Tensor:
    """Return the logits in float32, or InputError when they hold NaN or no token has a finite one."""
    logits = logits.float()
    if not bool(_finite(logits).all()):
        raise _not_finite()
    return logits


def _finite(logits: Tensor) -> Tensor:
    """Return which rows [B] have a token that can be drawn."""
    # −inf is a filter's word for "never" and may stand anywhere but everywhere; a maximum with NaN is NaN.
    return logits.amax(-1).isfinite()


def _not_finite() -> InputError:
    return InputError("the model's logits are not finite: its weights are broken")


class Sampler:
    """Draws tokens for the rows of a batch, each row with its own generator.

    Row i uses seed + i, so a row draws the same numbers however many rows stand beside or are finished before
    it.

    Args:
        config: the sampling options.
    """

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        # From the system and not from torch: drawing a seed must not change what a program's own generator draws.
        self.seed = secrets.randbits(62) if config.seed is None else config.seed
        # On the CPU whatever the device: the same numbers everywhere, one per token, which costs nothing.
        self._generators: dict[int, torch.Generator] = {}

    def __call__(self, logits: Tensor, rows: list[int], seen: Tensor | None = None) -> Tensor:
        """Return the next token, int64 [B], of the given rows from their logits [B, V].

        Raises:
            InputError: when the logits hold NaN, or no token has a finite logit.
        """
        return self._drawn(check_finite(logits), rows, seen)

    def read(self, logits: Tensor, rows: list[int], seen: Tensor | None = None) -> list[int]:
        """Return the same as numbers: one transfer for all rows, which also says whether their logits are finite."""
        logits = logits.float()
        # A token at a time, or the question apart, would wait for the device again.
        found = torch.where(_finite(logits), self._drawn(logits, rows, seen), -1).tolist()
        if -1 in found:
            raise _not_finite()
        return found

    def _drawn(self, logits: Tensor, rows: list[int], seen: Tensor | None) -> Tensor:
        if self.config.temperature == 0:
            return process(logits, self.config, seen).argmax(-1)
        uniform = torch.cat([self.uniform(row) for row in rows])
        return draw_weighted(probabilities(logits, self.config, seen), uniform.to(logits.device, non_blocking=True))

    def uniform(self, row: int, count: int = 1) -> Tensor:
        """Return the row's next random numbers, float64 [count] in [0, 1), on the CPU."""
        # 53 bits: float32 has 24, too few to reach every token of a large vocabulary.
        if row not in self._generators:
            self._generators[row] = torch.Generator("cpu").manual_seed((self.seed + row) % 2**63)
        return torch.rand(count, dtype=torch.float64, generator=self._generators[row], device="cpu")

    def forget(self, row: int) -> None:
        """Give up the generator of a row that draws no more."""
        self._generators.pop(row, None)
