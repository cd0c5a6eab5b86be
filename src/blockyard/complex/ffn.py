"""The complex SwiGLU: a real gate from magnitudes on a complex value.

The complex-block document gates with σ(|z|), which lies in [0.5, 1) and so can never close, or multiplies by a complex
gate, which adds phases. Here the gate is m·σ(m + b) with m = |W₁ x| and b real: SiLU of a magnitude, closed where b is
low, and real, so that W₂(u ⊙ gate) rotates with x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.complex.linear import (
    LONG,
    WIDE,
    ComplexLinear,
    ComplexModule,
    LinearMode,
    check_complex,
    from_pairs,
    linear_pairs,
    resolve_mode,
    to_pairs,
)
from blockyard.complex.planes import gauss_product, join_parts, split_parts
from blockyard.nn.derivatives import HandWritten, hand_written, keep
from blockyard.nn.dropout import Dropout
from blockyard.protocol.costs import Cost
from blockyard.protocol.ffn import FFN, hidden_width
from blockyard.registry.register import Traits, register_ffn

# Added to |g|²: the magnitude is then smooth at 0.
EPS = 1e-6
# Numbers of one part at a time, in the gate.
_PIECE = 2**17


@register_ffn("complex_swiglu", group="complex", traits=Traits(dtypes=("complex64", "complex128", "bfloat16")))
class ComplexSwiGLU(ComplexModule, FFN):
    """W₂ (u ⊙ m·σ(m + b)) with u = W₃ x, m = √(|W₁ x|² + ε): SwiGLU for complex vectors.

    Args:
        d_model: width of the residual stream, in complex numbers.
        d_ff: hidden width; None = 8/3 · d_model rounded up to a multiple of 64.
        bias: complex biases in the three matrices; they break the phase symmetry.
        gate_bias: value of the real b at the start; the lower, the more the gate closes for small magnitudes.
        linear: how complex products are computed: native, block, gauss (three real products instead of four, on real
            and imaginary parts held apart from the first product to the last), or auto: gauss on a CPU for 256 vectors
            or more of 64 features or more, else native, but block where the products are bfloat16.
        dropout: probability of dropping a hidden element, both of its parts at once, in training.

    Shapes: x complex [..., d_model] -> the same.
    """

    def __init__(
        self,
        d_model: int,
        *,
        d_ff: int | None = None,
        bias: bool = False,
        gate_bias: float = 0.0,
        linear: LinearMode = "auto",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        # 8/3: three matrices are then as large as the two of an FFN with 4 · d_model (arXiv 2002.05202).
        self.d_ff = hidden_width(d_ff, 64 * -(-8 * d_model // (3 * 64)))
        self.w1 = ComplexLinear(d_model, self.d_ff, bias=bias, mode=linear)
        self.w2 = ComplexLinear(self.d_ff, d_model, bias=bias, mode=linear)
        self.w3 = ComplexLinear(d_model, self.d_ff, bias=bias, mode=linear)
        self.gate_bias = nn.Parameter(torch.full((self.d_ff,), float(gate_bias)))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        check_complex(x, self.d_model)
        if self._in_parts(x):
            # From here to the last product the parts stay apart: taking them apart is what Gauss' form costs.
            real, imaginary = gauss_product(*split_parts(to_pairs(x)), (self.w1.weight, self.w3.weight))
            real, imaginary = hand_written(_GatedParts, real, imaginary, self.gate_bias)
            return from_pairs(join_parts(*gauss_product(real, imaginary, (self.w2.weight,)))).view(x.shape)
        # The gate scales u and never turns it.
        hidden = gated(self._project(to_pairs(x)), self.gate_bias)
        if self.training and self.dropout.p:
            # On complex numbers, so that one mask drops both parts.
            hidden = to_pairs(self.dropout(from_pairs(hidden)))
        return from_pairs(self.w2.pairs(hidden)).to(x.dtype)

    def _in_parts(self, x: Tensor) -> bool:
        """Return whether the three products are Gauss' and real and imaginary parts stay apart between them."""
        mode, weight = self.w1.mode, self.w1.weight
        if mode == "auto":
            large = x.numel() >= LONG * self.d_model and min(self.d_model, self.d_ff) >= WIDE
            mode = "gauss" if large else "native"
        return (
            mode == "gauss"
            and resolve_mode(mode, weight) == mode
            and x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and x.real.dtype == weight.dtype
            and all(w.is_bare for w in (self.w1, self.w2, self.w3))
            and not (self.training and self.dropout.p)
        )

    def _project(self, x: Tensor) -> Tensor:
        """Compute W₁ x and W₃ x as pairs [..., 4·d_ff], by one product where the weights alone say what they give."""
        projections = (self.w1, self.w3)
        mode = resolve_mode(self.w1.mode, self.w1.weight, x)
        if not all(p.is_bare for p in projections) or (mode == "block" and not self.training):
            return torch.cat([p.pairs(x) for p in projections], dim=-1)
        return linear_pairs(x, torch.cat([p.weight for p in projections]), mode)

    def cost(self, tokens: int) -> Cost:
        projections = (self.w1, self.w2, self.w3)
        return Cost(sum(p.numel() for p in self.parameters()), sum(p.flops(tokens) for p in projections))

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.w2.weight)


def gated(gu: Tensor, bias: Tensor) -> Tensor:
    """Compute u · m·σ(m + b) with m = √(|g|² + ε): interleaved pairs of g, then of u, [..., 4d] and b [d] -> [...,
    2d]."""
    if gu.device.type == "cpu" and not torch.compiler.is_compiling():
        return hand_written(_Gated, gu, bias)
    return _defined(gu, bias)


