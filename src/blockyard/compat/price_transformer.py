"""The price document's names and call forms (`from blockyard.compat.price_transformer import PriceTransformer, …`).

Its attention is `blockyard.latent.LatentAttention` with rope="full" and interleaved pairs. Three things are
mended: the document leaves queries, keys and values as [B, T, H, d] in front of `scaled_dot_product_attention`, which
would attend over heads; it has no output projection; and it uses a `v_dim` that it never sets.

`PriceTransformer` is the document's layout alone: features in, ten numbers out. The one to forecast with is
`blockyard.tasks.price.PriceForecaster`: it adds scaling, distributions and the patch layout. The presets'
widths and the ten horizons are those of the same author's code; the document does not state them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.compat.basics import RMSNorm, SwiGLU
from blockyard.errors import InputError, at_least
from blockyard.latent.attention import LatentAttention
from blockyard.nn.dropout import Dropout
from blockyard.nn.linear import Linear
from blockyard.nn.rotary import rotary_tables, rotate
from blockyard.registry import register as registry
from blockyard.registry.options import options_of
from blockyard.tasks.price.embedding import GroupedEmbedding
from blockyard.tasks.price.model import HORIZONS

__all__ = [
    "FinancialEmbeddingLayer",
    "MultiHeadLatentAttention",
    "PricePredictionConfig",
    "PricePredictionConfigs",
    "PriceTransformer",
    "RMSNorm",
    "SwiGLU",
    "TransformerBlock",
    "apply_rotary_emb",
    "get_ffn",
    "precompute_freqs_cis",
    "reshape_for_broadcast",
]

# The document speaks of groups among its twenty features and does not list them; these are by kind of source.
FEATURE_GROUPS = {
    "price": (0, 1, 2, 3, 4),
    "volume": (5, 6, 7, 8),
    "technical": (9, 10, 11, 12, 13, 14),
    "flow": (15, 16, 17, 18, 19),
}


@dataclass
class PricePredictionConfig:
    """The document's configuration. Fields may be assigned to until a module is built, which copies what it needs.

    Args:
        d_model: width of the residual stream.
        n_layers: number of blocks.
        n_heads: number of attention heads, dividing d_model.
        kv_lora_rank: width of the latent that keys and values come from.
        v_dim: width of a head's values; None = d_model / n_heads.
        intermediate_size: hidden width of the FFN.
        learning_rate: of the optimizer.
        weight_decay: of the optimizer.
        dropout: probability of dropping attention weights and hidden elements in training.
        rope_theta: base of the rotary wavelengths.
        max_seq_len: longest sequence.
        feature_groups: feature numbers by group; each group has its own projection and normalisation.
        horizons: steps ahead that are predicted.
        layer_overrides: fields that a layer has otherwise, by its index: `{0: {"kv_lora_rank": 64}}`.
    """

    d_model: int = 512
    n_layers: int = 8
    n_heads: int = 8
    kv_lora_rank: int = 256
    v_dim: int | None = None
    intermediate_size: int = 2048
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    dropout: float = 0.1
    rope_theta: float = 10_000.0
    max_seq_len: int = 512
    feature_groups: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(FEATURE_GROUPS))
    horizons: tuple[int, ...] = HORIZONS
    layer_overrides: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def n_features(self) -> int:
        """Features of a step."""
        return sum(len(group) for group in self.feature_groups.values())


class PricePredictionConfigs:
    """The presets; each call makes a new configuration, to be assigned to freely."""

    @staticmethod
    def tiny() -> PricePredictionConfig:
        return PricePredictionConfig(d_model=256, n_layers=4, n_heads=4, kv_lora_rank=128)

    @staticmethod
    def small() -> PricePredictionConfig:
        return PricePredictionConfig(d_model=512, n_layers=6, n_heads=8, kv_lora_rank=256)

    @staticmethod
    def base() -> PricePredictionConfig:
        return PricePredictionConfig(d_model=512, n_layers=8, n_heads=8, kv_lora_rank=256)

    @staticmethod
    def large() -> PricePredictionConfig:
        return PricePredictionConfig(d_model=1024, n_layers=12, n_heads=16, kv_lora_rank=512)


def precompute_freqs_cis(dim: int, end: int, theta: float = 1e4) -> Tensor:
    """Compute e^(i·m·theta^(−2j/dim)) for positions m below `end`: complex64 [end, dim / 2].

    Raises:
        InputError: for an odd `dim`, or an `end` below 1.
    """
    if dim < 2 or dim % 2:
        raise InputError(f"dim={dim}: rotation turns pairs; use an even width")
    at_least(1, end=end)
    cos, sin = rotary_tables(end, dim, theta, torch.device("cpu"), torch.float32)
    return torch.complex(cos[:end], sin[:end])


def reshape_for_broadcast(freqs_cis: Tensor, x: Tensor) -> Tensor:
    """Return freqs_cis [T, w] as [1, T, 1, …, w], to be multiplied with a complex x [B, T, …, w].

    Raises:
        InputError: when the sizes differ.
    """
    if x.ndim < 2 or tuple(freqs_cis.shape) != (x.shape[1], x.shape[-1]):
        found, wanted = tuple(freqs_cis.shape), (*x.shape[1:2], *x.shape[-1:])
        raise InputError(f"freqs_cis has shape {found}, expected {wanted}, the length and the last axis of x")
    return freqs_cis.view(1, x.shape[1], *(1,) * (x.ndim - 3), x.shape[-1])


def apply_rotary_emb(xq: Tensor, xk: Tensor, freqs_cis: Tensor) -> tuple[Tensor, Tensor]:
    """Turn neighbouring pairs of features of queries and keys [B, T, H, d] by freqs_cis [T, d / 2].

    Raises:
        InputError: for real factors or another length or width.
    """
    return _turn(xq, freqs_cis), _turn(xk, freqs_cis)


def _turn(x: Tensor, freqs_cis: Tensor) -> Tensor:
    cos, sin = _tables(freqs_cis, x.dtype)
    halves = x[..., ::2]  # of the shape that x has as complex numbers
    return rotate(x, reshape_for_broadcast(cos, halves), reshape_for_broadcast(sin, halves), "interleaved")


def _tables(freqs_cis: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin, in at least the precision of x."""
    if not freqs_cis.is_complex():
        raise InputError(f"freqs_cis has dtype {freqs_cis.dtype}, expected complex factors from precompute_freqs_cis")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return freqs_cis.real.to(wide), freqs_cis.imag.to(wide)


