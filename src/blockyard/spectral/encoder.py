"""Spectral mixing of whole sequences, as in the SPECTRE paper: one gate per row, circular, both ways in time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.roles import Role
from blockyard.protocol.cache_base import sent
from blockyard.spectral.basis import Interpolation, Spacing, bin_matrix, smooth_length
from blockyard.spectral.filter import filter_flops, spectral_filter
from blockyard.spectral.gate import SpectralGate
from blockyard.spectral.haar import WaveletRefinement
from blockyard.spectral.padding import groups
from blockyard.spectral.pooling import PoolingType, QueryPooling


class EncoderMixing(nn.Module):
    """y = irfft(gate(pool(q)) · (rfft(v) + memory)) + wavelet refinement.

    Args:
        n_heads: number of heads.
        head_dim: width of a head.
        n_fft: transform length; None = the smallest 2-3-5-smooth length that holds the row.
        pooling_type: mean, attention or dct.
        interpolation, bucket_spacing: of the anchors.
        memory_size: lowest bins that get a memory.
        memory_frozen: keep the memory as it is set instead of learning it.
        wavelet_on_rate, wavelet_detach: see `WaveletRefinement`.
    """

    def __init__(
        self,
        n_heads: int,
        head_dim: int,
        *,
        n_fft: int | None,
        pooling_type: PoolingType,
        interpolation: Interpolation,
        bucket_spacing: Spacing,
        memory_size: int,
        memory_frozen: bool,
        wavelet_on_rate: float,
        wavelet_detach: bool,
    ) -> None:
        super().__init__()
        self.n_fft, self.interpolation, self.spacing = n_fft, interpolation, bucket_spacing
        self.pooling = QueryPooling(pooling_type, n_heads, head_dim)
        width = n_heads * head_dim
        self.memory: Tensor | None
        if memory_size == 0:
            self.memory = None
        elif memory_frozen:
            self.register_buffer("memory", torch.zeros(width, memory_size, 2))
        else:
            self.memory = nn.Parameter(torch.zeros(width, memory_size, 2))
        self.wavelet = WaveletRefinement(width, wavelet_on_rate, detach=wavelet_detach) if wavelet_on_rate else None

    def parameter_roles(self) -> dict[str, Role]:
        return {"memory": Role("vector")}

    def transform_length(self, tokens: int) -> int:
        """Return the transform length for so many tokens.

        Raises:
            InputError: when they do not fit into `n_fft`.
        """
        self._check_length(tokens)
        return self.n_fft or smooth_length(tokens)

    def _check_length(self, tokens: int) -> None:
        if self.n_fft is not None and tokens > self.n_fft:
            raise InputError(
                f"n_fft={self.n_fft} is shorter than the input of {tokens} tokens, whose end would be lost; "
                f"use n_fft={smooth_length(tokens)} or more, or none to follow the input"
            )

    def forward(
        self, x: Tensor, v: Tensor, project: Callable[[Tensor], Tensor], gate: SpectralGate, counts: Tensor | None
    ) -> Tensor:
        """Return mixed values [B, D, N].

        Args:
            x: [B, N, D], 0 beyond a row's count.
            v: values [B, D, N], float32 or float64, 0 beyond a row's count.
            project: the query projection.
            gate: from descriptors to anchors.
            counts: tokens per row [B], or None when every row has all N.
        """
        # One gate per row, from all of its tokens: what each position gets depends on what comes after it, too.
        anchors = gate(self.pooling(x, project, counts, v.dtype))
        if counts is None:
            self._check_length(v.shape[2])
            return self._mix(v, anchors, self.n_fft or 0)
        # A row's transform is as long as the row alone asks for, whatever stands beside it.
        # Read once: how long a transform is, an accelerator cannot be told by a tensor.
        known = counts.tolist()
        lengths = [self.transform_length(max(1, count)) for count in known]
        # Drawn for the batch: a sample's luck belongs to its place there, not among the rows of its length.
        shares = None if self.wavelet is None else self.wavelet.shares(v)
        out = torch.zeros_like(v)
        for n, rows in groups(torch.tensor(lengths)):
            width = max(1, *(known[row] for row in rows.tolist()))
            rows = sent(rows, v.device)
            inside = torch.arange(width, device=v.device) < counts[rows, None]
            mixed = self._mix(v[rows, :, :width], anchors[rows], n, inside, None if shares is None else shares[rows])
            out = out.index_copy(0, rows, nn.functional.pad(mixed, (0, v.shape[2] - width)))
        return out

    def _mix(
        self, v: Tensor, anchors: Tensor, n: int, inside: Tensor | None = None, shares: Tensor | None = None
    ) -> Tensor:
        memory = None if self.memory is None else self.memory.to(v.dtype)
        y = spectral_filter(v, anchors, memory, n, self.interpolation, self.spacing)
        if self.wavelet is None:
            return y
        if inside is not None:
            # The circle reaches beyond a row's end, where the wavelets would meet it.
            y = y * inside[:, None]
        return y + self.wavelet(y, shares)

    def kernels(self, anchors: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Return circular impulse responses [..., n] and their lags [n], from −⌊n/2⌋ up.

        Args:
            anchors: [..., 2K].
            tokens: length of the input that they act on.
        """
        n = self.transform_length(tokens)
        matrix = bin_matrix(
            anchors.shape[-1] // 2, n // 2 + 1, self.interpolation, self.spacing, anchors.dtype, anchors.device
        )
        re, im = anchors.chunk(2, dim=-1)
        kernels = torch.fft.irfft(torch.complex(re @ matrix, im @ matrix), n)
        # On a circle, what lies behind n/2 are the negative lags.
        return kernels.roll(n // 2, -1), torch.arange(n, device=anchors.device) - n // 2

    def query_rows(self, tokens: int) -> int:
        """Return rows that go through the query projection."""
        return self.pooling.projected_rows(tokens)

    def flops(self, tokens: int, gate: SpectralGate) -> int:
        """Return FLOPs beside the three projections."""
        width = gate.n_heads * gate.head_dim
        mixing = filter_flops(1, width, gate.n_heads * gate.groups, gate.buckets, self.transform_length(tokens))
        return mixing + gate.flops(1) + self.pooling.flops(tokens, width)
