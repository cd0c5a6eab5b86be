"""What two wings or more compute with; it knows no block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.nn.attention import attend as attend
    from blockyard.nn.attention_masks import check_attn_mask as check_attn_mask
    from blockyard.nn.attention_masks import check_padding_mask as check_padding_mask
    from blockyard.nn.attention_masks import combine_masks as combine_masks
    from blockyard.nn.derivatives import HandWritten as HandWritten
    from blockyard.nn.derivatives import fused_or_plain as fused_or_plain
    from blockyard.nn.derivatives import hand_written as hand_written
    from blockyard.nn.derivatives import must_read as must_read
    from blockyard.nn.derivatives import outlasting as outlasting
    from blockyard.nn.dropout import Dropout as Dropout
    from blockyard.nn.linear import Embedding as Embedding
    from blockyard.nn.linear import Linear as Linear
    from blockyard.nn.norms import LayerNorm as LayerNorm
    from blockyard.nn.norms import RMSNorm as RMSNorm
    from blockyard.nn.norms import make_norm as make_norm
    from blockyard.nn.roles import Role as Role
    from blockyard.nn.roles import roles as roles
    from blockyard.nn.rotary import RotaryPositionalEmbedding as RotaryPositionalEmbedding
    from blockyard.nn.rotary import convert_layout as convert_layout
else:
    __all__ = exports(
        __name__,
        {
            "attention": "attend",
            "attention_masks": "check_attn_mask check_padding_mask combine_masks",
            "derivatives": "HandWritten fused_or_plain hand_written must_read outlasting",
            "dropout": "Dropout",
            "linear": "Embedding Linear",
            "norms": "LayerNorm RMSNorm make_norm",
            "roles": "Role roles",
            "rotary": "RotaryPositionalEmbedding convert_layout",
        },
    )
