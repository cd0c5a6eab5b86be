"""The vein-flow document's names and call forms (`from blockyard.compat.vein_flow import VFTBlock, …`).

Blocks are of preset `fast` unless `preset="seed"` asks for the document's mathematics parameter for parameter. As in
the document, attention here knows no positions: pass `rope="half"`, or add position embeddings as its examples do.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from blockyard.nn.segments import Segments
from blockyard.protocol.cache import LayerCache
from blockyard.registry.options import check_options, options_of
from blockyard.registry.register import (
    get_attention,
    get_ffn,
    list_attention,
    list_ffn,
    register_attn,
    register_ffn,
)
from blockyard.vein.attention import TVAAttention as _TVAAttention
from blockyard.vein.block import VFTBlock as _VFTBlock
from blockyard.vein.compensator import NormalCompensator
from blockyard.vein.ffn import Activation, VFTFeedForward
from blockyard.vein.projector import VeinProjector, recommend_rank
from blockyard.vein.training import log_vein_metrics, param_groups

__all__ = [
    "NormalCompensator",
    "TVAAttention",
    "VFTBlock",
    "VFTFeedForward",
    "VeinProjector",
    "VeinSubspaceShared",
    "create_vft_block",
    "get_attention",
    "get_ffn",
    "list_attention",
    "list_ffn",
    "log_vein_metrics",
    "param_groups",
    "recommend_rank",
    "register_attn",
    "register_ffn",
]

Rope = Literal["half", "interleaved", "none"]

# The document's older name.
VeinSubspaceShared = VeinProjector


class TVAAttention(_TVAAttention):
    """`TVAAttention(d_model, n_heads, rank)` as the document calls it.

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads.
        rank: directions of the vein per head.
        attn_dropout: probability of dropping an attention weight in training.
        proj_dropout: probability of dropping an element of the output in training.
        vein_projector: a vein to share, as wide as a head or as d_model.
        causal: hide the future.
        rope: rotary positions within the vein; the document has none.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        rank: int,
        attn_dropout: float = 0.0,
        proj_dropout: float = 0.0,
        vein_projector: VeinProjector | None = None,
        *,
        causal: bool = False,
        rope: Rope = "none",
    ) -> None:
        super().__init__(
            d_model,
            n_heads,
            rank,
            attn_dropout=attn_dropout,
            proj_dropout=proj_dropout,
            vein_projector=vein_projector,
            causal=causal,
            rope=rope,
        )

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        return_attention_weights: bool = False,
        *,
        padding_mask: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        context: Tensor | None = None,
        values: Tensor | None = None,
        cache: LayerCache | None = None,
        return_weights: bool = False,
        documents: Segments | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        return super().forward(
            x,
            attn_mask=attn_mask,
            padding_mask=padding_mask,
            causal=causal,
            positions=positions,
            context=context,
            values=values,
            cache=cache,
            return_weights=return_attention_weights or return_weights,
            documents=documents,
        )


class VFTBlock(_VFTBlock):
    """`VFTBlock(d_model, n_heads, rank)` as the document calls it; returns (x, metrics | None).

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads.
        rank: directions of the veins; None = half a head's width, and d_model / 2 in the FFN.
        r_hidden: hidden width of the FFN inside the vein; None = 4 · rank, or d_model without a rank.
        s_normals: number of correction directions; 0 = none.
        tau: threshold of the correction.
        attn_dropout: probability of dropping an attention weight in training.
        ffn_dropout: probability of dropping a hidden element in training.
        activation: gelu, relu or silu.
        use_stabilizer: the square direct path beside the FFN; None = as the preset says.
        preset: fast, or seed for the document's mathematics.
        causal: hide the future.
        rope: rotary positions within the vein; the document has none.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int = 8,
        rank: int | None = None,
        r_hidden: int | None = None,
        s_normals: int = 1,
        tau: float = 0.18,
        attn_dropout: float = 0.0,
        ffn_dropout: float = 0.0,
        activation: Activation = "silu",
        use_stabilizer: bool | None = None,
        *,
        preset: Literal["fast", "seed"] = "fast",
        causal: bool = False,
        rope: Rope = "none",
    ) -> None:
        super().__init__(
            d_model,
            n_heads,
            rank,
            preset=preset,
            r_hidden=r_hidden,
            s=s_normals,
            tau=tau,
            attn_dropout=attn_dropout,
            ffn_dropout=ffn_dropout,
            activation=activation,
            use_stabilizer=use_stabilizer,
            norm="layer",
            causal=causal,
            rope=rope,
        )

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        return_metrics: bool = False,
        *,
        padding_mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        segments: Segments | None = None,
    ) -> tuple[Tensor, dict[str, Any] | None]:
        return super().forward(
            x,
            attn_mask=attn_mask,
            padding_mask=padding_mask,
            positions=positions,
            cache=cache,
            segments=segments,
            return_metrics=return_metrics,
        )


def create_vft_block(d_model: int, n_heads: int = 8, rank: int | None = None, **options: Any) -> VFTBlock:
    """Return the document's factory: a `VFTBlock` with the options of its constructor.

    Raises: InputError for an unknown option (with the nearest known one) or a value of the wrong type, and where
        `VFTBlock` does.
    """
    given = {"d_model": d_model, "n_heads": n_heads, "rank": rank, **options}
    return VFTBlock(**check_options(options_of(VFTBlock), given, "VFTBlock"))
