"""Many linear maps at once: rows sorted by expert, each expert's rows through its own matrix.

An FFN whose matrices are `Linear` layers becomes a bank of experts when every one of them is replaced by a
`GroupedLinear`: activations, gates and dropout act on single rows and need not know. Which rows belong to whom is said
by a `Rows`, which also chooses how the products are computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn.derivatives import HandWritten, differentiate, hand_written, keep, needs_plain, transformed
from blockyard.nn.linear import Linear
from blockyard.nn.products import product, suits, weight_gradient
from blockyard.nn.roles import Role

Kernel = Literal["segment", "grouped", "padded"]
# What F.grouped_mm computes in; others go segment by segment.
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Elements from which on a matrix is worth copying the rows of a product for, in bf16 on a CPU.
LARGE_MATRIX = 1 << 20
# The rows of an expert that its faster products take, a multiple of this; the rest is multiplied apart.
FAST_ROWS = 32
# Row strides must be multiples of this many bytes for it.
GROUPED_ALIGNMENT = 16


@dataclass(frozen=True)
class Rows:
    """Which rows belong to which expert.

    Args:
        kernel: `segment` multiplies one expert's rows after the other, `grouped` leaves that to F.grouped_mm; for both
            the rows are [N, d], sorted by expert. `padded` is one batched product of rows [E, C, d].
        ends: [E] end of each expert's rows (int64); rows after the last end belong to nobody and come out as 0.
        sizes: the number of rows per expert as integers; None while compiling, when they are not known.
        whole: every row belongs to an expert.
    """

    kernel: Kernel
    ends: Tensor
    sizes: tuple[int, ...] | None = None
    whole: bool = True

    def experts(self, count: int) -> Tensor:
        """Return [count] the expert of each row; rows of nobody count as the last one's."""
        row = torch.arange(count, device=self.ends.device)
        return torch.searchsorted(self.ends, row, right=True).clamp_(max=self.ends.shape[0] - 1)


