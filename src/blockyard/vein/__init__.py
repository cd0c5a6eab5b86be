"""Vein blocks: attention and FFN in a learnt subspace of few directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.vein.attention import TVAAttention as TVAAttention
    from blockyard.vein.block import VFTBlock as VFTBlock
    from blockyard.vein.compensator import NormalCompensator as NormalCompensator
    from blockyard.vein.ffn import VFTFeedForward as VFTFeedForward
    from blockyard.vein.migration import distill as distill
    from blockyard.vein.migration import from_standard as from_standard
    from blockyard.vein.projector import VeinProjector as VeinProjector
    from blockyard.vein.projector import recommend_rank as recommend_rank
    from blockyard.vein.training import VeinSchedule as VeinSchedule
    from blockyard.vein.training import attach_guides as attach_guides
    from blockyard.vein.training import calibrate_tau as calibrate_tau
    from blockyard.vein.training import drop_guides as drop_guides
    from blockyard.vein.training import freeze_veins as freeze_veins
    from blockyard.vein.training import log_vein_metrics as log_vein_metrics
    from blockyard.vein.training import param_groups as param_groups
    from blockyard.vein.training import set_guide_share as set_guide_share
    from blockyard.vein.training import set_tau as set_tau
    from blockyard.vein.training import trim_veins as trim_veins
    from blockyard.vein.training import use_rank as use_rank
    from blockyard.vein.training import vein_metrics as vein_metrics
else:
    __all__ = exports(
        __name__,
        {
            "attention": "TVAAttention",
            "block": "VFTBlock",
            "compensator": "NormalCompensator",
            "ffn": "VFTFeedForward",
            "migration": "distill from_standard",
            "projector": "VeinProjector recommend_rank",
            "training": (
                "VeinSchedule attach_guides calibrate_tau drop_guides freeze_veins log_vein_metrics "
                "param_groups set_guide_share set_tau trim_veins use_rank vein_metrics"
            ),
        },
    )