class MultiHeadLatentAttention(nn.Module):
    """The document's attention: latents c = RMSNorm(W_c x), k = R(W_uk c), v = W_uv c, q = R(W_q x).

    Args:
        args: has d_model, n_heads, kv_lora_rank, and may have v_dim and dropout.

    Shapes: x [B, T, d_model] -> [B, T, d_model].
    Raises: InputError when d_model / n_heads is not a whole, even number.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()
        self.mla = LatentAttention(
            args.d_model,
            args.n_heads,
            kv_rank=args.kv_lora_rank,
            v_dim=getattr(args, "v_dim", None),
            rope="full",
            rope_layout="interleaved",
            dropout=getattr(args, "dropout", 0.0),
        )
        self.n_heads, self.qk_head_dim, self.v_dim = self.mla.n_heads, self.mla.nope_dim, self.mla.v_dim

    def forward(self, x: Tensor, freqs_cis: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Attend.

        Args:
            x: [B, T, d_model].
            freqs_cis: complex [T, head width / 2] from `precompute_freqs_cis`.
            attn_mask: bool (True = attend) or additive, broadcastable to [B, H, T, T].
            is_causal: hide the future, beside what the mask hides.
        """
        cos, sin = _tables(freqs_cis, x.dtype)
        return self.mla.forward_rotated(x, cos, sin, causal=is_causal, attn_mask=attn_mask)


def get_ffn(args: Any, ffn_type: str = "swiglu") -> Any:
    """Return an FFN by name, of width `args.d_model` and hidden width `args.intermediate_size`.

    Args:
        args: has d_model and intermediate_size, and may have dropout.
        ffn_type: a registered name.

    Raises:
        InputError: for an unknown name.
    """
    known = options_of(registry.ffn_class(ffn_type))
    given = {"d_model": args.d_model, "d_ff": args.intermediate_size, "dropout": getattr(args, "dropout", 0.0)}
    return registry.get_ffn(ffn_type, **{name: value for name, value in given.items() if name in known})


