"""The interface of `nn.MultiheadAttention` over any mixer: the same constructor, the same call.

    layer = torch.nn.TransformerEncoderLayer(512, 8, batch_first=True)
    layer.self_attn = MultiheadAttention(512, 8, batch_first=True, mixer="tva", options={"rank": 16})

It takes batch_first, key_padding_mask, attn_mask (True = ignore, or added), need_weights, is_causal; what a mixer
cannot honour is refused. Inside torch's encoder it runs in train and in eval mode, where torch bypasses
a `forward`.

Files, in reading order:

    attention.py       MultiheadAttention: from torch's call to a mixer's; which calls are self-attention; from_torch
    torch_weights.py   torch's names of weights, its encoders' shortcut, its masks
    fields.py          a foreign configuration, every field read or refused; rotary positions and their scalings
    llama.py           a mixer behind the call of transformers' Llama attention
    swap.py            swap: the attention of a whole model exchanged, with a report of what became of its weights

Use it to exchange the attention of a model that you have. In a model of your own a mixer's own call is plainer:
`get_attention("tva", d_model=512, n_heads=8)`.

What it promises, and where it differs from torch: docs/drop-in.md; an example: examples/drop_in.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.multihead.attention import MultiheadAttention as MultiheadAttention
    from blockyard.multihead.swap import Swapped as Swapped
    from blockyard.multihead.swap import SwapReport as SwapReport
    from blockyard.multihead.swap import swap as swap
else:
    __all__ = exports(
        __name__,
        {
            "attention": "MultiheadAttention",
            "swap": "SwapReport Swapped swap",
        },
    )
