"""Causal convolution with a kernel per chunk of time, as one operation.

    y_t = Σ_{l=0}^{min(t, L−1)} h_i[l] · v_{t−l}   for every t of chunk i

Overlap-save (Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7) with kernels cut into parts of a
chunk's length: each chunk of values is transformed once, each chunk of outputs is a sum of products over the parts,
transformed back once. The parts' spectra are fixed sums over the anchors, so no kernel is ever made or transformed. As
in `spectral_filter`, blocks of channels stay in the cache, and the backward pass computes spectra again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from blockyard.nn.derivatives import differentiate_all, needs_plain, outlasting, transformed
from blockyard.spectral.basis import Interpolation, Spacing, kernel_basis, smooth_length
from blockyard.spectral.filter import bin_weights, blocks, fft_flops


@lru_cache(maxsize=32)
def _parts(
    buckets: int,
    window: int,
    chunk: int,
    interpolation: Interpolation,
    spacing: Spacing,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return spectra of the parts of unit anchors' kernels, [parts, 2·buckets, 2·bins] (complex as real pairs)."""
    basis = kernel_basis(buckets, window, interpolation, spacing, torch.float64, torch.device("cpu"))
    with outlasting():
        # Parts of S taps, filled up to two chunks: what a part makes of a chunk then fits without wrapping around.
        basis = F.pad(basis, (0, -window % chunk)).unflatten(-1, (-1, chunk)).transpose(0, 1)
        spectra = torch.view_as_real(torch.fft.rfft(basis, smooth_length(2 * chunk))).flatten(-2)
        return spectra.to(dtype=dtype, device=device).contiguous()


