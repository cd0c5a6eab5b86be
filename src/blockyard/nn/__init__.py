"""What two wings or more compute with: layers and operations that know no mixer, no FFN and no model.

    attend(q, k, v, …) = softmax(q kᵀ · scale + mask) v, by the kernel that suits length and type
    RMSNorm: x / √(mean x² + ε) · g        rotary: feature pairs turned by position · θ^(−j/d)

Files, in reading order:

    linear.py           Linear, StackedLinear, Embedding: the maps and their initialisation
    products.py         float32 products by the faster of torch's two libraries
    norms.py            RMSNorm, LayerNorm, with hand-written passes in eager mode
    rotary.py           rotary positions in both pairings; convert_layout turns weights of one into the other
    rotary_scaling.py   their frequencies scaled for longer texts: linear, dynamic, yarn, llama3, longrope
    attention.py        attend: masks, sinks and windows, by the kernel that suits
    attention_kernels.py  plain products and SDPA, which one when; scores in float32 at least
    attention_windows.py  a sliding window in blocks of queries
    attention_flex.py   windows, sinks and documents in a row by FlexAttention, in training on CUDA
    attention_masks.py  causality, padding, windows and the caller's own mask as one
    attention_sinks.py  the first tokens of a sequence, seen beside a window
    thin_attention.py   causal attention of heads a few numbers wide, on a CPU
    causal_attention.py  the same of other heads in half precision, forward and backward, for training
    turned_heads.py     QK-norm and rotation in one pass each way
    activations.py      squared ReLU in few passes
    fused.py            thin products that read the residual stream and add to it; Stamp, whether tensors changed
    segments.py         documents in the rows of a batch, mixed apart by any causal mixer
    dropout.py          dropout whose mask is a function of (seed, step, sample)
    roles.py            what a parameter is to the optimizer: modules say it, roles(model) collects it
    derivatives.py      hand-written passes beside their plain formula, for second derivatives and torch.func
    finite.py           numbers that are not finite, refused where they would spread unseen
    exporting.py        constants of modules whose model is exported as one graph of every length
    parity.py           whether an imported module computes what its original does
    uncompiled.py       a function run as written within compiled code; apart, since importing it costs the compiler

Use these in a block or a loop of your own: `roles` for optimizer groups, `HandWritten` for a pass of your own. A block
of your own needs none of them.

Which kernel when, and why: docs/standard.md; derivatives: docs/drop-in.md; hand-written passes: docs/architecture.md.
"""

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
    from blockyard.nn.exporting import ConstantHolder as ConstantHolder
    from blockyard.nn.linear import Embedding as Embedding
    from blockyard.nn.linear import Linear as Linear
    from blockyard.nn.linear import StackedLinear as StackedLinear
    from blockyard.nn.linear import weight_of as weight_of
    from blockyard.nn.norms import LayerNorm as LayerNorm
    from blockyard.nn.norms import RMSNorm as RMSNorm
    from blockyard.nn.norms import make_norm as make_norm
    from blockyard.nn.roles import Role as Role
    from blockyard.nn.roles import roles as roles
    from blockyard.nn.rotary import RotaryPositionalEmbedding as RotaryPositionalEmbedding
    from blockyard.nn.rotary import convert_layout as convert_layout
    from blockyard.nn.segments import Segments as Segments
else:
    __all__ = exports(
        __name__,
        {
            "attention": "attend",
            "attention_masks": "check_attn_mask check_padding_mask combine_masks",
            "derivatives": "HandWritten fused_or_plain hand_written must_read outlasting",
            "dropout": "Dropout",
            "exporting": "ConstantHolder",
            "linear": "Embedding Linear StackedLinear weight_of",
            "norms": "LayerNorm RMSNorm make_norm",
            "roles": "Role roles",
            "rotary": "RotaryPositionalEmbedding convert_layout",
            "segments": "Segments",
        },
    )
