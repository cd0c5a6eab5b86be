"""Causal convolution with a kernel per chunk, by groups of kernels and blocks of channels, against its sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockyard.spectral import chunks
from blockyard.spectral.basis import kernel_basis
from blockyard.spectral.chunks import chunk_convolution


def by_sums(v: Tensor, anchors: Tensor, first: int, window: int, chunk: int) -> Tensor:
    """y_t = Σ_l h_i[l] · v_{t−l}, one output after the other, in float64."""
    basis = kernel_basis(anchors.shape[-1] // 2, window, "linear", "linear", torch.float64, torch.device("cpu"))
    width, out = v.shape[1] // anchors.shape[2], []
    for t in range(first * chunk, v.shape[2]):
        taps = (anchors[:, t // chunk - first].double() @ basis)[..., : min(t + 1, window)]
        past = v[..., t + 1 - taps.shape[-1] : t + 1].double().flip(-1)
        out.append((past * taps.repeat_interleave(width, 1)).sum(-1))
    return torch.stack(out, -1)


@pytest.mark.parametrize("cut", ["whole", "small blocks", "one place at a time"])
@pytest.mark.parametrize("batch, first, length", [(3, 0, 64), (1, 1, 61)])
def test_groups_and_blocks_give_the_sum_and_its_gradients(monkeypatch, cut, batch, first, length):
    if cut != "whole":
        # So that groups and blocks end within the samples, and within the kernels of a sample.
        monkeypatch.setattr(chunks, "_KERNEL_BYTES", 1 if cut == "one place at a time" else 12_000)
        monkeypatch.setattr(chunks, "BLOCK_BYTES", 1 if cut == "one place at a time" else 9_000)
    torch.manual_seed(0)
    # Samples of a channel side by side, as the layer's projection gives them.
    room = torch.randn(10, batch, length, dtype=torch.float64)
    anchors = torch.randn(batch, 4 - first, 5, 16, dtype=torch.float64)
    found = []
    for operation in (by_sums, lambda *given: chunk_convolution(*given, "linear", "linear")):
        v, gates = room.transpose(0, 1).detach().requires_grad_(), anchors.clone().requires_grad_()
        out = operation(v, gates, first, 40, 16)
        (out * torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)).sum().backward()
        found.append((out, v.grad, gates.grad))
    for exact, fast in zip(*found):
        torch.testing.assert_close(fast, exact, rtol=1e-10, atol=1e-10)


def test_long_chunks_in_float32_are_the_sum():
    """Kernels of sizes whose spectra are made by the faster of torch's libraries, where there is one."""
    torch.manual_seed(0)
    v, anchors = torch.randn(1, 64, 512), torch.randn(1, 4, 32, 128)
    out = chunk_convolution(v, anchors, 0, 512, 128, "linear", "linear")
    exact = by_sums(v, anchors, 0, 512, 128)
    # Sums of up to 512 products, and two transforms.
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-4 * exact.std().item())
