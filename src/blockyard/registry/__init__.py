"""The register: names of mixers, FFNs and paired blocks, their traits, and options read from constructors.

A constructor is a schema: its typed keyword parameters with defaults, described under `Args:`, are the options. The
same check serves Python, YAML and the command line, so the errors are the same sentence.

    @register_attn("mine")
    class MyMixer(nn.Module):
        def __init__(self, d_model: int, n_heads: int, decay: float = 0.9): ...

    get_attention("mine", d_model=768, n_heads=12, decay=0.8)
    "spectral*3/standard[window=256]+swiglu"    layers as data: a pattern that repeats over the depth

Files, in reading order:

    builtin.py    what is built in, by name: the one table that a new wing or task adds a line to
    register.py   Traits, Entry; register_attn, register_ffn, register_block; get_*, list_*, *_class. Built-in modules
                  are imported on first use, so that listing their names costs no torch
    options.py    options_of reads them from a signature, check_options checks and converts what is given
    schema.py     options as JSON Schema, for editors
    pattern.py    layers as data: choices, patterns, LayerSpec
    plugins.py    modules that a user names are imported; those that a file names, only when agreed to
    yamlfile.py   settings files, with errors that name the line, written so that they read back

Blocks are found by decorator, by `--plugin`, or by the entry points blockyard.attention and blockyard.ffn.

A block of your own: docs/custom-blocks.md; what is imported when: docs/security.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.registry.options import Option as Option
    from blockyard.registry.options import check_options as check_options
    from blockyard.registry.options import options_of as options_of
    from blockyard.registry.pattern import LayerSpec as LayerSpec
    from blockyard.registry.pattern import parse_choice as parse_choice
    from blockyard.registry.pattern import split_choices as split_choices
    from blockyard.registry.plugins import load_plugins as load_plugins
    from blockyard.registry.register import Entry as Entry
    from blockyard.registry.register import Traits as Traits
    from blockyard.registry.register import attention_class as attention_class
    from blockyard.registry.register import describe as describe
    from blockyard.registry.register import entries as entries
    from blockyard.registry.register import ffn_class as ffn_class
    from blockyard.registry.register import get_attention as get_attention
    from blockyard.registry.register import get_ffn as get_ffn
    from blockyard.registry.register import infer_traits as infer_traits
    from blockyard.registry.register import list_attention as list_attention
    from blockyard.registry.register import list_ffn as list_ffn
    from blockyard.registry.register import register_attn as register_attn
    from blockyard.registry.register import register_block as register_block
    from blockyard.registry.register import register_ffn as register_ffn
    from blockyard.registry.yamlfile import read_yaml as read_yaml
    from blockyard.registry.yamlfile import write_yaml as write_yaml
else:
    __all__ = exports(
        __name__,
        {
            "options": "Option check_options options_of",
            "pattern": "LayerSpec parse_choice split_choices",
            "plugins": "load_plugins",
            "register": (
                "Entry Traits attention_class describe entries ffn_class get_attention get_ffn infer_traits "
                "list_attention list_ffn register_attn register_block register_ffn"
            ),
            "yamlfile": "read_yaml write_yaml",
        },
    )