def chunk_convolution(
    v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> Tensor:
    """Convolve every channel with the kernel of the chunk that the output lies in.

    Args:
        v: values [B, D, T], from the beginning of a chunk; float32 or float64.
        anchors: [B, chunks, M, 2K] of the chunks from `first` to the last (which may be partial), real parts first.
        first: number of leading chunks that are only looked back at; they get no output.
        window: kernel length L.
        chunk: chunk length S.
        interpolation, spacing: of the anchors, see `blockyard.spectral.basis.anchor_matrix`.

    Returns: [B, D, T − first·S].
    """
    operation = _defined if transformed() else _convolve
    return operation(v, anchors, first, window, chunk, interpolation, spacing)


def _defined(
    v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> Tensor:
    plan = _Plan(v, anchors, first, window, chunk, interpolation, spacing)
    return plan.joined(plan.convolved(plan.rows(v), plan.gates(anchors)))


@torch.library.custom_op("blockyard::chunk_convolution", mutates_args=())
def _convolve(
    v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> Tensor:
    plan = _Plan(v, anchors, first, window, chunk, interpolation, spacing)
    rows, gates = plan.rows(v), plan.gates(anchors)
    out = torch.empty(*rows.shape[:2], plan.outputs, chunk, dtype=v.dtype, device=v.device)
    for block in plan.blocks():
        out[block] = plan.convolved(rows[block], gates[:, block].contiguous())
    return plan.joined(out)


@torch.library.custom_op("blockyard::chunk_convolution_backward", mutates_args=())
def _backward(
    grad: Tensor, v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor]:
    plan = _Plan(v, anchors, first, window, chunk, interpolation, spacing)
    rows, gates = plan.rows(v), plan.gates(anchors)
    slopes = grad.reshape(*rows.shape[:2], -1)
    grad_rows, grad_gates = torch.empty_like(rows), torch.zeros_like(gates)
    weights = bin_weights(plan.n, v)
    for block in plan.blocks():
        spectra, chosen = plan.spectra(rows[block]), gates[:, block].contiguous()
        slope = F.pad(slopes[block], (0, plan.outputs * chunk - slopes.shape[-1])).unflatten(-1, (-1, chunk))
        # Only the last S of n outputs were kept, so the others have no gradient.
        slope = torch.fft.rfft(F.pad(slope, (plan.n - chunk, 0)))
        grad_spectra = torch.zeros_like(spectra)
        spectra.conj_physical_()
        # Conjugates: what was a convolution forward is a correlation backward.
        for part, to, source in plan.pairs():
            kernel = plan.kernel(chosen[to], part).conj_physical_()
            grad_spectra[:, :, source].addcmul_(kernel, slope[:, :, to])
            grad_kernel = (spectra[:, :, source] * slope[:, :, to]).sum(1).mul_(weights).transpose(0, 1)
            grad_gates[to, block] += torch.view_as_real(grad_kernel).flatten(-2) @ plan.parts[part].T
        # A chunk was read as itself and as its successor's past, so gradients overlap and add up.
        pieces = torch.fft.irfft(grad_spectra, plan.n)
        grad_rows[block] = plan.overlap_add(pieces)
    return grad_rows.view(v.shape), plan.ungated(grad_gates)


class _Plan:
    """Sizes and steps that forward and backward share. M kernels serve c = D / M channels each."""

    def __init__(
        self, v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
    ) -> None:
        self.batch, self.channels, self.length = v.shape
        self.kernels, self.buckets = anchors.shape[2], anchors.shape[3] // 2
        self.first, self.chunk, self.n = first, chunk, smooth_length(2 * chunk)
        self.chunks = -(-self.length // chunk)
        self.outputs = self.chunks - first
        settings: Any = (interpolation, spacing, v.dtype, v.device)
        self.parts = _parts(self.buckets, window, chunk, *settings)
        self.device = v.device
        self.bytes_per_row = 2 * self.n * self.chunks * v.element_size() * self.channels // self.kernels

    def blocks(self) -> list[slice]:
        return blocks(self.batch * self.kernels, self.bytes_per_row, self.device)

    def rows(self, v: Tensor) -> Tensor:
        """Compute [B, D, T] -> [B·M, c, T]."""
        return v.contiguous().view(self.batch * self.kernels, -1, self.length)

    def gates(self, anchors: Tensor) -> Tensor:
        """Compute [B, chunks, M, 2K] -> [chunks, B·M, 2K]."""
        return anchors.transpose(0, 1).reshape(self.outputs, -1, 2 * self.buckets)

    def ungated(self, gates: Tensor) -> Tensor:
        """Compute [chunks, B·M, 2K] -> [B, chunks, M, 2K]."""
        return gates.unflatten(1, (self.batch, self.kernels)).transpose(0, 1).contiguous()

    def spectra(self, rows: Tensor) -> Tensor:
        """Return the spectra of every chunk together with what precedes it, [b, c, chunks, bins]."""
        rest = self.chunks * self.chunk - self.length
        if self.n != 2 * self.chunk:
            return torch.fft.rfft(F.pad(rows, (self.n - self.chunk, rest)).unfold(-1, self.n, self.chunk))
        # The same with half the copying, which at a thousand tokens is a tenth of everything.
        chunks = (F.pad(rows, (0, rest)) if rest else rows).unflatten(-1, (-1, self.chunk))
        both = chunks.new_empty(*chunks.shape[:3], 2, self.chunk)
        # Each chunk behind its predecessor: the values that a part of S taps can reach.
        both[:, :, :, 1] = chunks
        both[:, :, 1:, 0] = chunks[:, :, :-1]
        both[:, :, 0, 0] = 0
        return torch.fft.rfft(both.flatten(-2))

    def pairs(self, begin: int = 0) -> list[tuple[int, slice, slice]]:
        """Return (part of the kernel, output chunks that use it, chunks of values that they use it on), from part
        `begin`."""
        found = []
        for part in range(begin, min(self.parts.shape[0], self.chunks)):
            start = max(self.first, part)
            found.append((part, slice(start - self.first, None), slice(start - part, self.chunks - part)))
        return found

    def kernel(self, anchors: Tensor, part: int) -> Tensor:
        """Return spectra of a part of the kernels of anchors [chunks, b, 2K]: [b, 1, chunks, bins]."""
        spectra = torch.view_as_complex((anchors @ self.parts[part]).unflatten(-1, (-1, 2)))
        return spectra.transpose(0, 1)[:, None]

    def convolved(self, rows: Tensor, anchors: Tensor) -> Tensor:
        """Return values [b, c, T] and gates [chunks, b, 2K] to outputs [b, c, outputs, S]."""
        spectra = self.spectra(rows)
        # Part p of a kernel meets the values p chunks back; their products add up before one transform back.
        total = self.kernel(anchors, 0) * spectra[:, :, self.first :]
        for part, to, source in self.pairs(1):
            total[:, :, to].addcmul_(self.kernel(anchors[to], part), spectra[:, :, source])
        # The outputs in front have wrapped around: overlap-save throws them away.
        return torch.fft.irfft(total, self.n)[..., -self.chunk :]

    def joined(self, out: Tensor) -> Tensor:
        """Return outputs [B·M, c, outputs, S] as [B, D, T − first·S]."""
        out = out.flatten(-2)[..., : self.length - self.first * self.chunk]
        return out.reshape(self.batch, self.channels, -1).contiguous()

    def overlap_add(self, pieces: Tensor) -> Tensor:
        """Return chunks [b, c, chunks, n] that overlap, added up where they lie: [b, c, T]."""
        steps = -(-self.n // self.chunk)
        pieces = F.pad(pieces, (0, steps * self.chunk - self.n)).unflatten(-1, (steps, self.chunk))
        total = torch.zeros(
            *pieces.shape[:2], self.chunks + steps - 1, self.chunk, dtype=pieces.dtype, device=pieces.device
        )
        for step in range(steps):
            total[:, :, step : step + self.chunks] += pieces[:, :, :, step]
        start = self.n - self.chunk
        return total.flatten(-2)[..., start : start + self.length]


@_convolve.register_fake
def _(v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str) -> Tensor:
    return v.new_empty(v.shape[0], v.shape[1], v.shape[2] - first * chunk)


@_backward.register_fake
def _(
    grad: Tensor, v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), anchors.new_empty(anchors.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, anchors, *ctx.settings = inputs
    ctx.save_for_backward(v, anchors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if needs_plain():
        return differentiate_all(_defined, ctx, (grad,))
    return *_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None, None, None


_convolve.register_autograd(_differentiate, setup_context=_setup)


def chunk_flops(
    batch: int, channels: int, kernels: int, buckets: int, length: int, first: int, window: int, chunk: int
) -> int:
    """Return FLOPs of `chunk_convolution`: transforms, complex products and sums, and the making of the kernels'
    spectra."""
    chunks, n = -(-length // chunk), smooth_length(2 * chunk)
    bins, parts = n // 2 + 1, min(-(-window // chunk), chunks)
    pairs = sum(chunks - max(first, part) for part in range(parts))
    transforms = channels * (2 * chunks - first) * fft_flops(n)
    return batch * (transforms + pairs * bins * (8 * channels + 8 * buckets * kernels))


@register_flop_formula(torch.ops.blockyard.chunk_convolution)
def _(v: Any, anchors: Any, first: int, window: int, chunk: int, *settings: Any, **_: Any) -> int:
    return chunk_flops(v[0], v[1], anchors[2], anchors[3] // 2, v[2], first, window, chunk)
