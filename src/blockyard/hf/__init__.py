"""Models of the yard as a family of Hugging Face transformers: one configuration, one model class per task, any mixer.

    import blockyard.hf                                  # AutoConfig and the Auto models know "blockyard" from here on
    model = blockyard.hf.from_run("runs/lm-001")         # a run of ours, sharing its weights
    model.save_pretrained("mine")                        # safetensors and config.json, for AutoModelForCausalLM
    model.generate(ids, num_beams=4)

The architecture stands in the configuration as a plain dictionary, `LMConfig` or `EncoderConfig` field by field, so no
code is downloaded and no class is made per mixer. What decoding keeps are our own caches behind the interface of
transformers: beams, assisted decoding and left padding work for recurrent mixers, too.

Files, in reading order:

    config.py      BlockyardConfig: the dictionary, and what transformers asks of every configuration
    cache.py       our caches as layers of transformers' DynamicCache and StaticCache
    base.py        what both models share: weights, switches, what is refused
    causal.py      BlockyardForCausalLM
    sequence.py    BlockyardForSequenceClassification
    wrap.py        a model or run of ours as one of these, and back into a run folder
    pretrained.py  load_pretrained: the other way, from transformers' own families (docs/pretrained.md)
    auto.py        registration with the Auto classes
    steps.py       what mixtures of experts want once per optimizer step, for transformers' Trainer

Importing this package imports transformers (extra `hf`) where it is installed. What works for which mixer, and what is
refused: docs/hf.md.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.hf.causal import BlockyardForCausalLM as BlockyardForCausalLM
    from blockyard.hf.config import BlockyardConfig as BlockyardConfig
    from blockyard.hf.pretrained import load_pretrained as load_pretrained
    from blockyard.hf.sequence import BlockyardForSequenceClassification as BlockyardForSequenceClassification
    from blockyard.hf.steps import StepHooks as StepHooks
    from blockyard.hf.wrap import from_run as from_run
    from blockyard.hf.wrap import to_run as to_run
    from blockyard.hf.wrap import wrap as wrap
else:
    __all__ = exports(
        __name__,
        {
            "causal": "BlockyardForCausalLM",
            "config": "BlockyardConfig",
            "pretrained": "load_pretrained",
            "sequence": "BlockyardForSequenceClassification",
            "steps": "StepHooks",
            "wrap": "from_run to_run wrap",
        },
    )

if importlib.util.find_spec("transformers") is not None:
    # Here, not on first use: what is registered is found by `AutoModel…from_pretrained`, which names nothing of ours.
    from blockyard.hf.auto import register

    register()