class TransformerBlock(nn.Module):
    """x + attn(norm(x)), then x + ffn(norm(x)); returns the tensor alone, as in the document.

    Args:
        args: as for `MultiHeadLatentAttention` and `get_ffn`.
        layer_idx: which layer this is; its entry in `args.layer_overrides`, if there is one, replaces fields.

    Shapes: x [B, T, d_model] -> [B, T, d_model].
    """

    def __init__(self, args: Any, layer_idx: int = 0) -> None:
        super().__init__()
        args = _for_layer(args, layer_idx)
        self.layer_idx = layer_idx
        self.attn_norm = RMSNorm(args.d_model)
        self.attn = MultiHeadLatentAttention(args)
        self.ffn_norm = RMSNorm(args.d_model)
        self.ffn = get_ffn(args, ffn_type="swiglu")

    def forward(self, x: Tensor, freqs_cis: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return arguments as for `MultiHeadLatentAttention`."""
        x = x + self.attn(self.attn_norm(x), freqs_cis, attn_mask, is_causal)
        return x + self.ffn(self.ffn_norm(x))


def _for_layer(args: Any, layer_idx: int) -> Any:
    """Return the configuration of one layer."""
    at_least(0, layer_idx=layer_idx)
    overrides = getattr(args, "layer_overrides", {}).get(layer_idx, {})
    own = copy.copy(args)
    for name, value in overrides.items():
        if not hasattr(args, name):
            raise InputError(f"layer_overrides[{layer_idx}] names {name!r}, which the configuration does not have")
        setattr(own, name, value)
    return own


class FinancialEmbeddingLayer(nn.Module):
    """Features [B, T, F] -> [B, T, d_model]: each group of features is batch-normalised and projected apart.

    Batch normalisation is over batch and time, with running statistics in eval mode: a z-score over the window's own
    time axis would let later steps change earlier ones.

    Args:
        config: has d_model and feature_groups.

    Raises: InputError when the groups do not hold every feature once.
    """

    def __init__(self, config: PricePredictionConfig) -> None:
        super().__init__()
        self.groups = GroupedEmbedding(list(config.feature_groups.values()), config.d_model, norm="batch")
        self.n_features = config.n_features

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[-1] != self.n_features or 0 in x.shape:
            raise InputError(f"x has shape {tuple(x.shape)}, expected [batch, length, {self.n_features}]")
        embedded: Tensor = self.groups(x)
        return embedded


class PriceTransformer(nn.Module):
    """The document's forecaster: grouped embedding, blocks, the last step's vector, one number per horizon.

    `PriceTransformer(PricePredictionConfigs.base())(x)` -> [B, 10]

    Args:
        config: copied; assigning to it later changes nothing here.

    Shapes: x [B, T, F] -> predictions [B, horizons]; see `forward`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: PricePredictionConfig) -> None:
        super().__init__()
        self.config = config = copy.deepcopy(config)
        self.embedding = FinancialEmbeddingLayer(config)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerBlock(config, i) for i in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        self.price_head = Linear(config.d_model, len(config.horizons), bias=True)
        factors = precompute_freqs_cis(config.d_model // config.n_heads, config.max_seq_len, config.rope_theta)
        # A complex buffer would turn real under `.to(bfloat16)`: two real ones, seen as one complex when used.
        self.register_buffer("cos", factors.real.clone(), persistent=False)
        self.register_buffer("sin", factors.imag.clone(), persistent=False)

    @property
    def freqs_cis(self) -> Tensor:
        """The rotation's factors, complex [max_seq_len, head width / 2]."""
        wide = torch.float64 if self.cos.dtype == torch.float64 else torch.float32
        return torch.complex(self.cos.to(wide), self.sin.to(wide))

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        return_features: bool = False,
        return_dict: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Predict.

        Args:
            x: features [B, T, F].
            attn_mask: as for `TransformerBlock`.
            is_causal: likewise.
            return_features: also return the last step's vector [B, d_model], the document's strategy features.
            return_dict: return {"price_predictions", "strategy_features"} instead of a tensor or a pair.

        Raises:
            InputError: for another number of features, or a sequence longer than max_seq_len.
        """
        if x.ndim == 3 and x.shape[1] > self.config.max_seq_len:
            raise InputError(f"x has {x.shape[1]} steps, more than max_seq_len={self.config.max_seq_len}")
        h = self.dropout(self.embedding(x))
        turns = self.freqs_cis[: x.shape[1]]
        for layer in self.layers:
            h = layer(h, turns, attn_mask, is_causal)
        features = self.norm(h[:, -1])
        predictions = self.price_head(features)
        if return_dict:
            more = {"strategy_features": features} if return_features else {}
            return {"price_predictions": predictions, **more}
        return (predictions, features) if return_features else predictions
