"""The text encoder: tokens through blocks that see both ways (or only the past), pooled into one vector, classified.

A document longer than the context is read in chunks: each is encoded by itself, and what the pooling finds in them is
averaged before the head. The cost of a document then grows with its length, not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, one_of
from blockyard.models.config import BlocksConfig
from blockyard.models.lm import Head, check_ids
from blockyard.models.trunk import Trunk
from blockyard.nn.derivatives import must_read
from blockyard.nn.dropout import Dropout, split_dropout_keys
from blockyard.nn.linear import Embedding
from blockyard.nn.norms import widened
from blockyard.protocol.costs import Cost, linear_flops


@dataclass(frozen=True)
class EncoderConfig(BlocksConfig):
    """The architecture of a text classifier.

    Args:
        vocab_size: number of tokens.
        n_classes: number of classes.
        context: tokens that are read at once.
        chunks: chunks of `context` tokens that are read of a document; what is longer is cut off.
        causal: let every position see the past alone, as mixers without a two-sided form need.
        pooling: how positions become one vector: `mean` over all, `last` (for causal models), or `cls`, a learned
            token in front (for models that see both ways).
    """

    vocab_size: int
    n_classes: int
    context: int = 256
    chunks: int = 1
    causal: bool = False
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("vocab_size", "n_classes", "context", "chunks")
        one_of(("mean", "last", "cls"), pooling=self.pooling)
        if self.pooling == "cls" and self.causal:
            raise InputError("pooling=cls with causal=True: the first position would see nothing of the text; use last")

    @property
    def length(self) -> int:
        return self.context + (self.pooling == "cls")

    @property
    def is_causal(self) -> bool:
        return self.causal


@dataclass
class ClassifierOutput:
    """What a classifier returns.

    Args:
        logits: [B, n_classes].
        loss: mean cross-entropy in nats, when targets were given.
        aux: what the blocks have to say, as in `Trunk.through_blocks`.
    """

    logits: Tensor
    loss: Tensor | None = None
    aux: dict[str, Any] | None = None


class TextClassifier(Trunk):
    """A text encoder with a classification head, over any registered blocks.

    Args:
        config: the architecture.

    Raises: InputError for a mixer that sees only the past where the model is to see both ways.
    """

    config: EncoderConfig

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.token_embeddings = Embedding(config.vocab_size, config.d_model)
        self.cls = nn.Parameter(torch.randn(config.d_model)) if config.pooling == "cls" else None
        self.dropout = Dropout(config.dropout)
        self.build_blocks()
        self.head = Head(config.d_model, config.n_classes)
        self.start_as_identity()
        if config.zero_init_outputs:
            nn.init.zeros_(self.head.weight)

    def forward(
        self, input_ids: Tensor, *, padding_mask: Tensor | None = None, targets: Tensor | None = None
    ) -> ClassifierOutput:
        """Score the classes.

        Args:
            input_ids: [B, T] integers, or [B, C, T] for documents of C chunks.
            padding_mask: of the same shape, nonzero = keep; a chunk that keeps nothing is left out.
            targets: [B] class numbers.

        Raises:
            InputError: for ids or a mask of the wrong shape or type.
        """
        if padding_mask is not None and padding_mask.shape != input_ids.shape:
            raise InputError(f"padding_mask has shape {tuple(padding_mask.shape)}, input_ids {tuple(input_ids.shape)}")
        if input_ids.ndim == 3:
            features, aux = self._encode_chunks(input_ids, padding_mask)
        else:
            features, aux = self._encode(input_ids, padding_mask)
        logits = self.head(features)
        loss = None if targets is None else F.cross_entropy(widened(logits), targets)
        return ClassifierOutput(logits, loss, aux)

    def _encode_chunks(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Any] | None]:
        """Return the mean of the chunks' vectors, weighted by their tokens where positions are averaged, too."""
        documents, chunks = ids.shape[:2]
        if mask is None:
            mask = torch.ones(ids.shape, dtype=torch.bool, device=ids.device)
        must_read(mask, "a document's chunks are left out where padding_mask keeps nothing of them")
        flat = mask.flatten(0, 1).to(torch.bool)
        kept = flat.any(1)
        split_dropout_keys(self, chunks, kept)
        owner = torch.arange(documents, device=ids.device).repeat_interleave(chunks)[kept]
        # No padding, no mask: attention has faster ways without one.
        vectors, aux = self._encode(ids.flatten(0, 1)[kept], None if bool(flat.all()) else flat[kept])
        weight = flat[kept].sum(1) if self.config.pooling == "mean" else torch.ones_like(owner)
        weight = weight.to(vectors.dtype)
        total = vectors.new_zeros(documents, vectors.shape[1]).index_add(0, owner, vectors * weight[:, None])
        return total / vectors.new_zeros(documents).index_add(0, owner, weight).clamp_min(1)[:, None], aux

    def _encode(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, dict[str, Any] | None]:
        check_ids(ids, self.config.vocab_size)
        x = self.token_embeddings(ids)
        if self.cls is not None:
            x = torch.cat([self.cls.to(x.dtype).expand(x.shape[0], 1, -1), x], 1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(mask.shape[0], 1), mask], 1)
        x, aux = self.through_blocks(self.dropout(x), padding_mask=mask)
        return pool(x, mask, self.config.pooling), aux

    def cost(self, length: int) -> Cost:
        """Return parameters and forward FLOPs for one chunk of `length` positions."""
        width, classes = self.config.d_model, self.config.n_classes
        own = self.config.vocab_size * width + classes * width + (0 if self.cls is None else width)
        return self.blocks_cost(length) + Cost(own, linear_flops(1, (width, classes)))


Pooling = Literal["mean", "last", "cls"]


def pool(x: Tensor, padding_mask: Tensor | None, how: Pooling) -> Tensor:
    """Pool over positions.

    Args:
        x: [B, T, D], real or complex.
        padding_mask: [B, T], nonzero = keep; a row that keeps nothing pools to 0.
        how: `mean` over what is kept; `last` position that is kept (it has seen all others in a causal model); `cls`,
            the first position, which a model prepends for the purpose.

    Returns: [B, D].
    """
    if how == "cls":
        return x[:, 0]
    if padding_mask is None:
        return x.mean(1) if how == "mean" else x[:, -1]
    kept = padding_mask.to(torch.bool)
    if how == "mean":
        total = (x * kept[..., None]).sum(1)
        return total / kept.sum(1, keepdim=True).clamp_min(1)
    # The largest index that is kept, wherever the padding stands.
    index = (kept * torch.arange(1, kept.shape[1] + 1, device=x.device)).amax(1) - 1
    found = x[torch.arange(x.shape[0], device=x.device), index.clamp_min(0)]
    return found * (index >= 0)[:, None]
