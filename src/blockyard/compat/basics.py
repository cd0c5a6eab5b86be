"""The classes of the basics document under its names and constructor forms, thin over `blockyard.nn`.

One statement of the document does not hold. It rotates queries by e^{imθ} and keys by the conjugate, e^{−inθ}, and
then takes the *real* dot product of the flattened parts. Re⟨q e^{imθ}, k e^{−inθ}⟩ with the inner product's own
conjugation is Re(q k̄ e^{i(m+n)θ}): it depends on m + n. Conjugate in the score (which the real dot product does by
itself) or in the rotation, not both: `RotaryPositionalEmbedding` turns queries and keys the same way. Nor does the
plain form lose all positions, as the document says; it gives e^{i(m−n)θ}, which is 1 only where m = n.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.nn import linear, norms, rotary
from blockyard.standard import gated


class Linear(nn.Module):
    """y = W x without bias; W [out_features, in_features] from a truncated normal.

    On `nn.Module` itself, as the document asks; the start is that of `blockyard.nn.Linear`.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        device: where the weight lives.
        dtype: its type.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = linear.Linear(in_features, out_features, device=device, dtype=dtype).weight
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in_features] -> [..., out_features]."""
        return F.linear(x, self.weight)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}"


class Embedding(nn.Module):
    """A table of vectors looked up by token id; on `nn.Module` itself, as the document asks.

    Args:
        num_embeddings: number of tokens.
        embedding_dim: width of a vector.
        device: where the table lives.
        dtype: its type.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.weight = linear.Embedding(num_embeddings, embedding_dim, device=device, dtype=dtype).weight

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return LongTensor [...] -> [..., embedding_dim]."""
        return F.embedding(token_ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings} x {self.embedding_dim}"


class RMSNorm(norms.RMSNorm):
    """x / RMS(x) · gain, computed in float32.

    Args:
        d_model: width of the last axis.
        eps: added to the mean square.
        device: where the gain lives.
        dtype: its type.
    """

    def __init__(
        self,
        d_model: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, eps, device=device, dtype=dtype)


class SwiGLU(gated.SwiGLU):
    """W2 (SiLU(W1 x) ⊙ W3 x).

    Args:
        d_model: width of input and output.
        d_ff: hidden width; None = 8/3 · d_model rounded up to a multiple of 64.
        device: where the weights live.
        dtype: their type.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, d_ff=d_ff)
        self.to(device=device, dtype=dtype)


class RotaryPositionalEmbedding(rotary.RotaryPositionalEmbedding):
    """Turns neighbouring pairs of features by position · theta^(−2i/d_k).

    Args:
        theta: base of the wavelengths.
        d_k: width of queries and keys, even.
        max_seq_len: positions at or beyond it are an error.
    """

    def __init__(self, theta: float, d_k: int, max_seq_len: int) -> None:
        super().__init__(theta, d_k, max_seq_len, layout="interleaved")

    def forward(self, x: Tensor, token_positions: Tensor | None = None, *, offset: int = 0) -> Tensor:
        """Compute x [..., T, d_k], token_positions [T] or [B, T] (None: 0 … T − 1) -> the shape of x."""
        return super().forward(x, token_positions, offset=offset)
