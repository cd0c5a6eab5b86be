"""Complex-valued blocks: turning the input by an angle turns the output by the same angle, f(e^{ia}x) = e^{ia}f(x).

    attention   s = q kᴴ / √d;  score=real: softmax(Re s) v, which is scaled dot-product attention over pairs of real
                and imaginary parts; magnitude, phase and split use |s|, |s| and its angle, Re s and Im s apart
    FFN         W₂ (u ⊙ m·σ(m + b)), u = W₃x, m = √(|W₁x|² + ε): a real gate on a complex value
    norms       z / √(mean |z|² + ε) · γ and two others; modReLU: ReLU(|z| + b) · z / |z|

Parameters are stored as real pairs [..., 2], activations are complex64: optimizers, safetensors and casts then work.
From the complex-block document.

Files, in reading order:

    linear.py      ComplexLinear, ComplexModule, to_pairs, from_pairs: the storage, and the product in its three forms
    planes.py      the product by three real ones instead of four (Gauss)
    norms.py       the norms and ModReLU
    scores.py      the four scores; score_passes.py: those that are no dot product, in blocks with passes by hand;
                   heads.py: queries and keys normalised, scaled and turned in one pass
    attention.py   ComplexAttention ("complex")
    ffn.py         ComplexSwiGLU ("complex_swiglu")
    dual.py        DualStreamBlock: two sequences, the first attending to the second
    symmetry.py    check_equivariance and the table of `blockyard symmetry`: which options keep the symmetry, measured

The definitions in loops and float64, which every fast form is compared with: tests/complex/twin.py.

Use it where data carry an arbitrary phase that training examples do not cover, or where the output should turn with the
input. Not where the phase is known and tells something, and not for accuracy alone: real blocks are faster.

Which options keep the symmetry, costs and figures: docs/complex.md; on radio signals: docs/signals.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.complex.attention import ComplexAttention as ComplexAttention
    from blockyard.complex.dual import DualStreamBlock as DualStreamBlock
    from blockyard.complex.ffn import ComplexSwiGLU as ComplexSwiGLU
    from blockyard.complex.linear import ComplexLinear as ComplexLinear
    from blockyard.complex.linear import ComplexModule as ComplexModule
    from blockyard.complex.linear import from_pairs as from_pairs
    from blockyard.complex.linear import magnitude as magnitude
    from blockyard.complex.linear import to_pairs as to_pairs
    from blockyard.complex.norms import ComplexLayerNorm as ComplexLayerNorm
    from blockyard.complex.norms import ComplexRMSNorm as ComplexRMSNorm
    from blockyard.complex.norms import ComplexWhitenNorm as ComplexWhitenNorm
    from blockyard.complex.norms import ModReLU as ModReLU
    from blockyard.complex.norms import make_complex_norm as make_complex_norm
    from blockyard.complex.symmetry import Symmetry as Symmetry
    from blockyard.complex.symmetry import check_equivariance as check_equivariance
    from blockyard.complex.symmetry import symmetry_table as symmetry_table
else:
    __all__ = exports(
        __name__,
        {
            "attention": "ComplexAttention",
            "dual": "DualStreamBlock",
            "ffn": "ComplexSwiGLU",
            "linear": "ComplexLinear ComplexModule from_pairs magnitude to_pairs",
            "norms": "ComplexLayerNorm ComplexRMSNorm ComplexWhitenNorm ModReLU make_complex_norm",
            "symmetry": "Symmetry check_equivariance symmetry_table",
        },
    )
