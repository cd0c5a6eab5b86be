"""Pretrained models of others as models of the yard: read whole, or refused with the name of what is not understood.

    p = load_pretrained("SmolLM2-135M-Instruct")      p.model(ids).logits = transformers' logits, up to rounding
    blockyard import SmolLM2-135M-Instruct --out runs/smollm

A family is data: its configuration read into `LMConfig`, field by field (multihead/fields.py), and which of its modules
are which of ours. What its models need is an option of blocks and models that anyone can set; there is no class per
family.

Files, in reading order:

    parts.py      Family, Part, Mixture: names as data, cut and joined
    decoders.py   Llama, Mistral, Qwen 2 and 3, Phi-3, OLMo 2, GPT-2, GPT-NeoX
    mixtures.py   Mixtral, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2 and V3
    families.py   all families by `model_type`, and the refused ones
    sources.py    safetensors, GGUF by transformers, a model in memory; nothing is unpickled
    weights.py    keys to state dicts and back; whatever is left over is refused by its name
    parity.py     the logits of both for random ids
    load.py       load_pretrained
    folder.py     write_run, export_original: run folders, and back to the original architecture

Use it to continue, fine-tune, measure or change a trained model; train from the start with `train lm`.

Families, options and figures: docs/pretrained.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.pretrained.folder import export_original as export_original
    from blockyard.pretrained.folder import why_not_original as why_not_original
    from blockyard.pretrained.folder import write_run as write_run
    from blockyard.pretrained.load import Pretrained as Pretrained
    from blockyard.pretrained.load import load_pretrained as load_pretrained
    from blockyard.pretrained.parity import Parity as Parity
else:
    __all__ = exports(
        __name__,
        {
            "folder": "export_original why_not_original write_run",
            "load": "Pretrained load_pretrained",
            "parity": "Parity",
        },
    )