def _defined(gu: Tensor, bias: Tensor) -> Tensor:
    g, u = gu.chunk(2, dim=-1)
    m = _size(g)
    return _times(u, m * torch.sigmoid(m + bias)).to(gu.dtype)


def _size(pairs: Tensor) -> Tensor:
    """Compute √(|z|² + ε) of interleaved pairs."""
    # Adding every other element of the squares is four times as fast as a norm or a sum over an axis of two.
    squares = pairs * pairs
    return (squares[..., 0::2] + squares[..., 1::2] + EPS).sqrt()


def _times(pairs: Tensor, factor: Tensor) -> Tensor:
    """Return both parts of interleaved pairs [..., 2d] times a real factor [..., d]."""
    if factor.dtype in (torch.float32, torch.float64) and pairs.dtype == factor.dtype:
        # A complex times a real number: faster than broadcasting over an axis of two.
        return to_pairs(torch.view_as_complex(pairs.unflatten(-1, (-1, 2))) * factor)
    return (pairs.unflatten(-1, (-1, 2)) * factor.unsqueeze(-1)).flatten(-2)


def _pieces(rows: Tensor) -> Iterator[slice]:
    """Return slices of so many rows that a dozen passes over them find them in the processor's cache."""
    count, at_a_time = len(rows), max(1, _PIECE // rows.shape[-1])
    return (slice(first, min(first + at_a_time, count)) for first in range(0, count, at_a_time))


class _GatedParts(HandWritten):
    """`gated` on parts held apart: [rows, 2d] each -> [rows, d] each."""

    @staticmethod
    def plain(real: Tensor, imaginary: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        (g_re, u_re), (g_im, u_im) = real.chunk(2, dim=-1), imaginary.chunk(2, dim=-1)
        m = (g_re.square() + g_im.square() + EPS).sqrt()
        factor = m * torch.sigmoid(m + bias)
        return u_re * factor, u_im * factor

    @staticmethod
    def forward(ctx: Any, real: Tensor, imaginary: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        width = len(bias)
        # Sizes and gates, which the backward pass needs, then the two results.
        m, gate, out_re, out_im = (real.new_empty(len(real), width) for _ in range(4))
        for some in _pieces(real):
            (g_re, u_re), (g_im, u_im) = real[some].chunk(2, dim=-1), imaginary[some].chunk(2, dim=-1)
            size = torch.mul(g_re, g_re, out=m[some]).addcmul_(g_im, g_im).add_(EPS).sqrt_()
            factor = torch.add(size, bias, out=gate[some]).sigmoid_() * size
            torch.mul(u_re, factor, out=out_re[some])
            torch.mul(u_im, factor, out=out_im[some])
        keep(ctx, (real, imaginary, bias), (), m, gate)
        return out_re, out_im

    @staticmethod
    def backward(ctx: Any, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        real, imaginary, bias, sizes, gates = ctx.saved_tensors
        grad_real, grad_imaginary = torch.empty_like(real), torch.empty_like(imaginary)
        grad_bias = torch.zeros_like(bias)
        for some in _pieces(real):
            (g_re, u_re), (g_im, u_im) = real[some].chunk(2, dim=-1), imaginary[some].chunk(2, dim=-1)
            m, gate = sizes[some], gates[some]
            # As in _Gated, where it is said why.
            # The gate is real: its gradient is the real part of conj(u) times that of the product.
            along = (p[some] * u_re).addcmul_(q[some], u_im).mul_(gate)
            by_bias = torch.rsub(gate, 1).mul_(m).mul_(along)
            grad_bias += by_bias.sum(0)
            towards, factor = along.add_(by_bias).div_(m), gate.mul(m)
            for grad, g, from_out in ((grad_real, g_re, p), (grad_imaginary, g_im, q)):
                grad_g, grad_u = grad[some].chunk(2, dim=-1)
                torch.mul(g, towards, out=grad_g)
                torch.mul(from_out[some], factor, out=grad_u)
        return grad_real, grad_imaginary, grad_bias


class _Gated(HandWritten):
    """The gate with a hand-written backward: a third of the passes over memory that autograd would make."""

    plain = staticmethod(_defined)

    @staticmethod
    def forward(ctx: Any, gu: Tensor, bias: Tensor) -> Tensor:
        g, u = gu.chunk(2, dim=-1)
        m = _size(g)
        gate = torch.sigmoid(m + bias)
        keep(ctx, (gu, bias), (), m, gate)
        return _times(u, m * gate).to(gu.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gu, bias, m, gate = ctx.saved_tensors
        g, u = gu.chunk(2, dim=-1)
        # d/dm of m·σ(m + b) = σ + m·σ(1 − σ); the bias sees the second part.
        products = grad * u
        along = (products[..., 0::2] + products[..., 1::2]).mul_(gate)
        by_bias = torch.rsub(gate, 1).mul_(m).mul_(along)
        towards = along.add_(by_bias).div_(m)
        # g and u lie side by side in one tensor, and so do their gradients.
        grad_gu = torch.empty_like(gu)
        grad_g, grad_u = grad_gu.chunk(2, dim=-1)
        grad_g.copy_(_times(g, towards))
        grad_u.copy_(_times(grad, m * gate))
        return grad_gu, by_bias.flatten(0, -2).sum(0).to(bias.dtype)
