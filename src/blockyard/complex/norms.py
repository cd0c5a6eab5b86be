"""Normalisation of complex vectors over their features, and modReLU; f(e^{ia}z) = e^{ia}f(z) holds for all of them.

`rms` divides by the root mean square magnitude. `layer` centres and scales the magnitudes as the complex document does:
about half of the centred magnitudes are negative there, which turns those features by π; the symmetry holds, "keeps
the phase" does not. `whiten` makes real and imaginary parts uncorrelated and of equal variance (Trabelsi et al. 2018,
arXiv 1705.09792, over the features of one vector instead of a batch), with a real gain instead of their 2 × 2 one,
which would break the symmetry.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from blockyard.complex.linear import ComplexModule, check_complex, from_pairs, magnitude, to_pairs
from blockyard.errors import InputError, one_of
from blockyard.nn.norms import rms_norm

ComplexNormKind = Literal["rms", "layer", "whiten"]


class _ComplexNorm(ComplexModule):
    """A norm over the last axis, or over each of `groups` equal parts of it, with one real gain per feature.

    Args:
        d_model: width of the last axis, in complex numbers.
        eps: added to the mean square.
        groups: parts that are normalised each by itself, such as the heads; it divides d_model.

    Shapes: z complex [..., d_model] -> the same shape and dtype.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, *, groups: int = 1) -> None:
        super().__init__()
        if groups < 1 or d_model % groups:
            raise InputError(f"groups={groups} should divide d_model={d_model}")
        self.d_model, self.eps, self.groups = d_model, eps, groups
        self.weight = nn.Parameter(torch.ones(d_model))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, z: Tensor) -> Tensor:
        check_complex(z, self.d_model, "z")
        if self.groups == 1:
            return self._norm(z, self.weight)
        return self._norm(z.unflatten(-1, (self.groups, -1)), self.weight.view(self.groups, -1)).flatten(-2)

    def _norm(self, z: Tensor, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.d_model}, eps={self.eps}" + (f", groups={self.groups}" if self.groups > 1 else "")


class ComplexRMSNorm(_ComplexNorm):
    """z / √(mean |z|² + eps) · γ with γ real.

    Args:
        d_model: width of the last axis, in complex numbers.
        eps: added to the mean square.
        groups: parts that are normalised each by itself; divides d_model.
    """

    def _norm(self, z: Tensor, weight: Tensor) -> Tensor:
        return from_pairs(rms_norm_pairs(to_pairs(z), weight, self.eps))


def rms_norm_pairs(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Complex RMS norm of interleaved reals [..., 2d] with real gains [..., d]."""
    # The mean over 2d parts is half of the mean of |z|² over d: the real norm with half of eps, and √½ in its gain.
    return rms_norm(x, (weight * 0.5**0.5).repeat_interleave(2, dim=-1), eps / 2)


class ComplexLayerNorm(_ComplexNorm):
    """((|z| − mean) / √(var + eps) · γ + β) · z / |z|: the magnitudes centred and scaled, γ and β real.

    Args:
        d_model: width of the last axis, in complex numbers.
        eps: added to the variance, and to |z|², which makes the norm smooth at z = 0.
        groups: parts that are normalised each by itself; divides d_model.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, *, groups: int = 1) -> None:
        super().__init__(d_model, eps, groups=groups)
        self.bias = nn.Parameter(torch.zeros(d_model))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.bias)

    def _norm(self, z: Tensor, weight: Tensor) -> Tensor:
        size = magnitude(z, self.eps)
        # A magnitude below the mean comes out negative, and turns its feature by π.
        centred = size - size.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()
        return z * ((centred / deviation * weight + self.bias.view_as(weight)) / size)


class ComplexWhitenNorm(_ComplexNorm):
    """V^{-1/2} (z − mean) · γ, V the 2 × 2 covariance of real and imaginary parts over the features; E|·|² = γ².

    Args:
        d_model: width of the last axis, in complex numbers; the covariance of a single feature is singular.
        eps: added to the diagonal of V.
        groups: parts that are normalised each by itself; divides d_model.
    """

    def _norm(self, z: Tensor, weight: Tensor) -> Tensor:
        centred = torch.view_as_real(z - z.mean(-1, keepdim=True))
        a, b = centred.unbind(-1)
        # Each part carries half of |z|², and so half of eps.
        half = self.eps / 2
        aa, bb = a.square().mean(-1, keepdim=True) + half, b.square().mean(-1, keepdim=True) + half
        ab = (a * b).mean(-1, keepdim=True)
        # The inverse square root of [[aa, ab], [ab, bb]] in closed form: with s = √det and t = √(trace + 2s),
        # V^{1/2} = (V + s) / t, and inverting a 2 × 2 matrix swaps its diagonal.
        s = (aa * bb - ab.square()).clamp(min=torch.finfo(aa.dtype).tiny).sqrt()
        t = (aa + bb + 2 * s).sqrt() * s * 2**0.5
        # The √2 in t leaves each part a variance of ½, so that the mean of |·|² is γ².
        white = torch.stack([((bb + s) * a - ab * b) / t, ((aa + s) * b - ab * a) / t], dim=-1)
        return torch.view_as_complex(white * weight.unsqueeze(-1))


COMPLEX_NORMS: dict[str, type[_ComplexNorm]] = {
    "rms": ComplexRMSNorm,
    "layer": ComplexLayerNorm,
    "whiten": ComplexWhitenNorm,
}


def make_complex_norm(kind: str, d_model: int, eps: float = 1e-5, *, groups: int = 1) -> nn.Module:
    """The complex norm of a name: `rms`, `layer` or `whiten`.

    Raises:
        InputError: for another name.
    """
    one_of(COMPLEX_NORMS, norm=kind)
    return COMPLEX_NORMS[kind](d_model, eps, groups=groups)


class ModReLU(ComplexModule):
    """ReLU(|z| + b) · z / |z|: a dead zone around 0 where b < 0 (Arjovsky et al. 2016, arXiv 1511.06464).

    Args:
        d_model: number of features, each with its own real b.
        bias: value of b at the start.
        eps: added to |z|²; it makes the function smooth at z = 0.

    Shapes: z complex [..., d_model] -> the same.
    """

    def __init__(self, d_model: int, bias: float = 0.0, *, eps: float = 1e-6) -> None:
        super().__init__()
        self.d_model, self.start, self.eps = d_model, bias, eps
        self.bias = nn.Parameter(torch.full((d_model,), bias))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.bias, self.start)

    def forward(self, z: Tensor) -> Tensor:
        check_complex(z, self.d_model, "z")
        size = magnitude(z, self.eps)
        # Only the length is thresholded, so the angle passes.
        return z * (torch.relu(size + self.bias) / size)

    def extra_repr(self) -> str:
        return f"{self.d_model}"
