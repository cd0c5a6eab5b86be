"""The language model: embed tokens, pass them through blocks, normalise, score the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.config import BlocksConfig
from blockyard.models.order import knows_order
from blockyard.models.positions import LearnedPositions
from blockyard.models.trunk import Trunk, seeded, turned_alike
from blockyard.nn.derivatives import hidden
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Embedding, Linear
from blockyard.nn.norms import widened
from blockyard.nn.roles import Role
from blockyard.nn.segments import Segments
from blockyard.protocol.cache import ModelCache
from blockyard.protocol.costs import Cost, linear_flops


@dataclass(frozen=True)
class LMConfig(BlocksConfig):
    """The architecture of a language model.

    Args:
        vocab_size: number of tokens.
        context: tokens the model is trained on at once.
        positions: learned adds a vector for each place of the context to the tokens' embeddings; none adds nothing;
            auto is learned where no mixer of any layer knows in which order its positions stand.
        tied: use the embedding as the output matrix too.
        logit_softcap: bound logits to ± this by tanh; none leaves them.
        zero_init_outputs: start every block as the identity and every logit at 0.
    """

    older: ClassVar[Mapping[str, Any]] = MappingProxyType({**BlocksConfig.older, "positions": "none"})
    can_learn_positions: ClassVar[bool] = True

    vocab_size: int
    context: int = 256
    positions: Literal["auto", "learned", "none"] = "auto"
    tied: bool = False
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("vocab_size", "context")
        if self.logit_softcap is not None and not 0 < self.logit_softcap < float("inf"):
            raise InputError(f"logit_softcap={self.logit_softcap} should be positive, or none")
        if self.positions not in ("auto", "learned", "none"):
            raise InputError(f"positions={self.positions!r} should be auto, learned or none")

    @property
    def length(self) -> int:
        return self.context

    @property
    def learns_positions(self) -> bool:
        return not knows_order(self) if self.positions == "auto" else self.positions == "learned"

    @property
    def decided(self) -> dict[str, Any]:
        return {**super().decided, "positions": "learned" if self.learns_positions else "none"}


@dataclass
class LMOutput:
    """What the model returns.

    Args:
        logits: [B, T, vocab_size].
        loss: mean cross-entropy in nats per target, when targets were given.
        aux: `{"losses": {name: sum over layers}, "stats": {"layers.0": …}}` when a block has something to say.
    """

    logits: Tensor
    loss: Tensor | None = None
    aux: dict[str, Any] | None = None


class Head(Linear):
    """The output matrix [vocab_size, d_model]."""

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("head")}


class TransformerLM(Trunk):
    """A causal language model over any registered blocks.

    `TransformerLM(LMConfig(vocab_size=256, blocks="spectral*3/standard"))`

    Args:
        config: the architecture.

    Raises: InputError for a mixer that cannot be causal, or options that do not fit.
    """

    config: LMConfig

    def __init__(self, config: LMConfig) -> None:
        super().__init__(config)
        self.token_embeddings = Embedding(config.vocab_size, config.d_model)
        # As an output matrix N(0, 1) rows would give logits of variance d_model.
        std = config.d_model**-0.5 if config.tied else 1.0
        learned = config.learns_positions
        self.position_embeddings = LearnedPositions(config.context, config.d_model, scale=std) if learned else None
        self.dropout = Dropout(config.dropout)
        self.build_blocks()
        self.lm_head = Head(config.d_model, config.vocab_size)
        self.start_as_identity()
        if config.zero_init_outputs:
            nn.init.zeros_(self.lm_head.weight)
        if config.tied:
            nn.init.trunc_normal_(self.token_embeddings.weight, std=std, a=-3 * std, b=3 * std)
            self.lm_head.weight = self.token_embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        targets: Tensor | None = None,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: ModelCache | None = None,
        last: int | None = None,
        segments: Tensor | Segments | None = None,
    ) -> LMOutput:
        """Score every next token.

        Args:
            input_ids: [B, T] integers.
            targets: [B, T] next tokens; −100 is left out of the loss.
            padding_mask: [B, T], nonzero = keep; with a cache [B, past + T].
            positions: [T] or [B, T]; by default from the cache and the padding mask.
            cache: from `new_cache`.
            last: score only the last so many positions (all by default): reading a prompt needs one.
            segments: [B, T] integers, equal within each of several documents in a row: every one is read as if it were
                alone, from position 0. Below 0 is filling between them. Goes without padding, positions and cache.

        Raises:
            InputError: for ids of the wrong shape or type, a cache of another batch or depth, a negative `last` or one
                together with targets, positions beyond the context where they are learned, or segments beside what
                they do not go with.
        """
        self._check(input_ids, targets, cache)
        if segments is not None:
            beside = {"padding_mask": padding_mask, "positions": positions, "cache": cache}
            segments = _laid_out(segments, input_ids, beside, turned_alike(self))
        if last is not None and (last < 0 or targets is not None):
            raise InputError(f"last={last} should be 0 or more, and goes without targets")
        past = 0 if cache is None else cache.length
        places = positions if segments is None else segments.positions
        x = self.embedded(input_ids, padding_mask=padding_mask, positions=places, past=past)
        x, aux = self.through_blocks(
            x, padding_mask=padding_mask, positions=positions, cache=cache, last=last, segments=segments
        )
        logits = self.scored(x)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(widened(logits).flatten(0, 1), targets.flatten(), ignore_index=-100)
        return LMOutput(logits, loss, aux)

    def embedded(
        self, input_ids: Tensor, *, padding_mask: Tensor | None = None, positions: Tensor | None = None, past: int = 0
    ) -> Tensor:
        """Return what the first block reads of ids [B, T] behind `past` cached tokens: [B, T, d_model]."""
        x = self.token_embeddings(input_ids)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings(input_ids.shape[1], past, padding_mask, positions)
        dropped: Tensor = self.dropout(x)
        return dropped

    def scored(self, x: Tensor) -> Tensor:
        """Return the logits of what the last norm gives, [..., d_model] -> [..., vocab_size]."""
        logits: Tensor = self.lm_head(x)
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        return logits

    def _check(self, input_ids: Tensor, targets: Tensor | None, cache: ModelCache | None) -> None:
        check_ids(input_ids, self.config.vocab_size)
        if targets is not None and targets.shape != input_ids.shape:
            raise InputError(f"targets has shape {tuple(targets.shape)}, input_ids {tuple(input_ids.shape)}")
        if cache is not None and (len(cache) != len(self.layers) or cache.batch != input_ids.shape[0]):
            raise InputError(
                f"the cache has {len(cache)} layers and batch {cache.batch}, "
                f"the model {len(self.layers)} layers and input_ids batch {input_ids.shape[0]}"
            )

    def cost(self, length: int) -> Cost:
        """Return parameters (a tied matrix once), forward FLOPs for one sequence of `length` tokens, cache bytes per
        token."""
        width, vocabulary = self.config.d_model, self.config.vocab_size
        rows = (1 if self.config.tied else 2) * vocabulary
        if self.position_embeddings is not None:
            rows += self.config.context
        head = Cost(rows * width, linear_flops(length, (width, vocabulary)))
        return self.blocks_cost(length) + head


def _laid_out(segments: Tensor | Segments, ids: Tensor, beside: Mapping[str, object], alike: int | None) -> Segments:
    """Return the layout of documents in rows.

    Raises:
        InputError: for another shape than the ids have, a layout in which documents are padded that must not be, or
            arguments that segments do not go with.
    """
    for name, value in beside.items():
        if value is not None:
            raise InputError(f"segments go without {name}: every document is read alone, from position 0")
    found = segments if isinstance(segments, Segments) else Segments(segments, alike)
    if alike is not None and not found.whole and (found.alike is None or found.alike > alike):
        raise InputError(
            f"segments are laid out with alike={found.alike}, but rotary frequencies here go by a row's length: give "
            f"their numbers, or Segments(numbers, alike={alike})"
        )
    if found.shape != ids.shape:
        raise InputError(f"segments has shape {tuple(found.shape)}, input_ids {tuple(ids.shape)}")
    return found


def build_lm(config: LMConfig, seed: int) -> TransformerLM:
    """Make a model whose initial weights are a function of the seed; the process's random state is left as it was."""
    with seeded(seed):
        return TransformerLM(config)


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise InputError unless the ids are integers [batch, length] within the vocabulary."""
    if input_ids.ndim != 2 or 0 in input_ids.shape:
        raise InputError(f"input_ids has shape {tuple(input_ids.shape)}, expected [batch, length], both at least 1")
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise InputError(f"input_ids has dtype {input_ids.dtype}, expected integers")
    # Elsewhere than on a CPU the read would stall the device, and neither a compiled graph nor vmap can branch on it.
    if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and not hidden(input_ids):
        low, high = (int(end) for end in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise InputError(f"input_ids holds {wrong}, outside a vocabulary of {vocab_size} tokens")
