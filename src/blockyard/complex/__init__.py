"""Complex-valued blocks."""

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