class GroupedLinear(nn.Module):
    """One `Linear` per expert, weights [E, d_out, d_in] and biases [E, d_out].

    `rows` must be set before the call: whose row is which. `only` picks one expert for all rows instead.

    Args:
        members: the experts' own layers, whose values are taken over.

    Shapes: x [N, d_in] -> [N, d_out], padded [E, C, d_in] -> [E, C, d_out].
    """

    def __init__(self, members: Sequence[Linear]) -> None:
        super().__init__()
        # One parameter for all experts: one step of the optimizer, one gradient, one message between ranks.
        self.weight = nn.Parameter(torch.stack([m.weight.detach() for m in members]))
        biases = [m.bias.detach() for m in members if m.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None
        self.rows: Rows | None = None
        self.only: tuple[Tensor, Tensor | None] | None = None

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("matrix"), "bias": Role("vector")}

    def parts(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return every expert's weight and bias. One unbind for all: `weight[e]` would cost a gradient of full size
        each."""
        weights = self.weight.unbind(0)
        biases: Sequence[Tensor | None] = self.bias.unbind(0) if self.bias is not None else [None] * len(weights)
        return list(zip(weights, biases))

    def forward(self, x: Tensor) -> Tensor:
        if self.only is not None:
            return F.linear(x, *self.only)
        assert self.rows is not None, "a GroupedLinear is run by its bank of experts"
        weight: Tensor = self.weight
        if torch.is_autocast_enabled(x.device.type) and x.dtype not in (torch.float64, torch.complex128):
            # Here, since autocast leaves products alone that write into a buffer.
            dtype = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(dtype), weight.to(dtype)
        y = grouped_linear(x, weight, self.rows)
        if self.bias is None:
            return y
        bias = self.bias.to(y.dtype)
        return y + (bias[:, None] if y.ndim == 3 else bias.index_select(0, self.rows.experts(y.shape[0])))

    def extra_repr(self) -> str:
        experts, d_out, d_in = self.weight.shape
        return f"{experts} x ({d_in} -> {d_out}{', bias' if self.bias is not None else ''})"


def grouped_linear(x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
    """Return each expert's rows of x times its matrix.

    Args:
        x: [N, d_in], sorted by expert, or padded [E, C, d_in].
        weight: [E, d_out, d_in].
        rows: whose rows they are.
    """
    if rows.kernel == "padded":
        return hand_written(_Batched, x, weight)
    if rows.kernel == "grouped" and groupable(x, weight) and not transformed():
        # What it leaves in rows of nobody is undefined, in the result and in the gradient of x.
        y = F.grouped_mm(_owned(x, rows), weight.transpose(1, 2), offs=rows.ends.to(torch.int32))
        return _owned(y, rows)
    if rows.sizes is None and not transformed():
        return torch.ops.blockyard.segment_linear(x, weight, rows.ends)
    return hand_written(_Segments, x, weight, rows.sizes or tuple(_sizes_of(rows.ends)))


def groupable(x: Tensor, weight: Tensor) -> bool:
    """Return whether F.grouped_mm takes these operands."""
    if not hasattr(F, "grouped_mm"):
        # Older versions of torch within our range may have no public one.
        return False
    aligned = all(size * x.element_size() % GROUPED_ALIGNMENT == 0 for size in weight.shape[1:])
    return x.dtype in GROUPED_DTYPES and x.dtype == weight.dtype and aligned and x.shape[0] > 0


def _owned(x: Tensor, rows: Rows) -> Tensor:
    """Return x with 0 in the rows of nobody."""
    if rows.whole:
        return x
    owned = torch.arange(x.shape[0], device=x.device) < rows.ends[-1]
    return torch.where(owned[:, None], x, torch.zeros_like(x))


# The segments, forward and backward, as plain functions of integers.


def _times(x: Tensor, matrices: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return each segment of x [N, a] times its matrix, [E, a, b] -> [N, b]."""
    out = x.new_empty(x.shape[0], matrices.shape[2])
    start = 0
    for e, size in enumerate(sizes):
        if size:
            # Each product writes its part of one buffer: joining them would be one more pass.
            _multiply(x[start:], matrices[e], size, out[start:])
        start += size
    # Rows of nobody, and the buffer comes uninitialised.
    out[start:] = 0
    return out


def _multiply(x: Tensor, matrix: Tensor, size: int, out: Tensor) -> None:
    """Write the first rows of x, `size` of them, times a matrix [a, b]; rows behind them are overwritten or not."""
    # What is too much belongs to the next expert, whose product comes later.
    whole = -(-size // FAST_ROWS) * FAST_ROWS
    if whole > len(x):
        whole = size // FAST_ROWS * FAST_ROWS
    if not suits(whole, *matrix.shape, x, matrix):
        torch.mm(x[:size], matrix, out=out[:size])
        return
    out[:whole] = product(x[:whole], matrix.mT)
    if whole < size:
        torch.mm(x[whole:size], matrix, out=out[whole:size])


def _multiply_outer(dy: Tensor, x: Tensor, out: Tensor) -> None:
    """Write dyᵀ x̄ [d_out, d_in], of dy [n, d_out] and x [n, d_in]."""
    whole = len(x) // FAST_ROWS * FAST_ROWS
    if not suits(whole, dy.shape[1], x.shape[1], dy, x, turned=True):
        torch.mm(dy.t(), x.conj(), out=out)
        return
    out.copy_(weight_gradient(dy[:whole], x[:whole]))
    if whole < len(x):
        out.addmm_(dy[whole:].t(), x[whole:])


def _outer(dy: Tensor, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return each segment's dyᵀ x̄: the gradients of the matrices, [E, d_out, d_in]."""
    out = x.new_empty(len(sizes), dy.shape[1], x.shape[1])
    start = 0
    for e, size in enumerate(sizes):
        rows = slice(start, start + size)
        if size:
            _multiply_outer(dy[rows], x[rows], out[e])
        else:
            # An expert that saw no token has a gradient of 0, since its matrix is part of one parameter.
            out[e] = 0
        start += size
    return out


class _Segments(HandWritten):
    """One product per segment into one buffer, and one gradient buffer for all matrices."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, sizes: Sequence[int]) -> Tensor:
        *segments, rest = x.split([*sizes, x.shape[0] - sum(sizes)])
        # Expert by expert, as the definition says it.
        done = [segment @ matrix.mT for segment, matrix in zip(segments, weight.unbind(0))]
        return torch.cat([*done, x.new_zeros(rest.shape[0], weight.shape[1])])

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
        keep(ctx, (x, weight), (sizes,))
        return _times(x, weight.transpose(1, 2), sizes)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (sizes,) = ctx.settings
        dx = _times(dy, weight.conj(), sizes) if ctx.needs_input_grad[0] else None
        dw = _outer(dy, x, sizes) if ctx.needs_input_grad[1] else None
        return dx, dw, None


class _Batched(HandWritten):
    """x [E, C, d_in] times weight [E, d_out, d_in], as one batched product.

    In bf16 on a CPU every product is given the layouts that oneDNN multiplies fastest, at the price of copies: it
    rearranges the right factor at every call, so that should be the small one, and a transposed left factor costs as
    much again. The result then has its rows last. Measured in docs/moe.md.
    """

    differentiable = True

    @staticmethod
    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        if _rows_last(x):
            return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)
        return torch.bmm(x, weight.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        dx = dw = None
        if _rows_last(x) and weight[0].numel() >= LARGE_MATRIX:
            # Copies of rows are small beside such matrices.
            dw = torch.bmm(dy.transpose(1, 2).contiguous(), x.contiguous()) if ctx.needs_input_grad[1] else None
            dy = dy.contiguous()
        elif ctx.needs_input_grad[1]:
            dw = torch.bmm(dy.transpose(1, 2), x.conj())
        if not ctx.needs_input_grad[0]:
            return dx, dw
        # The gradient is laid out as x, so that what stands between two products is not computed on mixed layouts.
        if x.is_contiguous():
            dx = torch.bmm(dy, weight.conj())
        elif weight[0].numel() >= LARGE_MATRIX:
            dx = torch.bmm(dy, weight.conj()).transpose(1, 2).contiguous().transpose(1, 2)
        else:
            dx = torch.bmm(weight.conj().transpose(1, 2), dy.transpose(1, 2)).transpose(1, 2)
        return dx, dw


def _rows_last(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


# The same segments as an operator, for compiled code: how long they are is known only when it runs.


def _sizes_of(ends: Tensor) -> list[int]:
    return torch.diff(ends, prepend=ends.new_zeros(1)).tolist()


@torch.library.custom_op("blockyard::segment_linear", mutates_args=())
def _segment_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return _times(x, weight.transpose(1, 2), _sizes_of(ends))


@torch.library.custom_op("blockyard::segment_linear_backward", mutates_args=())
def _segment_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    sizes = _sizes_of(ends)
    return _times(dy, weight.conj(), sizes), _outer(dy, x, sizes)


@_segment_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_segment_linear_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, ends = ctx.saved_tensors
    if needs_plain():
        sizes = _sizes_of(ends)
        return (*differentiate(_Segments.plain, (x, weight), (sizes,), ctx.needs_input_grad[:2], (dy,)), None)
    return (*torch.ops.blockyard.segment_linear_backward(dy.contiguous(), x, weight, ends), None)


_segment_linear.register_autograd(_backward, setup_context=_save)
