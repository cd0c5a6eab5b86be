"""Transplants: other blocks in a trained model, with weights computed from the old ones and a little text.

    keys      of several heads, at each rotary frequency, as components s = Uᴴ (w k) with S = E[k̃ k̃ᴴ] = U Λ Uᴴ: a
              unitary mix of key heads commutes with rotation, so a few strong components can stand for all
    values    as one latent: principal components of M^½ W_v x, M = Σ W_oᵀ W_o, which is what the output sees
    latents   of both (MLA): components that stay rotary, and the rest beside the values

Keys, values and queries are linear in a layer's input, so second moments of the inputs are all a fit has to know;
tokens count by the attention they receive. A window with sinks needs no fit: it changes no weight.

Files, in reading order:

    moments.py     what a text says of the layers' inputs: gather_moments, kept in a file and gone on with
    target.py      what is asked for: a mixer, and the method that fits it
    source.py      a trained attention as the fits read it; components of keys, paths of values
    grouped.py     standard from standard: thin heads, fewer key heads, rotary PCA
    latents.py     MLA from standard
    published.py   mean pooling, weight SVD, MHA2MLA, TransMLA and Palu, to be measured beside
    veins.py       a vein FFN from SwiGLU, with its warning
    model.py       transplant: a copy of a model with another mixer in some layers
    choose.py      as many layers as a budget of loss allows, by measuring whole choices
    parts.py       a training of some parts of a model, as a run of the usual loop
    heal.py        a short training towards the original's predictions: divergence.py, its loss; adapters.py, LoRA
    outputs.py     research: mixers that share nothing with attention, trained on their blocks' outputs
    measure.py     loss above the original's with an interval, and the copy test
    migration.py   from a standard block to a vein block: SVD on activations, then distillation

Use it to make a trained model's cache smaller. Smaller is not faster: attention over latents multiplies more. Read the
copy test beside the loss, and choose on other text than you report.

Definitions, what each form costs and figures: docs/transplant.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.transplant.choose import LayerChoice as LayerChoice
    from blockyard.transplant.choose import Trial as Trial
    from blockyard.transplant.choose import choose_layers as choose_layers
    from blockyard.transplant.heal import Healing as Healing
    from blockyard.transplant.heal import HealPoint as HealPoint
    from blockyard.transplant.heal import HealSettings as HealSettings
    from blockyard.transplant.heal import heal as heal
    from blockyard.transplant.measure import Difference as Difference
    from blockyard.transplant.measure import difference as difference
    from blockyard.transplant.measure import pieces_of as pieces_of
    from blockyard.transplant.measure import recall_losses as recall_losses
    from blockyard.transplant.measure import token_losses as token_losses
    from blockyard.transplant.migration import distill as distill
    from blockyard.transplant.migration import from_standard as from_standard
    from blockyard.transplant.model import needs_moments as needs_moments
    from blockyard.transplant.model import transplant as transplant
    from blockyard.transplant.moments import FFNMoments as FFNMoments
    from blockyard.transplant.moments import LayerMoments as LayerMoments
    from blockyard.transplant.moments import Moments as Moments
    from blockyard.transplant.moments import gather_moments as gather_moments
    from blockyard.transplant.outputs import OutputFit as OutputFit
    from blockyard.transplant.outputs import OutputSettings as OutputSettings
    from blockyard.transplant.outputs import fit_by_output as fit_by_output
    from blockyard.transplant.target import TransplantChoice as TransplantChoice
    from blockyard.transplant.target import parse_transplant_choice as parse_transplant_choice
else:
    __all__ = exports(
        __name__,
        {
            "choose": "LayerChoice Trial choose_layers",
            "heal": "HealPoint HealSettings Healing heal",
            "measure": "Difference difference pieces_of recall_losses token_losses",
            "migration": "distill from_standard",
            "model": "needs_moments transplant",
            "moments": "FFNMoments LayerMoments Moments gather_moments",
            "outputs": "OutputFit OutputSettings fit_by_output",
            "target": "TransplantChoice parse_transplant_choice",
        },
    )
