"""Vein blocks (TVA and VFT): attention and FFN work in a vein, a learnt subspace of r directions.

    vein         z = V x (d -> r), x̂ = U z (r -> d); tied: U = Vᵀ, V's rows orthonormal, so that the relative error
                 ‖x − x̂‖ / ‖x‖ lies in [0, 1]
    attention    every head has r numbers. Projecting is linear, so TVA *is* multi-head attention with heads r wide;
                 folded, it stores just that: q, k, v d -> H·r, out H·r -> d
    FFN          U · W2 · act(W1 · V x), gated or not, beside an optional direct path (the stabiliser)
    correction   x + 1[error > tau] · Σ_j alpha · σ(gate_j(x)) · u_j v_jᵀx for tokens far from the vein

From the vein-flow document.

Files, in reading order:

    projector.py     VeinProjector, the vein itself
    attention.py     TVAAttention ("tva"), to be folded and unfolded; folded it is standard attention's code, thin heads
                     (standard/attention.py); factored.py has the document's forms, with the vein apart
    ffn.py           VFTFeedForward ("vft"), its stabiliser, and the dense guide of self-guided training (guide.py)
    compensator.py   NormalCompensator, the correction
    block.py         VFTBlock: what "tva" and "vft" become when chosen together, in the presets `fast` and `seed` (the
                     document's mathematics parameter for parameter); metrics.py: what it reports of its tokens
    training.py      schedules of threshold and rank, calibration, optimizer groups, metrics of every block
    options.py       the options of a training run that concern veins; hook.py: what is done around its steps

The definitions in loops and float64, which every fast form is compared with: tests/vein/twin.py.

Use it where a thin head is good: small caches, long decodes, tight memory. Do not count on better quality at equal size
or time, and do not expect ranks of 4 to do: every head passes at most r numbers.

From a trained standard block to a vein block: blockyard.transplant.

Definitions, the search for the best form, costs and figures: docs/vein.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.moved import name_of
from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.vein.attention import TVAAttention as TVAAttention
    from blockyard.vein.block import VFTBlock as VFTBlock
    from blockyard.vein.compensator import NormalCompensator as NormalCompensator
    from blockyard.vein.ffn import VFTFeedForward as VFTFeedForward
    from blockyard.vein.guide import attach_guides as attach_guides
    from blockyard.vein.guide import drop_guides as drop_guides
    from blockyard.vein.guide import set_guide_share as set_guide_share
    from blockyard.vein.projector import VeinProjector as VeinProjector
    from blockyard.vein.projector import recommend_rank as recommend_rank
    from blockyard.vein.training import VeinSchedule as VeinSchedule
    from blockyard.vein.training import calibrate_tau as calibrate_tau
    from blockyard.vein.training import freeze_veins as freeze_veins
    from blockyard.vein.training import log_vein_metrics as log_vein_metrics
    from blockyard.vein.training import param_groups as param_groups
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
            "guide": "attach_guides drop_guides set_guide_share",
            "projector": "VeinProjector recommend_rank",
            "training": (
                "VeinSchedule calibrate_tau freeze_veins log_vein_metrics "
                "param_groups set_tau trim_veins use_rank vein_metrics"
            ),
        },
        otherwise=name_of(__name__),
    )
