"""Causal convolution with a kernel per chunk of time, as one operation.

    y_t = Σ_{l=0}^{min(t, L−1)} h_i[l] · v_{t−l}   for every t of chunk i

Overlap-save (Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7) with kernels cut into parts of a
chunk's length: each chunk of values is transformed once, each chunk of outputs is a sum of products over the parts,
transformed back once. The parts' spectra are fixed sums over the anchors, so no kernel is ever made or transformed. As
in `spectral_filter`, blocks of channels stay in the cache, and the backward pass computes spectra again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from blockyard.nn.derivatives import differentiate_all, needs_plain, outlasting, transformed
from blockyard.nn.products import product
from blockyard.spectral.basis import Interpolation, Spacing, kernel_basis, smooth_length
from blockyard.spectral.filter import BLOCK_BYTES, bin_weights, fft_flops

# Bytes of the kernels' spectra that are made together: many rows to a product, and not much memory.
_KERNEL_BYTES = 1 << 24
# Their rows are filled up to a multiple of this: products of so many are the fast ones (`blockyard.nn.products`).
_ROWS_BY = 32


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
    out = plan.convolved(plan.rows(v), plan.kernels(plan.gates(anchors)))
    return out.flatten(-2).flatten(1, 2)[..., : plan.kept]


@torch.library.custom_op("blockyard::chunk_convolution", mutates_args=())
def _convolve(
    v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> Tensor:
    plan = _Plan(v, anchors, first, window, chunk, interpolation, spacing)
    rows, gates, out = plan.rows(v), plan.gates(anchors), plan.empty(v)
    places = out.unflatten(1, (plan.heads, -1)).unflatten(-1, (plan.outputs, chunk))
    with torch.no_grad():
        for group, blocks in plan.blocks():
            kernels = plan.kernels(gates[:, *group])
            for own, block in blocks:
                places[block] = plan.convolved(rows[block], [kernel[own] for kernel in kernels])
    return out[..., : plan.kept]


@torch.library.custom_op("blockyard::chunk_convolution_backward", mutates_args=())
def _backward(
    grad: Tensor, v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor]:
    plan = _Plan(v, anchors, first, window, chunk, interpolation, spacing)
    rows, gates, slopes = plan.rows(v), plan.gates(anchors), plan.rows(grad)
    grad_v, grad_gates = torch.empty(v.shape, dtype=v.dtype, device=v.device), torch.zeros_like(gates)
    grad_rows, weights = plan.rows(grad_v), bin_weights(plan.n, v)
    with torch.no_grad():
        for group, blocks in plan.blocks():
            # Conjugates: what was a convolution forward is a correlation backward.
            kernels = [kernel.conj_physical_() for kernel in plan.kernels(gates[:, *group])]
            grads = [plan.room_for(gates[to, *group]) for _, to, _ in plan.pairs()]
            # Shaped as the kernels; every place belongs to one block.
            grad_kernels = [plan.shaped(grad, gates[to, *group]) for grad, (_, to, _) in zip(grads, plan.pairs())]
            for own, block in blocks:
                spectra, slope = plan.spectra(rows[block]).conj_physical_(), plan.slope(slopes[block])
                grad_spectra = torch.zeros_like(spectra)
                for (_, to, source), kernel, into in zip(plan.pairs(), kernels, grad_kernels):
                    grad_spectra[..., source, :].addcmul_(kernel[own], slope[..., to, :])
                    torch.sum(spectra[..., source, :] * slope[..., to, :], 2, keepdim=True, out=into[own])
                # A chunk was read as itself and as its successor's past, so gradients overlap and add up.
                grad_rows[block] = plan.overlap_add(torch.fft.irfft(grad_spectra, plan.n))
            for (part, to, _), grad, into in zip(plan.pairs(), grads, grad_kernels):
                into *= weights
                own_gates = grad_gates[to, *group]
                own_gates += product(grad, plan.parts[part])[: own_gates[..., 0].numel()].view_as(own_gates)
    return grad_v, grad_gates.transpose(0, 1).contiguous()


Block = tuple[slice, slice]


class _Plan:
    """Sizes and steps that forward and backward share. M kernels serve c = D / M channels each."""

    def __init__(
        self, v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str
    ) -> None:
        self.batch, self.channels, self.length = v.shape
        self.heads, self.buckets = anchors.shape[2], anchors.shape[3] // 2
        self.first, self.chunk, self.n = first, chunk, smooth_length(2 * chunk)
        self.chunks = -(-self.length // chunk)
        self.outputs = self.chunks - first
        self.kept = self.length - first * chunk
        settings: Any = (interpolation, spacing, v.dtype, v.device)
        self.parts = _parts(self.buckets, window, chunk, *settings)
        self.device, self.bytes = v.device, v.element_size()

    def blocks(self) -> Iterator[tuple[Block, list[tuple[Block, Block]]]]:
        """Yield groups of samples and kernels whose spectra are made together, each with its blocks: where they lie
        in the group, and where in everything."""
        values = 2 * self.n * self.chunks * self.bytes * self.channels // self.heads
        spectra = sum(to.stop - to.start for _, to, _ in self.pairs()) * self.parts.shape[2] * self.bytes
        for group in self._tiles(slice(0, self.batch), slice(0, self.heads), _KERNEL_BYTES // spectra):
            blocks = list(self._tiles(*group, BLOCK_BYTES // values))
            a, b = (run.start for run in group)
            own = [(slice(i.start - a, i.stop - a), slice(j.start - b, j.stop - b)) for i, j in blocks]
            yield group, list(zip(own, blocks))

    def _tiles(self, samples: slice, heads: slice, size: int) -> Iterator[Block]:
        """Yield slices over samples and kernels with at most `size` places, at least one: all kernels of several
        samples, or some of one."""
        count, width = samples.stop - samples.start, heads.stop - heads.start
        if self.device.type != "cpu":
            # Every block would be launches of its own.
            size = count * width
        high, wide = max(1, size // width), min(width, max(1, size))
        for i in range(samples.start, samples.stop, high):
            for j in range(heads.start, heads.stop, wide):
                yield slice(i, min(i + high, samples.stop)), slice(j, min(j + wide, heads.stop))

    def rows(self, v: Tensor) -> Tensor:
        """Return [B, D, T] as [B, M, c, T]."""
        return v.unflatten(1, (self.heads, -1))

    def gates(self, anchors: Tensor) -> Tensor:
        """Return [B, chunks, M, 2K] as [chunks, B, M, 2K]."""
        return anchors.transpose(0, 1)

    def empty(self, v: Tensor) -> Tensor:
        """Return room for the outputs of whole chunks, [B, D, outputs · S], with the samples of a channel side by
        side: what multiplies it can take it for one matrix."""
        return v.new_empty(self.channels, self.batch, self.outputs * self.chunk).transpose(0, 1)

    def spectra(self, rows: Tensor) -> Tensor:
        """Return the spectra of every chunk together with what precedes it, [..., chunks, bins]."""
        rest = self.chunks * self.chunk - self.length
        if self.n != 2 * self.chunk:
            return torch.fft.rfft(F.pad(rows, (self.n - self.chunk, rest)).unfold(-1, self.n, self.chunk))
        # The same with half the copying, which at a thousand tokens is a tenth of everything.
        chunks = (F.pad(rows, (0, rest)) if rest else rows).unflatten(-1, (-1, self.chunk))
        both = chunks.new_empty(*chunks.shape[:-1], 2, self.chunk)
        # Each chunk behind its predecessor: the values that a part of S taps can reach.
        both[..., 1, :] = chunks
        both[..., 1:, 0, :] = chunks[..., :-1, :]
        both[..., 0, 0, :] = 0
        return torch.fft.rfft(both.flatten(-2))

    def slope(self, grad: Tensor) -> Tensor:
        """Return the spectra of the gradients [..., T − first·S] of the outputs, [..., outputs, bins]."""
        rest = self.outputs * self.chunk - self.kept
        chunks = (F.pad(grad, (0, rest)) if rest else grad).unflatten(-1, (-1, self.chunk))
        # Only the last S of n outputs were kept, so the others have no gradient.
        return torch.fft.rfft(F.pad(chunks, (self.n - self.chunk, 0)))

    def pairs(self) -> list[tuple[int, slice, slice]]:
        """Return (part of the kernel, output chunks that use it, chunks of values that they use it on)."""
        found = []
        for part in range(min(self.parts.shape[0], self.chunks)):
            start = max(self.first, part)
            found.append((part, slice(start - self.first, self.outputs), slice(start - part, self.chunks - part)))
        return found

    def kernels(self, gates: Tensor) -> list[Tensor]:
        """Return the spectra of every part of the kernels of gates [chunks, b, m, 2K], for the chunks that use it:
        each [b, m, 1, chunks, bins]."""
        found = []
        rows = gates.shape[1] * gates.shape[2]
        flat = F.pad(gates.reshape(-1, gates.shape[-1]), (0, 0, 0, _ROWS_BY - 1))
        for part, to, _ in self.pairs():
            begin, count = to.start * rows, (to.stop - to.start) * rows
            made = product(flat[begin : begin + _filled(count)], self.parts[part].mT)
            found.append(self.shaped(made, gates[to]))
        return found

    def shaped(self, made: Tensor, gates: Tensor) -> Tensor:
        """Return spectra as products have them, [rows, 2 · bins], as those of gates [chunks, b, m, 2K] in the order
        [b, m, 1, chunks, bins]."""
        rows = made[: gates.shape[:3].numel()].view(*gates.shape[:3], -1, 2)
        return torch.view_as_complex(rows).permute(1, 2, 0, 3)[:, :, None]

    def room_for(self, gates: Tensor) -> Tensor:
        """Return zeros for such spectra of gates, [rows, 2 · bins]."""
        return gates.new_zeros(_filled(gates.shape[:3].numel()), self.parts.shape[2])

    def convolved(self, rows: Tensor, kernels: list[Tensor]) -> Tensor:
        """Return values [b, m, c, T] and the parts' spectra to outputs [b, m, c, outputs, S]."""
        spectra = self.spectra(rows)
        # Part p of a kernel meets the values p chunks back; their products add up before one transform back.
        total = kernels[0] * spectra[..., self.first :, :]
        for (_, to, source), kernel in zip(self.pairs()[1:], kernels[1:]):
            total[..., to, :].addcmul_(kernel, spectra[..., source, :])
        # The outputs in front have wrapped around: overlap-save throws them away.
        return torch.fft.irfft(total, self.n)[..., -self.chunk :]

    def overlap_add(self, pieces: Tensor) -> Tensor:
        """Return chunks [..., chunks, n] that overlap, added up where they lie: [..., T]."""
        steps = -(-self.n // self.chunk)
        pieces = F.pad(pieces, (0, steps * self.chunk - self.n)).unflatten(-1, (steps, self.chunk))
        total = torch.zeros(
            *pieces.shape[:-3], self.chunks + steps - 1, self.chunk, dtype=pieces.dtype, device=pieces.device
        )
        for step in range(steps):
            total[..., step : step + self.chunks, :] += pieces[..., step, :]
        start = self.n - self.chunk
        return total.flatten(-2)[..., start : start + self.length]


def _filled(rows: int) -> int:
    return -(-rows // _ROWS_BY) * _ROWS_BY


@_convolve.register_fake
def _(v: Tensor, anchors: Tensor, first: int, window: int, chunk: int, interpolation: str, spacing: str) -> Tensor:
    columns = -(-v.shape[2] // chunk) * chunk - first * chunk
    return v.new_empty(v.shape[1], v.shape[0], columns).transpose(0, 1)[..., : v.shape[2] - first * chunk]


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
