"""For the tests of generation: tiny language models with random weights everywhere."""

from __future__ import annotations

import torch

from blockyard.conformance.subject import own_random
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.models.order import randomise

PROMPT = [3, 141, 59, 26, 5]


def build(context=32, blocks="standard", vocab_size=256, seed=0, sharpness=2.0, n_layers=2, **options):
    # A model whose blocks start as the identity would repeat one token.
    with own_random(seed):
        config = LMConfig(
            vocab_size, blocks=blocks, d_model=16, n_layers=n_layers, n_heads=2, context=context, **options
        )
        model = TransformerLM(config)
        randomise(model)
        # Logits far enough apart that rounding decides nothing, near enough that sampling has a choice.
        with torch.no_grad():
            model.lm_head.weight.mul_(sharpness)
    return model.eval()
