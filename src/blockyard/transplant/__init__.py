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
    balance.py     scales of what was fitted, such that it can be trained
    model.py       transplant: a copy of a model with another mixer in some layers
    choices.py     a choice read: forms, their layers, widths left open
    search.py      layers and widths within a budget of loss or cache (decision.py: on what, and what came of it):
                   trials.py measures, caches.py counts bytes
    parts.py       a training of some parts of a model, as a run of the usual loop
    heal.py        a short training towards the original's predictions: divergence.py, its loss; adapters.py, LoRA
    outputs.py     research: mixers that share nothing with attention, trained on their blocks' outputs
    settings.py    the terms of a whole transplant; texts.py its text by kind, no piece in two roles
    run.py         a whole transplant, gone on with after a kill (state.py): original.py, measuring.py, recording.py
    measure.py     loss above the original's with an interval, and the copy test
    account.py     all that is measured of a model: make_probe, measure, decode_costs
    record.py      what is kept of a transplant, transplant.json
    findings.py    what that says in words, plainly where a choice is worse; tables.py, charts.py: in figures
    report.py      the page of it, made from the record alone: write_report(load_record("DIR"), "DIR")
    migration.py   from a standard block to a vein block: SVD on activations, then distillation

Use it to make a trained model's cache smaller. Smaller is not faster: attention over latents multiplies more. Read the
copy test beside the loss, and choose on other text than you report.

Definitions, what each form costs and figures: docs/transplant.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.transplant.account import Probe as Probe
    from blockyard.transplant.account import decode_costs as decode_costs
    from blockyard.transplant.account import make_probe as make_probe
    from blockyard.transplant.account import measure as measure
    from blockyard.transplant.decision import LayerChoice as LayerChoice
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
    from blockyard.transplant.record import Choice as Choice
    from blockyard.transplant.record import Measures as Measures
    from blockyard.transplant.record import Record as Record
    from blockyard.transplant.record import load_record as load_record
    from blockyard.transplant.report import write_report as write_report
    from blockyard.transplant.run import run_transplant as run_transplant
    from blockyard.transplant.search import choose_layers as choose_layers
    from blockyard.transplant.settings import Budget as Budget
    from blockyard.transplant.settings import Pieces as Pieces
    from blockyard.transplant.settings import Texts as Texts
    from blockyard.transplant.settings import TransplantConfig as TransplantConfig
    from blockyard.transplant.target import TransplantChoice as TransplantChoice
    from blockyard.transplant.target import parse_transplant_choice as parse_transplant_choice
else:
    __all__ = exports(
        __name__,
        {
            "account": "Probe decode_costs make_probe measure",
            "decision": "LayerChoice",
            "heal": "HealPoint HealSettings Healing heal",
            "measure": "Difference difference pieces_of recall_losses token_losses",
            "migration": "distill from_standard",
            "model": "needs_moments transplant",
            "moments": "FFNMoments LayerMoments Moments gather_moments",
            "outputs": "OutputFit OutputSettings fit_by_output",
            "record": "Choice Measures Record load_record",
            "report": "write_report",
            "run": "run_transplant",
            "search": "choose_layers",
            "settings": "Budget Pieces Texts TransplantConfig",
            "target": "TransplantChoice parse_transplant_choice",
        },
    )
