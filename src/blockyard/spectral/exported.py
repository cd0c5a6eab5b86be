"""The causal forms in real products and sums, for graphs that are exported: no transforms, no operators of ours.

What chunks.py computes by real transforms of a chunk's length is here the product with a fixed matrix, real and
imaginary parts apart, for any number of chunks. A kernel per token (tokens.py) is a convolution with the kernels of
unit anchors, weighted token by token. The same numbers, up to rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from blockyard.spectral.basis import Interpolation, Spacing, kernel_basis, smooth_length
from blockyard.spectral.filter import bin_weights


def chunk_constants(
    buckets: int, window: int, chunk: int, interpolation: Interpolation, spacing: Spacing, like: Tensor
) -> tuple[Tensor, ...]:
    """Return the matrices of `chunks_by_products`.

    A complex product a·x is four real ones, of (re a, re a, im a, im a) and (re x, im x, −im x, re x): spectra are laid
    out so, and what adds up which is part of the transform back.

    Returns: the transform [2·S, 4·bins], the transform back [4·bins, S], and of each part of unit anchors' kernels the
        spectra [2·buckets, 4·bins].
    """
    n = smooth_length(2 * chunk)
    basis = kernel_basis(buckets, window, interpolation, spacing, torch.float64, torch.device("cpu"))
    spectra = torch.fft.rfft(F.pad(basis, (0, -window % chunk)).unflatten(-1, (-1, chunk)).transpose(0, 1), n)
    # A chunk and the one before it are the last values of n; whatever stands in front of them is 0.
    place = torch.arange(n - 2 * chunk, n, dtype=torch.float64)
    angle = 2 * math.pi / n * torch.outer(place, torch.arange(n // 2 + 1, dtype=torch.float64))
    cos, sin = angle.cos(), angle.sin()
    # Of the outputs only the last chunk has not wrapped around.
    weights = bin_weights(n, basis)[:, None]
    back = [weights * cos[chunk:].mT, -weights * sin[chunk:].mT]
    parts = torch.cat([spectra.real, spectra.real, spectra.imag, spectra.imag], -1)
    return tuple(each.to(like) for each in (torch.cat([cos, -sin, sin, cos], -1), torch.cat(back * 2), *parts))


def chunks_by_products(v: Tensor, anchors: Tensor, chunk: int, constants: tuple[Tensor, ...]) -> Tensor:
    """Convolve every channel with the kernel of its chunk, as `chunk_convolution` does from the first chunk on.

    Args:
        v: values [B, D, T].
        anchors: [B, chunks, M, 2K], real parts first.
        chunk: chunk length S.
        constants: from `chunk_constants`.

    Returns: [B, D, T].
    """
    there, back, *parts = constants
    batch, channels, length = v.shape
    chunks, kernels = anchors.shape[1], anchors.shape[2]
    # Every chunk behind the one before it, which is zeros for the first: [B, D, chunks, 2·S].
    both = _pieces(F.pad(v, (chunk, 2 * chunk - 1)), chunks, chunk, 2 * chunk)
    spectra = (both @ there).reshape(batch, kernels, channels // kernels, chunks, there.shape[1])
    # All parts meet every chunk, those that reach back before the first one zeros: how many there are is not asked.
    spectra = F.pad(spectra, (0, 0, len(parts) - 1, 0))
    gates = anchors.transpose(1, 2).unsqueeze(2)  # [B, M, 1, chunks, 2K]
    total = torch.zeros((), dtype=v.dtype, device=v.device)
    for back_by, part in enumerate(parts):
        total = torch.addcmul(total, gates @ part, spectra.narrow(-2, len(parts) - 1 - back_by, chunks))
    out = (total @ back).reshape(batch, channels, chunks, chunk)
    place = torch.arange(length, device=v.device)
    return out[:, :, place // chunk, place % chunk]


def _pieces(padded: Tensor, chunks: int, chunk: int, width: int) -> Tensor:
    """Return pieces of so many values, each a chunk behind the one before: [B, D, T] -> [B, D, chunks, width].

    Fetched by place, here and above: of slices and shapes it would have to be shown that they fit at every length.
    """
    first = torch.arange(chunks, device=padded.device)[:, None] * chunk
    return padded[:, :, first + torch.arange(width, device=padded.device)]


def token_constants(
    buckets: int, window: int, interpolation: Interpolation, spacing: Spacing, like: Tensor
) -> tuple[Tensor, ...]:
    """Return the kernels of unit anchors as those of a convolution, [2·buckets, 1, 1, L], the latest tap last."""
    basis = kernel_basis(buckets, window, interpolation, spacing, torch.float64, torch.device("cpu"))
    return (basis.flip(-1)[:, None, None].to(like),)


def tokens_by_products(v: Tensor, anchors: Tensor, constants: tuple[Tensor, ...]) -> Tensor:
    """Convolve every channel with each token's own kernel, as `token_convolution` does without a past.

    Args:
        v: values [B, D, T].
        anchors: [B, T, M, 2K], real parts first.
        constants: from `token_constants`.

    Returns: [B, D, T].
    """
    (kernels,) = constants
    batch, channels, length = v.shape
    rows = F.pad(v, (kernels.shape[-1] - 1, 0)).unsqueeze(1)
    found = F.conv2d(rows, kernels).reshape(batch, kernels.shape[0], anchors.shape[2], -1, length)
    gates = anchors.permute(0, 3, 2, 1).unsqueeze(3)  # [B, 2K, M, 1, T]
    return (found * gates).sum(1).reshape(batch, channels, length)


def means_before(x: Tensor, chunk: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the mean input of all tokens before each chunk [B, chunks, D], and how many they are [1, chunks]."""
    # One more than there are, whose results nobody takes: of two at least no step asks whether it is one alone. In one
    # division, so that the number is no sum, of which little could be shown.
    chunks = x.shape[1] if chunk == 1 else (x.shape[1] + 2 * chunk - 1) // chunk
    sums = _pieces(F.pad(x.transpose(1, 2), (0, 2 * chunk - 1)), chunks, chunk, chunk)  # [B, D, chunks, S]
    running = F.pad(sums.sum(-1, dtype=dtype).transpose(1, 2).cumsum(1), (0, 0, 1, 0))[:, :-1]
    number = torch.arange(chunks, device=x.device)[None] * chunk
    return running / number.clamp(min=1)[..., None], number
