"""Self-guided training of vein FFNs: dense matrices that lead early in training, fade out and are dropped.

Wei et al. 2024 (arXiv 2406.16450); the matrices themselves are `Guide` in ffn.py, which computes with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.vein.ffn import Guide, VFTFeedForward


def attach_guides(model: nn.Module) -> int:
    """Give every vein FFN of a model dense matrices that lead it (self-guided training, arXiv 2406.16450).

    The model's function does not change by it. Make the optimizer afterwards; call `set_guide_share` as training goes
    on and `drop_guides` when the share has come to 0.

    Returns: how many parameters were added.

    Raises: InputError when the model holds no vein FFN.
    """
    found = [module for module in model.modules() if isinstance(module, VFTFeedForward)]
    if not found:
        raise InputError(f"{type(model).__name__} holds no vein FFN (vft), so there is nothing to guide")
    for ffn in found:
        ffn.guide = Guide(ffn)
    return sum(p.numel() for ffn in found if ffn.guide is not None for p in ffn.guide.parameters())


def guide_share(progress: float) -> float:
    """Return the guides' share after a part of the guided steps: half a cosine from 1 to 0."""
    # Flat at both ends: the hand-over neither begins nor ends with a jerk.
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_guide_share(model: nn.Module, share: float) -> None:
    """Set how much of every vein FFN is its guide: 1 all, 0 nothing."""
    for module in model.modules():
        if isinstance(module, Guide):
            module.share.fill_(share)


def drop_guides(model: nn.Module) -> None:
    """Take the guides away; at share 0 the model's function does not change by it."""
    for module in model.modules():
        if isinstance(module, VFTFeedForward):
            module.guide = None


def match_guides(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Attach or drop guides as a saved state dict has them, so that it can be loaded."""
    has = any(".guide." in name for name in state)
    guided = any(isinstance(module, Guide) for module in model.modules())
    if has and not guided:
        attach_guides(model)
    elif guided and not has:
        drop_guides(model)
