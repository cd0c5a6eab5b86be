"""Mixture of experts: n FFNs of one kind stand side by side, and a router sends every token to k of them.

    y = scale · Σⱼ gⱼ · expertⱼ(x) over the k chosen, plus shared experts, plus σ(w·x) times gated ones
    gⱼ from softmax or sigmoid of W x, renormalised over the chosen or not

Parameters grow with n, the work of a token with k. (Shazeer et al., arXiv 1701.06538; the complex-block document.)

Files, in reading order:

    mixture.py    MoE ("moe"): options, the experts by name of any registered FFN, auxiliary losses and loads
    router.py     which k experts, with which weights; balance by loss or by a bias; the z-loss
    dispatch.py   the choices sorted by expert, and the way back; capacity
    experts.py    a bank of experts: stacked matrices, or modules of their own
    grouped.py    many linear maps at once, by segments, grouped or padded products
    weights.py    from_hf and to_hf: the weights of transformers' mixtures, there and back
    states.py     the same for the mixtures of a whole model, whose options its configuration tells
    settings.py   what those modules say of themselves beside their weights: read, or refused by name

The definition in loops and float64, which every kernel is compared with: tests/moe/twin.py.

Use it when time per token is short and memory is not: more parameters at about the time of a smaller FFN, as long as
k · tokens / n is well over 100. Not where memory is the limit: every expert has its weights and optimizer state.

Definition, kernels, balance and figures: docs/moe.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.moe.mixture import MoE as MoE
    from blockyard.moe.weights import from_hf as from_hf
    from blockyard.moe.weights import to_hf as to_hf
else:
    __all__ = exports(
        __name__,
        {
            "mixture": "MoE",
            "weights": "from_hf to_hf",
        },
    )
