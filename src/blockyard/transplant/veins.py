"""A gated FFN put into a vein: U · W2 · (act(W1 V h) ⊙ W3 V h), with V and U the principal directions of what the FFN
reads and writes.

The FFNs of trained models hardly compress: what they read fills all directions. It is here to be measured, not advised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blockyard.errors import InputError
from blockyard.nn.linear import weight_of
from blockyard.standard.gated import SwiGLU
from blockyard.transplant.balance import balanced_vein
from blockyard.transplant.moments import FFNMoments
from blockyard.transplant.source import leading

WARNING = (
    "the FFNs of trained models hardly compress: what they read fills all directions, so a vein loses much and saves "
    "few parameters; measure what it costs before you use it"
)


def fit_vein(ffn: Any, moments: FFNMoments, *, rank: int, layer: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fit a vein FFN to SwiGLU.

    Args:
        ffn: the trained FFN.
        moments: of what it reads and writes.
        rank: directions of the vein, below d_model.
        layer: where it stands, for the error.

    Returns: options of the new `vft`, and its weights in float64. It is exact where inputs and outputs keep to `rank`
        directions.

    Raises:
        InputError: for another FFN, biases, or a rank out of range.
    """
    check_gated(ffn, layer)
    if not 1 <= rank < ffn.d_model:
        raise InputError(f"rank={rank} should be at least 1 and below d_model={ffn.d_model}")
    up, gate, down = (weight_of(each).detach().cpu().double() for each in (ffn.w1, ffn.w3, ffn.w2))
    whole = torch.eye(ffn.d_model, dtype=torch.float64)
    # Two veins: what an FFN writes lies in other directions than what it reads.
    into = leading(whole, moments.read, rank)  # [d, rank], orthonormal
    back = leading(whole, moments.written, rank)
    weights = {
        "vein.V.weight": into.mT,
        "vein.U.weight": back,
        "w1.weight": up @ into,
        "w3.weight": gate @ into,
        "w2.weight": back.mT @ down,
    }
    # The trained FFN has none.
    weights |= {
        f"{name}.bias": torch.zeros(len(weights[f"{name}.weight"]), dtype=torch.float64) for name in ("w1", "w2", "w3")
    }
    options = {"rank": rank, "r_hidden": len(up), "activation": "silu", "gated": True, "stabilizer": "none"}
    return options, balanced_vein(weights)


def check_gated(ffn: Any, layer: int) -> None:
    """Raise InputError for another FFN than SwiGLU without biases."""
    if not isinstance(ffn, SwiGLU) or ffn.w1.bias is not None:
        raise InputError(f"layer {layer} has {type(ffn).__name__}; a vein is fitted to swiglu without biases")
