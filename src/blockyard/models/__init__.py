"""Models built from blocks: embed, blocks by layer pattern, norm, head.

    x = embedding(tokens);  for each layer: x = block(x);  logits = head(norm(x))

The layers follow a pattern that repeats over the depth, `LMConfig(blocks="tva*3/standard+swiglu")`. Blocks start as the
identity, and the head is untied and starts at zero unless told otherwise.

Files, in reading order:

    config.py      BlocksConfig: what all models share (which blocks, how wide, how many, which norms)
    trunk.py       Trunk: the blocks and the last norm, between an embedding and a head of the model's own; seeded
    lm.py          LMConfig, TransformerLM: the language model, with loss, cache and costs
    positions.py   learned positions, for mixers that do not know the order of tokens
    order.py       whether a mixer knows it: found out by changing the order
    estimate.py    what a model would take, before it is built
    table.py       a model as a notebook shows it
    inside.py      what attention and filters of a trained model do, as plain data

Take TransformerLM to train and generate; inherit from Trunk and BlocksConfig for a model of your own, as the tasks do.

Patterns: docs/comparing.md; positions: docs/custom-blocks.md; a model of your own: docs/tasks.md; its use in a loop of
your own: docs/drop-in.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.models.config import BlocksConfig as BlocksConfig
    from blockyard.models.lm import LMConfig as LMConfig
    from blockyard.models.lm import LMOutput as LMOutput
    from blockyard.models.lm import TransformerLM as TransformerLM
    from blockyard.models.trunk import Trunk as Trunk
    from blockyard.models.trunk import seeded as seeded
else:
    __all__ = exports(
        __name__,
        {
            "config": "BlocksConfig",
            "lm": "LMConfig LMOutput TransformerLM",
            "trunk": "Trunk seeded",
        },
    )
