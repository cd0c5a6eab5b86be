"""The spectre-nlp document's names and call forms (`from blockyard.compat.spectre_nlp import SpectreBlockNLP`).

`SpectreBlockNLP` is the mixer, which is what the document's example needs where attention stood; the public block of
that name holds norms, residuals and an FFN, too, as `block=True` does here. It is the encoder form: for language models
use the registered name, `spectral`, which they build in its causal form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.norms import make_norm
from blockyard.protocol.mixer import check_input
from blockyard.spectral.basis import Interpolation, Spacing
from blockyard.spectral.gate import ComplexModReLU
from blockyard.spectral.haar import WaveletRefinement
from blockyard.spectral.mixer import SpectralMixer
from blockyard.spectral.pooling import PoolingType
from blockyard.spectral.training import param_groups
from blockyard.standard.dense import StandardFFN

__all__ = ["ComplexModReLU", "SpectreBlockNLP", "WaveletRefinement", "param_groups"]


class SpectreBlockNLP(nn.Module):
    """`SpectreBlockNLP(embed_dim=768, num_heads=12)` as the document calls it; returns one tensor.

    Args:
        embed_dim: width of the input and output.
        num_heads: number of heads.
        n_fft: transform length, at least the input's; None = the next 2-3-5-smooth length of each input.
        mlp_ratio: hidden width of the FFN in units of embed_dim, with block=True only; None = 4.
        d_gate: hidden width of the gate's network.
        use_toeplitz: convolve the gate's anchors with learnt taps.
        dropout_p: probability of dropping an element in training.
        pooling_type: dct, attention or mean.
        num_groups: gates per head.
        num_buckets: anchors per gate; None = the square root of the number of bins.
        wavelet_on_rate: probability that a sample gets the wavelet branch in training.
        memory_size: lowest bins that get a spectral memory.
        block: put LayerNorms, residuals and an FFN around the mixer.
        bucket_spacing, interpolation, memory_frozen, wavelet_detach: see `SpectralMixer`.

    Shapes: x [B, N, embed_dim] -> the same.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        n_fft: int | None = None,
        mlp_ratio: float | None = None,
        d_gate: int = 256,
        use_toeplitz: bool = False,
        dropout_p: float = 0.1,
        pooling_type: PoolingType = "dct",
        num_groups: int = 4,
        num_buckets: int | None = None,
        wavelet_on_rate: float = 0.1,
        memory_size: int = 0,
        *,
        block: bool = False,
        bucket_spacing: Spacing = "linear",
        interpolation: Interpolation = "linear",
        memory_frozen: bool = False,
        wavelet_detach: bool = False,
    ) -> None:
        super().__init__()
        if mlp_ratio is not None and not block:
            raise InputError(f"mlp_ratio={mlp_ratio} belongs to the block; pass block=True, or leave it out")
        if mlp_ratio is not None and not 0 < mlp_ratio < float("inf"):
            raise InputError(f"mlp_ratio={mlp_ratio} should be positive")
        self.embed_dim = embed_dim
        self.mixer = SpectralMixer(
            embed_dim,
            num_heads,
            n_fft=n_fft,
            pooling_type=pooling_type,
            num_groups=num_groups,
            num_buckets=num_buckets,
            bucket_spacing=bucket_spacing,
            interpolation=interpolation,
            d_gate=d_gate,
            use_toeplitz=use_toeplitz,
            memory_size=memory_size,
            memory_frozen=memory_frozen,
            wavelet_on_rate=wavelet_on_rate,
            wavelet_detach=wavelet_detach,
            dropout=dropout_p,
        )
        self.ffn: StandardFFN | None = None
        if block:
            self.ln1, self.ln2 = make_norm("layer", embed_dim), make_norm("layer", embed_dim)
            ratio = 4 if mlp_ratio is None else mlp_ratio
            self.ffn = StandardFFN(embed_dim, d_ff=max(1, round(ratio * embed_dim)), dropout=dropout_p)

    def forward(
        self, x: Tensor, attention_mask: Tensor | None = None, position_embeddings: Tensor | None = None
    ) -> Tensor:
        """Mix.

        Args:
            x: [B, N, embed_dim].
            attention_mask: [B, N], 0 at padding; None = no padding.
            position_embeddings: broadcastable to x; added to what is projected, not to the residual stream.
        """
        if self.ffn is None:
            return self._mix(x, attention_mask, position_embeddings)
        check_input(x, self.embed_dim)
        x = x + self._mix(self.ln1(x), attention_mask, position_embeddings)
        return x + self.ffn(self.ln2(x))

    def _mix(self, x: Tensor, attention_mask: Tensor | None, position_embeddings: Tensor | None) -> Tensor:
        if position_embeddings is not None:
            try:
                fits = torch.broadcast_shapes(position_embeddings.shape, x.shape) == x.shape
            except RuntimeError:
                fits = False
            if not fits:
                raise InputError(
                    f"position_embeddings has shape {tuple(position_embeddings.shape)}, which does not broadcast to "
                    f"that of x, {tuple(x.shape)}"
                )
            x = x + position_embeddings
        return self.mixer(x, padding_mask=attention_mask)[0]
