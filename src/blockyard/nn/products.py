"""Matrix products in float32 by the faster of the two libraries that torch has on a CPU.

torch multiplies float32 matrices by MKL, which keeps its widest kernels for Intel's processors; oneDNN, which torch
takes for bfloat16, asks the processor what it has. On other processors with AVX-512 it is up to twice as fast (AMD EPYC
Zen 5, one thread: 107 and 235 GFLOP/s); on those that compute such vectors in halves (Zen 4: 92 and 103) large products
by rows are. Both are float32 throughout, and round differently. Where torch's own way is as fast, and for whatever
watches operations, a product is torch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.machine.processor import family, vendor_name
from blockyard.nn.derivatives import HandWritten, hand_written, transformed

# Smaller products do not repay the longer call: at 2 MFLOP both take 20 microseconds, at 4 MKL 40 and oneDNN 25. Where
# vectors are computed in halves oneDNN takes 1.1 to 1.3 of MKL's time up to 8 MFLOP, the same at 16, .8 to .95 above.
_FROM_FLOPS, _FROM_FLOPS_IN_HALVES = 2**22, 2**24
# Kernels are built for every shape and kept, half a megabyte each: rows that come in any number are not for them.
_ROWS_BY = 32
_DENSE = (Tensor, nn.Parameter)
# How many modes watch operations. No public function tells: a version of torch that has this one no more leaves it open
# whether somebody does, and all products are then torch's.
_watchers: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)


def _switched_on() -> bool:
    return bool(torch.backends.mkldnn.enabled)


# What the public flag reads, in a seventh of the time: it is asked for every product.
_allowed: Callable[[], bool] = getattr(torch._C, "_get_mkldnn_enabled", _switched_on)


@cache
def _other_library() -> Any:
    """Return oneDNN's product where it is the faster one on this machine, otherwise None."""
    present = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not present or torch.backends.cpu.get_cpu_capability() != "AVX512" or vendor_name() in (None, "GenuineIntel"):
        return None
    # No public function reaches it in float32: where a version of torch has it no more, products are torch's.
    operation: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    try:
        one = torch.ones(1, 1)
        with torch.no_grad():
            tried = operation(one, one, None, "none", [], ""), operation.binary(one, one, one, None, "add")
        return operation if float(sum(tried)) == 3.0 else None
    except (RuntimeError, TypeError, AttributeError):
        return None


@cache
def in_halves() -> bool:
    """Return whether the processor has AVX-512 and computes it half a vector at a time."""
    number = family()
    return vendor_name() == "AuthenticAMD" and number is not None and number < 26


def suits(rows: int, d_in: int, d_out: int, *matrices: Tensor, turned: bool = False) -> bool:
    """Return whether a product [rows, d_in] x [d_in, d_out] of plain float32 matrices should be oneDNN's.

    Args:
        rows: number of vectors.
        d_in: their width.
        d_out: width of the results.
        matrices: that are multiplied or added.
        turned: the left factor lies transposed, as gradients do in a weight's gradient.
    """
    # A compiler has products of its own, and what counts or fakes operations knows torch's alone. Asked first: a size
    # that is compared while a graph is made holds for all of the graph's inputs from then on.
    if torch.compiler.is_compiling() or rows % _ROWS_BY:
        return False
    if _watchers is None or _watchers() or _other_library() is None:
        return False
    # oneDNN brings a transposed left factor into rows, at up to twice MKL's time where its kernels are no faster.
    if turned and in_halves():
        return False
    if 2 * rows * d_in * d_out < (_FROM_FLOPS_IN_HALVES if in_halves() else _FROM_FLOPS):
        return False
    for matrix in matrices:
        if matrix.dtype != torch.float32 or matrix.device.type != "cpu" or type(matrix) not in _DENSE:
            return False
    return not (
        torch.is_autocast_enabled("cpu")
        # Whoever allows float32 products to be rounded has them rounded.
        or torch.get_float32_matmul_precision() != "highest"
        or not _allowed()
        or transformed()
    )


def product(
    a: Tensor, b: Tensor, added: Tensor | None = None, *, owned: bool = False, rows: int | None = None
) -> Tensor:
    """Compute a bᵀ (+ added); by the faster library where no gradients are recorded, as in passes written by hand.

    Args:
        a: [m, k], in any layout.
        b: [n, k], in any layout.
        added: [m, n].
        owned: what is added is the caller's own, and may be overwritten.
        rows: how many vectors there are; m, but k in a weight's gradient.
    """
    rows = a.shape[0] if rows is None else rows
    given = (a, b) if added is None else (a, b, added)
    turned = a.stride(1) != 1 and a.shape[1] > 1
    if torch.is_grad_enabled() or not suits(rows, a.numel() // (rows or 1), b.shape[0], *given, turned=turned):
        if added is None:
            return torch.mm(a, b.mT)
        # In place a pass less: torch's own product copies first what it adds to.
        return torch.addmm(added, a, b.mT, out=added) if owned else torch.addmm(added, a, b.mT)
    other, b = _other_library(), _whole(b)
    return other(a, b, None, "none", [], "") if added is None else other.binary(a, added, b, None, "add")


def _whole(matrix: Tensor) -> Tensor:
    """Return a right factor that oneDNN has kernels for."""
    # A part of wider rows, either way up, it multiplies a thousand times slower (512 × 512 × 512: 2.7 s, not 1.5 ms);
    # a copy costs a twentieth of what is won.
    return matrix if matrix.is_contiguous() or matrix.mT.is_contiguous() else matrix.contiguous()


def weight_gradient(grads: Tensor, rows: Tensor) -> Tensor:
    """Compute gradsᵀ rows [d_out, d_in], the gradient of W in rows Wᵀ.

    Args:
        grads: [n, d_out].
        rows: [n, d_in].
    """
    (n, d_out), d_in = grads.shape, rows.shape[1]
    # oneDNN brings its left factor into rows: the thinner one, if turning the result costs less than is saved.
    if d_in * (n + d_out) < n * d_out and not in_halves():
        return product(rows.mT, grads.mT, rows=n).mT
    return product(grads.mT, rows.mT, rows=n)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x Wᵀ (+ b) as `F.linear` does.

    Args:
        x: [..., d_in].
        weight: W, [d_out, d_in].
        bias: b, [d_out].
    """
    if not _fits(x, weight, bias):
        return F.linear(x, weight, bias)
    return hand_written(_Linear, x, weight, bias) if torch.is_grad_enabled() else _by_the_other(x, weight, bias)


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # Asked first: a tracer's stand-ins have no sizes, nor do quantised or sharded tensors multiply as they say.
    if torch.compiler.is_compiling() or type(x) not in _DENSE or type(weight) not in _DENSE:
        return False
    if x.ndim < 2 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        return False
    d_out, d_in = weight.shape
    rows = x.numel() // (d_in or 1)
    # Said here, too: a token that is written asks a hundred times.
    return not rows % _ROWS_BY and suits(rows, d_in, d_out, *((x, weight) if bias is None else (x, weight, bias)))


def _by_the_other(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _other_library()(x, _whole(weight), bias, "none", [], "")


class _Linear(HandWritten):
    """x Wᵀ + b, whose gradients are products of the same library."""

    differentiable = True
    plain = staticmethod(F.linear)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Asked once more: a transform may hand over other tensors than the caller's.
        return _by_the_other(x, weight, bias) if _fits(x, weight, bias) else F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grads, rows = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            product(grads, weight.mT).view(x.shape) if wants_x else None,
            weight_gradient(grads, rows) if wants_weight else None,
            grads.sum(0) if wants_bias else None,
        )
