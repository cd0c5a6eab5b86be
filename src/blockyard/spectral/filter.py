"""The encoder form of spectral mixing as one operation: irfft(gate · (rfft(v) + memory)).

Spectra are as large as the values and more, so none is kept: the forward pass works through blocks of channels that
stay in the cache, and the backward pass computes them again. It is one opaque operator, so compilers leave it whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from blockyard.nn.derivatives import differentiate_all, needs_plain, transformed
from blockyard.spectral.basis import bin_matrix, smooth_length

# Bytes that one block works on, its values, spectra and gradients together: what stays in a core's own cache.
BLOCK_BYTES = 1 << 21


def blocks(rows: int, bytes_per_row: int, device: torch.device) -> list[slice]:
    """Return slices over rows that are worked on together: as many as the cache holds, or all of them off the CPU."""
    # Off the CPU all at once: every block would be launches of its own.
    size = max(1, BLOCK_BYTES // bytes_per_row) if device.type == "cpu" else rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def bin_weights(n: int, like: Tensor) -> Tensor:
    """Return what irfft counts a bin for, divided by n: [n // 2 + 1]. All but 0 and n/2 stand for two."""
    weights = torch.full((n // 2 + 1,), 2 / n, dtype=like.dtype, device=like.device)
    # Bin 0, and of an even n the last, are their own mirror images.
    weights[0] = 1 / n
    if n % 2 == 0:
        weights[-1] = 1 / n
    return weights


def fft_flops(n: int) -> int:
    """Return the customary count for one real transform of length n, 2.5 · n · log2 n."""
    return int(2.5 * n * math.log2(n)) if n > 1 else 0


def spectral_filter(
    v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str
) -> Tensor:
    """Filter every channel in the frequency domain, with circular period n.

    Args:
        v: values [B, D, N], N ≤ n, float32 or float64.
        anchors: [B, M, 2K], one gate for D / M neighbouring channels, real parts first.
        memory: added to the lowest bins of rfft(v), [D, m, 2] (real, imaginary), or None.
        n: length of the transform; 0 = the smallest 2-3-5-smooth one that holds v.
        interpolation, spacing: of the anchors, see `blockyard.spectral.basis.anchor_matrix`.

    Returns: [B, D, N].
    """
    operation = _defined if transformed() else _filter
    return operation(v, anchors, memory, n, interpolation, spacing)


def _defined(v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str) -> Tensor:
    # A length with a large prime factor costs five to nine times as much per element.
    n = n or smooth_length(v.shape[2])
    rows, gates, low, matrix = _rows(v, anchors, memory, n, interpolation, spacing)
    # Rows are filled up with zeros to n. The filter is circular, as the paper's: what goes beyond the end comes in at
    # the beginning, unless n leaves room for it.
    spectrum = torch.fft.rfft(rows, n)
    if low is not None:
        spectrum = spectrum + F.pad(low, (0, spectrum.shape[-1] - low.shape[-1])).repeat(v.shape[0], 1, 1)
    return torch.fft.irfft(spectrum * _gate(gates, matrix)[:, None], n)[..., : v.shape[2]].reshape(v.shape)


@torch.library.custom_op("blockyard::spectral_filter", mutates_args=())
def _filter(v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str) -> Tensor:
    n = n or smooth_length(v.shape[2])
    rows, gates, low, matrix = _rows(v, anchors, memory, n, interpolation, spacing)
    out = torch.empty_like(rows)
    for block in blocks(rows.shape[0], rows.shape[1] * n * rows.element_size() * 2, v.device):
        spectrum = _spectrum(rows, low, block, n)
        # In place: a second spectrum would push the first out of the cache.
        spectrum *= _gate(gates[block], matrix)[:, None]
        out[block] = torch.fft.irfft(spectrum, n)[..., : v.shape[2]]
    return out.view(v.shape)


@torch.library.custom_op("blockyard::spectral_filter_backward", mutates_args=())
def _backward(
    grad: Tensor, v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor, Tensor]:
    n = n or smooth_length(v.shape[2])
    rows, gates, low, matrix = _rows(v, anchors, memory, n, interpolation, spacing)
    # y = irfft(g · s): the gradient of s is conj(g) · rfft(ȳ), that of g conj(s) · rfft(ȳ), summed over the channels
    # that g serves. A bin stands for itself and its mirror image, which is what the weights count.
    grad = grad.contiguous().view(rows.shape)
    grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates)
    grad_low = None if low is None else torch.zeros_like(low)
    weights = bin_weights(n, v)
    for block in blocks(rows.shape[0], rows.shape[1] * n * rows.element_size() * 3, v.device):
        gate, slope = _gate(gates[block], matrix)[:, None].conj(), torch.fft.rfft(grad[block], n)
        spectrum = _spectrum(rows, low, block, n)
        grad_bins = (spectrum.conj_physical_().mul_(slope)).sum(1) * weights
        # Anchors are interpolated by a fixed matrix, so their gradient goes back through its transpose.
        grad_gates[block] = torch.cat([grad_bins.real @ matrix.T, grad_bins.imag @ matrix.T], dim=-1)
        slope *= gate
        if grad_low is not None:
            # Every sample was given the same memory, so their gradients add up.
            kept = slope[..., : grad_low.shape[-1]] * weights[: grad_low.shape[-1]]
            grad_low.index_add_(0, _memory_rows(block, grad_low), kept)
        grad_rows[block] = torch.fft.irfft(slope, n)[..., : v.shape[2]]
    grad_memory = v.new_zeros((0,) if memory is None else memory.shape)
    if grad_low is not None:
        # A short transform has fewer bins than the memory.
        grad_memory[:, : grad_low.shape[-1]] = torch.view_as_real(grad_low).flatten(0, 1)
    return grad_rows.view(v.shape), grad_gates.view(anchors.shape), grad_memory


def _rows(
    v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return values [B·M, c, N], gates [B·M, 2K], memory [M, c, m] complex, anchor matrix [K, F]."""
    kernels, buckets = anchors.shape[1], anchors.shape[2] // 2
    rows = v.contiguous().view(v.shape[0] * kernels, v.shape[1] // kernels, v.shape[2])
    low = None
    if memory is not None:
        low = torch.view_as_complex(memory.contiguous()).view(kernels, -1, memory.shape[1])[..., : n // 2 + 1]
    matrix = bin_matrix(buckets, n // 2 + 1, interpolation, spacing, v.dtype, v.device)
    return rows, anchors.reshape(-1, 2 * buckets), low, matrix


def _spectrum(rows: Tensor, low: Tensor | None, block: slice, n: int) -> Tensor:
    spectrum = torch.fft.rfft(rows[block], n)
    if low is not None:
        spectrum[..., : low.shape[-1]] += low[_memory_rows(block, low)]
    return spectrum


def _memory_rows(block: slice, low: Tensor) -> Tensor:
    """Return rows run through the kernels once per sample."""
    return torch.arange(block.start, block.stop, device=low.device) % low.shape[0]


def _gate(anchors: Tensor, matrix: Tensor) -> Tensor:
    re, im = anchors.chunk(2, dim=-1)
    return torch.complex(re @ matrix, im @ matrix)


@_filter.register_fake
def _(v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str) -> Tensor:
    return v.new_empty(v.shape)


@_backward.register_fake
def _(
    grad: Tensor, v: Tensor, anchors: Tensor, memory: Tensor | None, n: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor, Tensor]:
    return v.new_empty(v.shape), anchors.new_empty(anchors.shape), v.new_empty((0,) if memory is None else memory.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, anchors, memory, *ctx.settings = inputs
    ctx.save_for_backward(v, anchors, memory)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if needs_plain():
        return differentiate_all(_defined, ctx, (grad,))
    v, anchors, memory = ctx.saved_tensors
    grad_v, grad_anchors, grad_memory = _backward(grad, v, anchors, memory, *ctx.settings)
    return grad_v, grad_anchors, None if memory is None else grad_memory, None, None, None


_filter.register_autograd(_differentiate, setup_context=_setup)


def filter_flops(batch: int, channels: int, kernels: int, buckets: int, n: int) -> int:
    """Return FLOPs of `spectral_filter`: two transforms and a complex product per channel, and the gates'
    interpolation."""
    bins = n // 2 + 1
    return batch * (channels * (2 * fft_flops(n) + 6 * bins) + kernels * 4 * buckets * bins)


@register_flop_formula(torch.ops.blockyard.spectral_filter)
def _(v: Any, anchors: Any, memory: Any, n: int, *settings: Any, **_: Any) -> int:
    return filter_flops(v[0], v[1], anchors[1], anchors[2] // 2, n or smooth_length(v[2]))
