"""Complex vectors as torch computes fastest with them: activations complex, parameters stored as real pairs.

A complex tensor [..., d] and the real tensor [..., 2d] of its interleaved parts are the same memory, so both views are
used as suits an operation (`to_pairs`, `from_pairs`). Parameters are real, [..., 2]: fused optimizers, safetensors,
`.to(torch.bfloat16)` and sharding work on them, none of which they do on native complex parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.complex.planes import gauss_product, join_parts, split_parts
from blockyard.errors import InputError, at_least, one_of
from blockyard.nn.derivatives import transformed
from blockyard.nn.products import suits
from blockyard.nn.roles import Role

LinearMode = Literal["auto", "native", "block", "gauss"]
# Rows and features from which on three products on parts held apart are faster than four (two cores, x86 with AMX).
LONG, WIDE = 256, 64
COMPLEX_DTYPES = (torch.complex64, torch.complex128)


def to_pairs(z: Tensor) -> Tensor:
    """Return complex [..., d] -> real [..., 2d], real and imaginary parts side by side; the same memory where it can
    be."""
    return torch.view_as_real(z.resolve_conj()).flatten(-2)


def from_pairs(pairs: Tensor) -> Tensor:
    """Return real [..., 2d] -> complex [..., d]; complex64 for bfloat16 and float16, which have no complex type."""
    if pairs.dtype not in (torch.float32, torch.float64):
        pairs = pairs.float()
    return torch.view_as_complex(pairs.unflatten(-1, (-1, 2)).contiguous())


def times_i(pairs: Tensor) -> Tensor:
    """Compute i · z of interleaved pairs [..., 2d]: (a, b) -> (−b, a)."""
    a, b = pairs[..., 0::2], pairs[..., 1::2]
    return torch.stack([-b, a], dim=-1).flatten(-2)


def magnitude(z: Tensor, eps: float) -> Tensor:
    """Compute √(|z|² + eps) of a complex tensor, real; smooth, so that gradients at z = 0 are 0 and not NaN."""
    real = torch.view_as_real(z.resolve_conj())
    return (real.square().sum(-1) + eps).sqrt()


def check_complex(x: Tensor, width: int, name: str = "x") -> None:
    """Raise InputError unless x is complex64 or complex128 and its last axis has the width."""
    if x.dtype not in COMPLEX_DTYPES:
        hint = "; torch.view_as_complex joins real and imaginary parts" if x.is_floating_point() else ""
        raise InputError(f"{name} has dtype {x.dtype}, expected complex64 or complex128{hint}")
    if x.ndim < 1 or x.shape[-1] != width:
        raise InputError(f"{name} has shape {tuple(x.shape)}, expected [..., {width}]")


class ComplexModule(nn.Module):
    """A module whose data are complex. It refuses casts that would lose an imaginary part."""

    complex_valued = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Every cast, `.to`, `.half()` and `.float()` among them, ends here. It is tried before anything is changed.
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            cast = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            if tensor.is_complex() and not cast.is_complex():
                raise InputError(f"casting {name} from {tensor.dtype} to {cast.dtype} would lose its imaginary part")
            if cast.is_complex() and not tensor.is_complex():
                raise InputError(
                    f"casting {name} to {cast.dtype}: parameters are real pairs here; "
                    "use .to(torch.float32), .to(torch.float64) or .to(torch.bfloat16)"
                )
        return super()._apply(fn, recurse)


class ComplexLinear(ComplexModule):
    """y = W x (+ b) over the complex numbers.

    Args:
        d_in: width of the input, in complex numbers.
        d_out: width of the output.
        bias: add a complex bias, zero at the start. It breaks the phase symmetry: W(e^{ia} x) + b ≠ e^{ia}(W x + b).
        mode: native (one complex product), block (one real product with [[A, −B], [B, A]]), gauss (three real products
            instead of four, float32 and float64 only), or auto: native, but block where the products are bfloat16, and
            gauss for many wide vectors where real products have the faster library (`nn/products.py`), which has no
            complex ones.

    Shapes: x complex [..., d_in] -> complex [..., d_out]. `pairs` does the same on interleaved reals [..., 2·d_in].
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, mode: LinearMode = "auto") -> None:
        super().__init__()
        at_least(1, d_in=d_in, d_out=d_out)
        one_of(("auto", "native", "block", "gauss"), mode=mode)
        self.d_in, self.d_out, self.mode = d_in, d_out, mode
        self.weight = nn.Parameter(torch.empty(d_out, d_in, 2))
        self.bias = nn.Parameter(torch.zeros(d_out, 2)) if bias else None
        self._assembled: tuple[Any, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights with E|w|² = 2 / (d_in + d_out), as a real matrix has: each part carries half of it, cut at
        three deviations."""
        # Two parts add up to the variance of one real entry.
        std = math.sqrt(1.0 / (self.d_in + self.d_out))
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("matrix", axes=(-3, -2), pairs=True), "bias": Role("vector")}

    def forward(self, x: Tensor) -> Tensor:
        check_complex(x, self.d_in)
        return from_pairs(self.pairs(to_pairs(x)))

    def pairs(self, x: Tensor) -> Tensor:
        """Return interleaved reals [..., 2·d_in] -> [..., 2·d_out], in the type that the products are computed in."""
        mode = resolve_mode(self.mode, self.weight, x)
        traced = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed()
        if mode == "block" and not traced:
            out = F.linear(x.to(self.weight.dtype), self._block_weight())
        else:
            out = linear_pairs(x, self.weight, mode)
        return out if self.bias is None else out + self.bias.flatten()

    def _block_weight(self) -> Tensor:
        """Return the real matrix, kept between calls: building it costs more than multiplying a few vectors by it."""
        # A change in place raises the version, another tensor has another address.
        key = (self.weight.data_ptr(), self.weight._version, self.weight.dtype)
        if self._assembled is None or self._assembled[0] != key:
            self._assembled = (key, real_block(self.weight).detach())
        return self._assembled[1]

    @property
    def is_bare(self) -> bool:
        """Whether nothing but the weight says what it gives, so that several may be computed as one."""
        return (
            type(self) is ComplexLinear and self.bias is None and not (self._forward_hooks or self._forward_pre_hooks)
        )

    # The kept matrix is twice as large as the weights, and training changes these at every step.
    def train(self, mode: bool = True) -> ComplexLinear:
        self._assembled = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_assembled": None}

    def flops(self, rows: int) -> int:
        """Return real operations for so many vectors: four real products of the matrix, three in Gauss' form."""
        return 2 * rows * self.d_in * self.d_out * (3 if self.mode == "gauss" else 4)

    def extra_repr(self) -> str:
        return f"{self.d_in} -> {self.d_out}, mode={self.mode}{', bias' if self.bias is not None else ''}"


def resolve_mode(mode: LinearMode, weight: Tensor, x: Tensor | None = None) -> LinearMode:
    """Return which form is computed: there is no complex product in half precision, so there it is always the real
    block.

    Args:
        mode: what is asked for.
        weight: pairs [d_out, d_in, 2].
        x: interleaved reals that it will be multiplied with, where that may decide.
    """
    autocast = torch.is_autocast_enabled(weight.device.type) and weight.dtype == torch.float32
    half = autocast or weight.dtype not in (torch.float32, torch.float64)
    if half:
        return "block"
    if mode != "auto":
        return mode
    if x is None or torch.compiler.is_compiling() or min(weight.shape[:2]) < WIDE:
        return "native"
    rows, (d_out, d_in) = x.numel() // max(1, x.shape[-1]), weight.shape[:2]
    return "gauss" if suits(rows, d_in, d_out, x, weight) and rows >= LONG else "native"


def linear_pairs(x: Tensor, weight: Tensor, mode: LinearMode) -> Tensor:
    """Compute W x for interleaved reals x [..., 2·d_in] and W as pairs [d_out, d_in, 2] -> [..., 2·d_out]."""
    if mode == "block":
        return F.linear(x.to(weight.dtype), real_block(weight))
    x = x.to(weight.dtype)
    if mode == "gauss":
        return _gauss(x, weight)
    # The same memory seen as complex numbers; torch's product does the four real ones inside.
    product = F.linear(torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()), torch.view_as_complex(weight))
    return torch.view_as_real(product).flatten(-2)


def real_block(weight: Tensor) -> Tensor:
    """Return pairs [d_out, d_in, 2] -> the real matrix [2·d_out, 2·d_in] that acts alike on interleaved parts."""
    a, b = weight.unbind(-1)
    # [[a, −b], [b, a]] for every entry, interleaved as the parts of the vectors are.
    rows = torch.stack([torch.stack([a, -b], dim=-1), torch.stack([b, a], dim=-1)], dim=1)
    return rows.view(2 * weight.shape[0], 2 * weight.shape[1])


def _gauss(x: Tensor, weight: Tensor) -> Tensor:
    """Return (A + iB)(u + iv) by three products: A(u + v) − (A + B)v and A(u + v) + (B − A)u."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return join_parts(*gauss_product(*split_parts(x), (weight,))).view(*x.shape[:-1], -1)
    a, b = weight.unbind(-1)
    u, v = x.unflatten(-1, (-1, 2)).unbind(-1)
    both = F.linear(u + v, a)
    return torch.stack([both - F.linear(v, a + b), both + F.linear(u, b - a)], dim=-1).flatten(-2)
