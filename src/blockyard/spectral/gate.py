"""The gate of spectral mixing: from a summary of the queries to complex anchors along the frequency axis."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.nn.roles import Role
from blockyard.protocol.costs import linear_flops

TAPS = 4  # neighbours on each side that the Toeplitz option mixes


class ComplexModReLU(nn.Module):
    """z -> ReLU(|z| + b) · z / |z|: scales the magnitude, keeps the phase (arXiv 1511.06464).

    Args:
        num_features: width of the last axis; one bias each, 0 at the start, where it changes nothing.
        eps: keeps the phase of 0 defined.

    Shapes: z [..., num_features], complex -> the same.
    """

    def __init__(self, num_features: int, eps: float = 1e-6) -> None:
        super().__init__()
        at_least(1, num_features=num_features)
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, z: Tensor) -> Tensor:
        if not z.is_complex():
            raise InputError(f"z has dtype {z.dtype}, expected a complex type")
        return torch.complex(*mod_relu(z.real, z.imag, self.bias, self.eps))


def mod_relu(re: Tensor, im: Tensor, bias: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """modReLU on real and imaginary parts; bias broadcasts to them."""
    # eps keeps the slope finite where z is 0.
    magnitude = (re.square() + im.square() + eps * eps).sqrt()
    scale = F.relu(magnitude + bias.to(re.dtype)) / magnitude
    return re * scale, im * scale


class SpectralGate(nn.Module):
    """Anchors = modReLU(Toeplitz(MLP(LN(q̄)) + base)), per head.

    The MLP is shared by the heads, whose queries differ; `base` is each group's gate for an average input. It starts as
    smoothings with time constants from a fraction of a position to `reach`, so that groups differ from the beginning.

    Args:
        n_heads: number of heads.
        head_dim: width of a head's query.
        groups: gates per head.
        buckets: anchors per gate.
        d_gate: hidden width of the MLP.
        toeplitz: add a convolution along the anchors, 2·4 + 1 complex taps, 0 at the start.
        frequencies: of the anchors, in radians per position, [buckets].
        reach: the longest time constant at the start, in positions.
        causal: whether the starting kernels are one-sided.

    Shapes: descriptor [..., n_heads·head_dim] -> anchors [..., n_heads·groups, 2·buckets], real parts first.
    """

    def __init__(
        self,
        n_heads: int,
        head_dim: int,
        groups: int,
        buckets: int,
        d_gate: int,
        *,
        toeplitz: bool,
        frequencies: Tensor,
        reach: float,
        causal: bool,
    ) -> None:
        super().__init__()
        self.n_heads, self.head_dim, self.groups, self.buckets = n_heads, head_dim, groups, buckets
        self.norm_weight = nn.Parameter(torch.ones(head_dim))
        self.norm_bias = nn.Parameter(torch.zeros(head_dim))
        self.hidden_weight = nn.Parameter(torch.empty(d_gate, head_dim))
        self.hidden_bias = nn.Parameter(torch.zeros(d_gate))
        self.out_weight = nn.Parameter(torch.empty(groups * 2 * buckets, d_gate))
        for weight in (self.hidden_weight, self.out_weight):
            # Glorot's variance, 2 / (in + out), as `Linear` has it.
            nn.init.trunc_normal_(weight, std=(std := math.sqrt(2 / sum(weight.shape))), a=-3 * std, b=3 * std)
        base = starting_gates(n_heads * groups, frequencies, reach, causal).unflatten(0, (n_heads, -1))
        self.base = nn.Parameter(base.to(self.hidden_weight.device))
        # 0: modReLU starts as the identity.
        self.mod_bias = nn.Parameter(torch.zeros(n_heads, groups, buckets))
        self.taps = nn.Parameter(torch.zeros(2, 2 * TAPS + 1)) if toeplitz else None

    def parameter_roles(self) -> dict[str, Role]:
        # A group of its own: decaying the gate more than the rest is the cure for a spectrum that oscillates.
        matrix, vector = Role("matrix", group="gate"), Role("vector")
        vectors = ("norm_weight", "norm_bias", "hidden_bias", "base", "mod_bias", "taps")
        return {"hidden_weight": matrix, "out_weight": matrix, **dict.fromkeys(vectors, vector)}

    def forward(self, descriptor: Tensor) -> Tensor:
        # At least float32 whatever the weights are kept in: the spectral part is an island of precision.
        q = descriptor.unflatten(-1, (self.n_heads, self.head_dim))
        q = q if q.dtype == torch.float64 else q.float()
        return self._anchors(
            F.layer_norm(q, (self.head_dim,), self._wide(self.norm_weight, q), self._wide(self.norm_bias, q))
        )

    def average(self) -> Tensor:
        """The anchors of a descriptor whose normalised form is 0, [n_heads·groups, 2·buckets]."""
        weight = self.base
        zero = torch.zeros(self.n_heads, self.head_dim, device=weight.device)
        return self._anchors(zero.to(torch.float64) if weight.dtype == torch.float64 else zero)

    def _anchors(self, q: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(q, self._wide(self.hidden_weight, q), self._wide(self.hidden_bias, q)))
        raw = F.linear(hidden, self._wide(self.out_weight, q)).unflatten(-1, (self.groups, 2, self.buckets))
        re, im = (raw + self._wide(self.base, q)).unbind(-2)
        if self.taps is not None:
            re, im = self._toeplitz(re, im, self._wide(self.taps, q))
        re, im = mod_relu(re, im, self.mod_bias)
        return torch.cat([re, im], dim=-1).flatten(-3, -2)

    def _wide(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter.to(like.dtype)

    def _toeplitz(self, re: Tensor, im: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
        """g + t∗g along the anchors, nothing beyond their ends."""
        along = torch.arange(self.buckets, device=taps.device)
        # A banded matrix says it with products that are there already, complex taps included.
        offset = along[None, :] - along[:, None] + TAPS  # into anchor column from anchor row
        inside = (offset >= 0) & (offset <= 2 * TAPS)
        t_re, t_im = (taps[:, offset.clamp(0, 2 * TAPS)] * inside).unbind(0)
        return re + re @ t_re - im @ t_im, im + re @ t_im + im @ t_re

    def flops(self, descriptors: int) -> int:
        """FLOPs for so many descriptors."""
        d_gate, out = self.hidden_weight.shape[0], self.out_weight.shape[0]
        total = linear_flops(descriptors * self.n_heads, (self.head_dim, d_gate), (d_gate, out))
        if self.taps is not None:
            total += 4 * linear_flops(descriptors * self.n_heads * self.groups, (self.buckets, self.buckets))
        return total

    def extra_repr(self) -> str:
        return f"heads={self.n_heads}, groups={self.groups}, buckets={self.buckets}"


def starting_gates(kernels: int, frequencies: Tensor, reach: float, causal: bool) -> Tensor:
    """Gates of exponential smoothings of unit energy, [kernels, 2, buckets] (real, imaginary).

    Args:
        kernels: how many; their time constants rise geometrically from 1/4 of a position to `reach`.
        frequencies: radians per position at which they are taken, [buckets], on the CPU.
        reach: the longest time constant, in positions.
        causal: a^l for lags l ≥ 0, else a^|l|.
    """
    constants = torch.logspace(
        math.log10(0.25), math.log10(max(reach, 0.25)), kernels, dtype=torch.float64, device="cpu"
    )
    # a^l has fallen to 1/e after that many positions.
    a = torch.exp(-1 / constants)[:, None]
    turn = torch.polar(torch.ones_like(frequencies), -frequencies)[None]
    if causal:
        # Σ a^l e^{−iωl} = 1 / (1 − a e^{−iω}), and Σ a^{2l} = 1 / (1 − a²).
        gates = (1 - a * a).sqrt() / (1 - a * turn)
    else:
        # Two-sided the sum is real, (1 − a²) / (1 − 2a cos ω + a²), and Σ a^{2|l|} = (1 + a²) / (1 − a²).
        gates = ((1 - a * a) / (1 + a * a)).sqrt() * (1 - a * a) / (1 - 2 * a * turn.real + a * a) * (1 + 0j)
    return torch.view_as_real(gates).transpose(-1, -2).to(torch.get_default_dtype()).contiguous()
