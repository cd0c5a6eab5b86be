"""A yard of interchangeable Transformer blocks: one protocol, honest comparisons.

    from blockyard import LMConfig, TransformerLM, get_attention
    from blockyard.vein import VFTBlock                    # each system, task and tool has a package of its own

    systems   standard, latent, vein, spectral, complex, moe
    core      registry (names and options), protocol (mixer, FFN, block, cache), nn, models, multihead
    use       generation, conformance, text, training, tasks (lm, classify, recall, signal, price), hf
    tools     compare, tune, bench, report, claims, cli; compat has the source documents' own names

Each package's docstring is its map. Importing one is cheap: names are resolved when they are first used (PEP 562). All
public names: docs/api.md; how the house is built: docs/architecture.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard import moved
from blockyard.names import exports

__version__ = "0.1.0"

moved.install()

if TYPE_CHECKING:
    from blockyard.errors import InputError as InputError
    from blockyard.models.lm import LMConfig as LMConfig
    from blockyard.models.lm import TransformerLM as TransformerLM
    from blockyard.multihead.attention import MultiheadAttention as MultiheadAttention
    from blockyard.multihead.swap import swap as swap
    from blockyard.registry.pattern import LayerSpec as LayerSpec
    from blockyard.registry.register import Traits as Traits
    from blockyard.registry.register import attention_class as attention_class
    from blockyard.registry.register import ffn_class as ffn_class
    from blockyard.registry.register import get_attention as get_attention
    from blockyard.registry.register import get_ffn as get_ffn
    from blockyard.registry.register import list_attention as list_attention
    from blockyard.registry.register import list_ffn as list_ffn
    from blockyard.registry.register import register_attn as register_attn
    from blockyard.registry.register import register_block as register_block
    from blockyard.registry.register import register_ffn as register_ffn
else:
    __all__ = [
        "__version__",
        *exports(
            __name__,
            {
                "errors": "InputError",
                "models.lm": "LMConfig TransformerLM",
                "multihead.attention": "MultiheadAttention",
                "multihead.swap": "swap",
                "registry.pattern": "LayerSpec",
                "registry.register": (
                    "Traits attention_class ffn_class get_attention get_ffn list_attention list_ffn "
                    "register_attn register_block register_ffn"
                ),
            },
            moved.attribute,
        ),
    ]
