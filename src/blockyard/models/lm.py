"""The language model: embed tokens, pass them through blocks, normalise, score the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from blockyard.blocks import build_block
from blockyard.cache import ModelCache
from blockyard.costs import Cost, linear_flops
from blockyard.errors import InputError
from blockyard.layers.dropout import Dropout
from blockyard.layers.linear import Embedding, Linear
from blockyard.layers.norms import make_norm
from blockyard.layers.roles import Role
from blockyard.layers.rotary import RotaryPositionalEmbedding
from blockyard.pattern import LayerSpec, check_layer, format_choice, parse_choice, repeat_to_depth


@dataclass(frozen=True)
class LMConfig:
    """The architecture of a language model.

    Args:
        vocab_size: number of tokens.
        blocks: the layers, as a choice (`"spectral*3/standard"`) or specifications; fewer than n_layers repeat.
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: number of attention heads, dividing d_model.
        context: tokens the model is trained on at once.
        tied: use the embedding as the output matrix too.
        norm: rms or layer.
        norm_position: pre (norm before each sublayer, and a last one) or post (after each addition).
        dropout: probability of dropping, for the embedding and for every mixer and FFN that has dropout.
        rope_theta: base of the rotary wavelengths; larger for longer contexts.
        logit_softcap: bound logits to ± this by tanh; none leaves them.
        zero_init_outputs: start every block as the identity and every logit at 0.
    """

    vocab_size: int
    blocks: str | tuple[LayerSpec, ...] = "standard"
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 4
    context: int = 256
    tied: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["pre", "post"] = "pre"
    dropout: float = 0.0
    rope_theta: float = 10_000.0
    logit_softcap: float | None = None
    zero_init_outputs: bool = True

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} should be at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise InputError(f"dropout={self.dropout} should be at least 0 and below 1")
        # Written so that NaN and infinity are refused, too.
        if self.logit_softcap is not None and not 0 < self.logit_softcap < float("inf"):
            raise InputError(f"logit_softcap={self.logit_softcap} should be positive, or none")
        if not 0 < self.rope_theta < float("inf"):
            raise InputError(f"rope_theta={self.rope_theta} should be positive")

    @property
    def layers(self) -> list[LayerSpec]:
        """One checked specification per layer."""
        specs: Sequence[LayerSpec] = parse_choice(self.blocks) if isinstance(self.blocks, str) else self.blocks
        if not specs:
            raise InputError("blocks is empty; name at least one layer")
        return repeat_to_depth([check_layer(spec) for spec in specs], self.n_layers)

    @property
    def choice(self) -> str:
        """The layers as one line of text."""
        return self.blocks if isinstance(self.blocks, str) else format_choice(self.blocks)


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


class TransformerLM(nn.Module):
    """A causal language model over any registered blocks.

    `TransformerLM(LMConfig(vocab_size=256, blocks="spectral*3/standard"))`

    Args:
        config: the architecture.

    Raises: InputError for a mixer that cannot be causal, or options that do not fit.
    """

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embeddings = Embedding(config.vocab_size, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.layers: Any = nn.ModuleList(
            build_block(
                spec,
                d_model=config.d_model,
                n_heads=config.n_heads,
                causal=True,
                norm=config.norm,
                norm_position=config.norm_position,
                rope_theta=config.rope_theta,
                dropout=config.dropout,
            )
            for spec in config.layers
        )
        self.ln_final = make_norm(config.norm, config.d_model) if config.norm_position == "pre" else nn.Identity()
        self.lm_head = Head(config.d_model, config.vocab_size)
        # Recompute each block in the backward pass instead of keeping its activations.
        self.checkpoint_activations = False
        self._initialise()
        for module in self.modules():
            if isinstance(module, RotaryPositionalEmbedding):
                module.prepare(config.context)

    def _initialise(self) -> None:
        if self.config.zero_init_outputs:
            for layer in self.layers:
                if hasattr(layer, "zero_init_output"):
                    layer.zero_init_output()
            nn.init.zeros_(self.lm_head.weight)
        if self.config.tied:
            # As an output matrix N(0, 1) rows would give logits of variance d_model.
            std = self.config.d_model**-0.5
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
    ) -> LMOutput:
        """Score every next token.

        Args:
            input_ids: [B, T] integers.
            targets: [B, T] next tokens; −100 is left out of the loss.
            padding_mask: [B, T], nonzero = keep; with a cache [B, past + T].
            positions: [T] or [B, T]; by default from the cache and the padding mask.
            cache: from `new_cache`.
            last: score only the last so many positions (all by default): reading a prompt needs one.

        Raises:
            InputError: for ids of the wrong shape or type, a cache of another batch or depth, or a negative `last`
                or one together with targets.
        """
        self._check(input_ids, targets, cache)
        if last is not None and (last < 0 or targets is not None):
            raise InputError(f"last={last} should be 0 or more, and goes without targets")
        x = self.dropout(self.token_embeddings(input_ids))
        collected: list[tuple[int, dict[str, Any]]] = []
        for i, layer in enumerate(self.layers):
            arguments: dict[str, Any] = {
                "padding_mask": padding_mask,
                "positions": positions,
                "cache": None if cache is None else cache[i],
            }
            if self.checkpoint_activations and torch.is_grad_enabled() and cache is None:
                x, aux = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=True, **arguments)
            else:
                x, aux = layer(x, **arguments)
            if aux:
                collected.append((i, aux))
        if last is not None:
            x = x[:, max(0, x.shape[1] - last) :]
        logits = self.lm_head(self.ln_final(x))
        if self.config.logit_softcap is not None:
            logits = self.config.logit_softcap * torch.tanh(logits / self.config.logit_softcap)
        loss = None
        if targets is not None:
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100)
        return LMOutput(logits, loss, _merge_aux(collected))

    def _check(self, input_ids: Tensor, targets: Tensor | None, cache: ModelCache | None) -> None:
        if input_ids.ndim != 2 or 0 in input_ids.shape:
            raise InputError(f"input_ids has shape {tuple(input_ids.shape)}, expected [batch, length], both at least 1")
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise InputError(f"input_ids has dtype {input_ids.dtype}, expected integers")
        # Elsewhere than on a CPU the read would stall the device, and a compiled graph cannot branch on it.
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(end) for end in input_ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise InputError(f"input_ids holds {wrong}, outside a vocabulary of {self.config.vocab_size} tokens")
        if targets is not None and targets.shape != input_ids.shape:
            raise InputError(f"targets has shape {tuple(targets.shape)}, input_ids {tuple(input_ids.shape)}")
        if cache is not None and (len(cache) != len(self.layers) or cache.batch != input_ids.shape[0]):
            raise InputError(
                f"the cache has {len(cache)} layers and batch {cache.batch}, "
                f"the model {len(self.layers)} layers and input_ids batch {input_ids.shape[0]}"
            )

    def new_cache(
        self,
        batch: int,
        max_len: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ModelCache:
        """An empty cache of every layer, owned by the caller.

        Args:
            batch: number of sequences.
            max_len: capacity in tokens; None grows on demand.
            dtype: floating type, by default that of the parameters.
            device: by default that of the parameters.

        Raises:
            InputError: when a layer's mixer has no cache.
        """
        return ModelCache([layer.new_cache(batch, max_len, dtype, device) for layer in self.layers])

    def cost(self, tokens: int) -> Cost:
        """Parameters (a tied matrix once), forward FLOPs for one sequence of `tokens`, cache bytes per token."""
        total = Cost()
        for layer in self.layers:
            total = total + layer.cost(tokens)
        width, vocabulary = self.config.d_model, self.config.vocab_size
        matrices = 1 if self.config.tied else 2
        norm = sum(p.numel() for p in self.ln_final.parameters())
        return total + Cost(matrices * vocabulary * width + norm, linear_flops(tokens, (width, vocabulary)))

    @property
    def non_embedding_parameters(self) -> int:
        """Parameters of the blocks and norms: without the token embedding and the output matrix."""
        return sum(p.numel() for m in (self.layers, self.ln_final) for p in m.parameters())


def _merge_aux(collected: list[tuple[int, dict[str, Any]]]) -> dict[str, Any] | None:
    if not collected:
        return None
    losses: dict[str, Tensor] = {}
    stats: dict[str, Any] = {}
    for i, aux in collected:
        for name, value in aux.get("losses", {}).items():
            losses[name] = losses[name] + value if name in losses else value
        if aux.get("stats"):
            stats[f"layers.{i}"] = aux["stats"]
    return {"losses": losses, "stats": stats}
