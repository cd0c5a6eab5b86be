"""Causal convolution with a kernel per token, as one operation.

A kernel is a sum of fixed ones weighted by its anchors, so the sum may be taken after the convolutions:

    y_t = Σ_k Re a_k(t) · (p_k ∗ v)_t + Im a_k(t) · (r_k ∗ v)_t

Exact, with two inverse transforms per anchor and channel.
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
from blockyard.spectral.filter import blocks, fft_flops


def linear_length(length: int, window: int) -> int:
    """Transform length in which `length` values and a kernel do not wrap around."""
    return smooth_length(length + min(length, window) - 1)


@lru_cache(maxsize=32)
def _spectra(
    buckets: int,
    window: int,
    taps: int,
    n: int,
    interpolation: Interpolation,
    spacing: Spacing,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the spectra of the kernels of unit anchors, cut to `taps`: [2·buckets, bins]."""
    # In float64 whatever the model computes in: made once, and rounded once.
    basis = kernel_basis(buckets, window, interpolation, spacing, torch.float64, torch.device("cpu"))
    with outlasting():
        kind = torch.complex128 if dtype == torch.float64 else torch.complex64
        return torch.fft.rfft(basis[:, :taps], n).to(dtype=kind, device=device)


def token_convolution(v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str) -> Tensor:
    """Convolve every channel with each output token's own kernel.

    Args:
        v: values [B, D, T]; float32 or float64.
        anchors: [B, new, M, 2K] of the last `new` of the T tokens, which get an output; real parts first.
        window: kernel length L.
        interpolation, spacing: of the anchors, see `blockyard.spectral.basis.anchor_matrix`.

    Returns: [B, D, new].
    """
    operation = _defined if transformed() else _convolve
    return operation(v, anchors, window, interpolation, spacing)


def _defined(v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str) -> Tensor:
    # y_t = Σ_k g_t[k] (h_k ∗ v)_t: a convolution per unit anchor, weighed token by token. That takes 2K transforms,
    # where a kernel for each token would take T.
    rows, gates, spectra, n, start = _prepare(v, anchors, window, interpolation, spacing)
    spectrum = torch.fft.rfft(rows, n)
    out = torch.zeros((), dtype=v.dtype, device=v.device)
    for k, kernel in enumerate(spectra):
        out = out + gates[:, k, None] * torch.fft.irfft(spectrum * kernel, n)[..., start : v.shape[2]]
    return out.reshape(v.shape[0], v.shape[1], -1)


@torch.library.custom_op("blockyard::token_convolution", mutates_args=())
def _convolve(v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str) -> Tensor:
    rows, gates, spectra, n, start = _prepare(v, anchors, window, interpolation, spacing)
    out = torch.zeros(*rows.shape[:2], gates.shape[2], dtype=v.dtype, device=v.device)
    for block in blocks(rows.shape[0], 4 * n * rows.shape[1] * v.element_size(), v.device):
        spectrum = torch.fft.rfft(rows[block], n)
        for k, kernel in enumerate(spectra):
            shifted = torch.fft.irfft(spectrum * kernel, n)[..., start : v.shape[2]]
            out[block].addcmul_(gates[block, k, None], shifted)
    return out.view(v.shape[0], v.shape[1], -1)


@torch.library.custom_op("blockyard::token_convolution_backward", mutates_args=())
def _backward(
    grad: Tensor, v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor]:
    rows, gates, spectra, n, start = _prepare(v, anchors, window, interpolation, spacing)
    slopes = grad.reshape(*rows.shape[:2], -1)
    grad_rows, grad_gates = torch.empty_like(rows), torch.empty_like(gates)
    for block in blocks(rows.shape[0], 6 * n * rows.shape[1] * v.element_size(), v.device):
        spectrum = torch.fft.rfft(rows[block], n)
        grad_spectrum = torch.zeros_like(spectrum)
        for k, kernel in enumerate(spectra):
            shifted = torch.fft.irfft(spectrum * kernel, n)[..., start : v.shape[2]]
            grad_gates[block, k] = (slopes[block] * shifted).sum(1)
            # Tokens without an output have no gradient.
            weighted = F.pad(gates[block, k, None] * slopes[block], (start, 0))
            # The transpose of a convolution is the correlation: the conjugate spectrum.
            grad_spectrum.addcmul_(torch.fft.rfft(weighted, n), kernel.conj_physical())
        grad_rows[block] = torch.fft.irfft(grad_spectrum, n)[..., : v.shape[2]]
    back = grad_gates.view(v.shape[0], anchors.shape[2], *grad_gates.shape[1:])
    return grad_rows.view(v.shape), back.permute(0, 3, 1, 2).contiguous()


def _prepare(
    v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Return values [B·M, c, T], gates [B·M, 2K, new], the basis's spectra, transform length, first token with an
    output."""
    batch, new, kernels, width = anchors.shape
    length = v.shape[2]
    n = linear_length(length, window)
    settings: Any = (interpolation, spacing, v.dtype, v.device)
    spectra = _spectra(width // 2, window, min(length, window), n, *settings)
    gates = anchors.permute(0, 2, 3, 1).reshape(batch * kernels, width, new)
    return v.contiguous().view(batch * kernels, -1, length), gates, spectra, n, length - new


@_convolve.register_fake
def _(v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str) -> Tensor:
    return v.new_empty(v.shape[0], v.shape[1], anchors.shape[1])


@_backward.register_fake
def _(grad: Tensor, v: Tensor, anchors: Tensor, window: int, interpolation: str, spacing: str) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), anchors.new_empty(anchors.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, anchors, *ctx.settings = inputs
    ctx.save_for_backward(v, anchors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if needs_plain():
        return differentiate_all(_defined, ctx, (grad,))
    return *_backward(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


_convolve.register_autograd(_differentiate, setup_context=_setup)


def token_flops(batch: int, channels: int, buckets: int, length: int, new: int, window: int) -> int:
    """Return FLOPs of `token_convolution`."""
    n = linear_length(length, window)
    return batch * channels * (fft_flops(n) + 2 * buckets * (fft_flops(n) + 6 * (n // 2 + 1) + 2 * new))


@register_flop_formula(torch.ops.blockyard.token_convolution)
def _(v: Any, anchors: Any, window: int, *settings: Any, **_: Any) -> int:
    return token_flops(v[0], v[1], anchors[3] // 2, v[2], anchors[1], window)
