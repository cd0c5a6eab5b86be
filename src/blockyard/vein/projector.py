"""The vein: a learnt subspace of r directions that a d-wide vector is projected to and rebuilt from.

The vein-flow document's `VeinProjector`, with one form it lacks: tied, where rebuilding is the transpose of an
orthonormal projection, so that project-then-reconstruct is a projection and its error lies between 0 and 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.attention_kernels import as_given
from blockyard.nn.derivatives import HandWritten, hand_written, keep, outlasting, transformed
from blockyard.nn.exporting import ConstantHolder
from blockyard.nn.linear import Linear, check_width, cut, weight_of
from blockyard.nn.norms import widened
from blockyard.nn.products import linear, product
from blockyard.nn.roles import Role
from blockyard.protocol.costs import Cost, linear_flops

Implementation = Literal["linear", "parameter"]
InitMethod = Literal["orthogonal", "normal", "xavier"]
VEIN = Role("matrix", group="vein")


def recommend_rank(d_model: int) -> int:
    """Return the document's rule of thumb, √d / 4 between 2 and 32: 6, 11, 16 for 768, 2048, 4096.

    It is a place to start, not a measured optimum: docs/vein.md has the figures.
    """
    if d_model < 1:
        raise InputError(f"d_model={d_model} should be at least 1")
    # The document prints 4 and 8 for 768 and 2048; its own formula gives 6 and 11.
    return max(2, min(32, int(math.sqrt(d_model) / 4)))


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise InputError unless the value is one of those known."""
    if value not in known:
        raise InputError(f"{name}={value!r} should be one of {', '.join(known)}")


class VeinLinear(Linear):
    """A vein's matrix: the optimizer may give it a learning rate of its own."""

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": VEIN}


class VeinProjector(ConstantHolder):
    """V: d_model -> rank and U: rank -> d_model, both linear and without bias.

    Args:
        d_model: width that is projected, of the residual stream or of one head.
        rank: number of directions, at least 1 and below d_model.
        implementation: linear (two modules) or parameter (two tensors); the same maths, the same size.
        init_method: orthogonal, normal (standard deviation 1/√d_model) or xavier.
        tied: U = Vᵀ with the rows of V kept orthonormal, whatever the optimizer does to the parameter.

    Shapes: project [..., d_model] -> [..., rank]; reconstruct [..., rank] -> [..., d_model].
    Raises: InputError for a rank outside 1 … d_model − 1 or an unknown choice.
    """

    def __init__(
        self,
        d_model: int,
        rank: int,
        implementation: Implementation = "linear",
        init_method: InitMethod = "orthogonal",
        *,
        tied: bool = False,
    ) -> None:
        super().__init__()
        check_choice("implementation", implementation, ("linear", "parameter"))
        check_choice("init_method", init_method, ("orthogonal", "normal", "xavier"))
        # As wide as what it projects, a vein would leave nothing out, and its error would say nothing.
        if not 1 <= rank < d_model:
            raise InputError(f"rank={rank} should be at least 1 and below the projected width {d_model}")
        self.d_model, self.rank, self.tied = d_model, rank, tied
        self.implementation, self.init_method = implementation, init_method
        # Tied, without gradients: the parameter last seen, and what was made of it.
        self._made: tuple[Tensor, Tensor] | None = None
        # 1 for directions in use, 0 for the others; None = all are, see `use_rank`.
        self.active: Tensor | None
        self.register_buffer("active", None)
        # Modules or tensors: the same numbers, and as many of them. (The document has tensors save memory.)
        if implementation == "linear":
            self.V: VeinLinear | nn.Parameter = VeinLinear(d_model, rank)
            self.U: VeinLinear | nn.Parameter | None = None if tied else VeinLinear(rank, d_model)
        else:
            self.V = nn.Parameter(torch.empty(rank, d_model))
            self.U = None if tied else nn.Parameter(torch.empty(d_model, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.stored():
            if self.init_method == "orthogonal":
                nn.init.orthogonal_(weight)
            elif self.init_method == "normal":
                # V x then has entries of the size of those of x.
                nn.init.normal_(weight, std=self.d_model**-0.5)
            else:
                nn.init.xavier_uniform_(weight)

    def parameter_roles(self) -> dict[str, Role]:
        return {} if self.implementation == "linear" else {"V": VEIN, "U": VEIN}

    def stored(self) -> list[Tensor]:
        """Return the parameters behind `matrices()`: V as it is stored, and U unless it is tied."""
        parts = [self.V] if self.U is None else [self.V, self.U]
        return [weight_of(part) if isinstance(part, nn.Module) else part for part in parts]

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Compute V [rank, d_model] and U [d_model, rank]. Ask once per forward: tied, they are made orthonormal here.

        Directions that are not in use are rows of V and columns of U that are 0.
        """
        stored = self.stored()
        v = self._orthonormal(stored[0]) if self.tied else stored[0]
        u = None if self.tied else stored[1]
        if self.active is not None:
            # Masked, not cut: shapes stay, and with them the optimizer's averages and a compiled graph.
            v, u = v * self.active.unsqueeze(-1), None if u is None else u * self.active
        return v, v.mT if u is None else u

    def use_rank(self, rank: int | None) -> None:
        """Use the first directions only, as a projector of that rank with the same parameters would.

        Tied, too: Gram-Schmidt makes a row from those before it. Shapes stay as they are, so a compiled model does not
        change, and a saved one remembers; the other directions have no gradient.

        Args:
            rank: directions in use, 1 … rank; None = all, for good.

        Raises: InputError for a number out of range.
        """
        if rank is None:
            self.active = None
            return
        if not 1 <= rank <= self.rank:
            raise InputError(f"rank={rank} in use should be at least 1 and at most the vein's rank {self.rank}")
        weight = self.stored()[0]
        if self.active is None:
            self.active = torch.empty(self.rank, dtype=weight.dtype, device=weight.device)
        with torch.no_grad():
            self.active.copy_(torch.arange(self.rank, device=weight.device) < rank)

    @property
    def rank_in_use(self) -> int | Tensor:
        """How many directions are in use: the rank, or, after `use_rank`, a scalar tensor (not read, so no wait)."""
        return self.rank if self.active is None else self.active.sum()

    def constants(self, like: Tensor) -> tuple[Tensor, ...]:
        # No runtime but torch has a Cholesky factor.
        return (self._orthonormal(self.stored()[0]).detach(),) if self.tied else ()

    def _orthonormal(self, weight: Tensor) -> Tensor:
        if self.held:
            return self.held[0]
        learns = torch.is_grad_enabled() and weight.requires_grad
        if learns or weight.device.type != "cpu" or torch.compiler.is_compiling() or transformed():
            return orthonormal_rows(weight)
        # A decoding step would spend most of its time here. Comparing is cheap, and notices whatever changed the
        # parameter; a version counter would miss what goes through `.data`.
        made = self._made
        if made is None or made[0].dtype != weight.dtype or not torch.equal(made[0], weight):
            # Kept for later calls, which may record gradients of something else.
            with outlasting(), torch.no_grad():
                made = self._made = (weight.clone(), orthonormal_rows(weight.clone()))
        return made[1]

    @torch.no_grad()
    def trim(self) -> slice:
        """Drop the directions that are not in use; returns which of them stayed."""
        # Gram-Schmidt makes a row from those before it: the first rows alone still give the same directions.
        kept = slice(0, int(self.rank_in_use))
        for name in ("V", "U"):
            part = getattr(self, name)
            if isinstance(part, nn.Module):
                cut(part, kept, inputs=name == "U")
            elif part is not None:
                setattr(self, name, nn.Parameter((part[kept] if name == "V" else part[:, kept]).clone()))
        self.rank, self._made, self.active = kept.stop, None, None
        return kept

    def project(self, x: Tensor) -> Tensor:
        """Compute z = V x."""
        check_width(x, self.d_model)
        return linear(x, self.matrices()[0])

    def reconstruct(self, z: Tensor) -> Tensor:
        """Compute x̂ = U z."""
        check_width(z, self.rank)
        return linear(z, self.matrices()[1])

    def forward(self, x: Tensor) -> Tensor:
        """Compute x̂ = U V x: the part of x that the vein keeps."""
        v, u = self.matrices()
        check_width(x, self.d_model)
        return linear(linear(x, v), u)

    def compute_reconstruction_error(self, x: Tensor, relative: bool = True) -> Tensor:
        """Return the distance of x [..., d_model] from the vein: [...], in at least float32.

        Args:
            x: the vectors.
            relative: ‖x − x̂‖ / ‖x‖ (0 for x = 0), which the document's thresholds are about; else ‖x − x̂‖, the
                document's formula, which grows as √d_model.
        """
        # What the vein cannot hold of x; tied, the part at right angles to its rows.
        rest = torch.linalg.vector_norm(widened(x) - widened(self(x)), dim=-1)
        return rest / _norm(x) if relative else rest

    def error_from(self, x: Tensor, z: Tensor, u: Tensor, relative: bool = True) -> Tensor:
        """Return the same error when z = V x is known already.

        Tied, Pythagoras gives it from two norms, without rebuilding x.
        """
        if not self.tied:
            rest = torch.linalg.vector_norm(widened(x) - widened(linear(z, u)), dim=-1)
            return rest / _norm(x) if relative else rest
        # ‖x − VᵀV x‖² = ‖x‖² − ‖V x‖². The difference loses digits where the vein holds nearly all of x: an error of
        # 1e-4 is then the smallest that float32 can tell from 0.
        kept = torch.linalg.vector_norm(widened(z), dim=-1)
        whole = _norm(x)
        # A root of 0 has no slope; of the least number its own is 1e-19.
        share = (1 - (kept / whole).square()).clamp(min=torch.finfo(whole.dtype).tiny).sqrt()
        return share if relative else share * whole

    def get_compression_ratio(self) -> float:
        """Compute d_model² / (2 · d_model · rank): a square matrix against V and U. 96 at 768 and 4, not 147."""
        return self.d_model / (2 * self.rank)

    def cost(self, rows: int, *, project: bool = True, reconstruct: bool = True) -> Cost:
        """Return parameters, and FLOPs for `rows` vectors (making V orthonormal is a product of its own)."""
        shapes = [(self.d_model, self.rank)] * project + [(self.rank, self.d_model)] * reconstruct
        # W Wᵀ and L⁻¹ W. Inverting L is no matrix product to `FlopCounterMode`, which the formula is tested against.
        orthonormal = 2 * linear_flops(self.rank, (self.d_model, self.rank)) if self.tied else 0
        parameters = self.d_model * self.rank * (1 if self.tied else 2)
        return Cost(parameters, linear_flops(rows, *shapes) + orthonormal)

    def extra_repr(self) -> str:
        return f"{self.d_model} -> {self.rank}, tied={self.tied}, implementation={self.implementation}"


def orthonormal_rows(weight: Tensor) -> Tensor:
    """Return the rows of a wide matrix [r, d] made orthonormal, as Gram-Schmidt would, differentiably.

    With W Wᵀ = L Lᵀ, the rows of L⁻¹ W are orthonormal and span the same space.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and weight.requires_grad):
        return _orthonormal_rows(weight)[0]
    return hand_written(_OrthonormalRows, weight)


def _orthonormal_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows, and L⁻¹ in at least float32."""
    # Autocast would form W Wᵀ in bfloat16, and the rows would be orthonormal to two digits only.
    with as_given(weight.device):
        wide = widened(weight)
        # r × r: making V orthonormal costs what projecting r further rows does.
        gram = product(wide, wide)
        # A ridge at rounding size keeps a nearly dependent set of rows from failing.
        ridge = torch.finfo(wide.dtype).eps * gram.diagonal().mean().detach()
        gram = gram + ridge * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        # `_ex` does not look whether it worked, which would stall a GPU; the ridge sees to it that it does.
        lower = torch.linalg.cholesky_ex(gram).L
        # L⁻¹ by itself and a product take half the time of solving for all columns of W, and backward wants it again.
        units = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        inverse = torch.linalg.solve_triangular(lower, units, upper=False)
        return product(inverse, wide.mT).to(weight.dtype), inverse


class _OrthonormalRows(HandWritten):
    """Q = L⁻¹ W, whose backward makes two products with Q and one with L⁻¹ instead of going back step by step."""

    @staticmethod
    def plain(weight: Tensor) -> Tensor:
        return _orthonormal_rows(weight)[0]

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        rows, inverse = _orthonormal_rows(weight)
        keep(ctx, (weight,), (), rows, inverse)
        return rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        _, rows, inverse = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            # dQ = A - Φ(A Qᵀ + Q Aᵀ) Q with A = L⁻¹ dW and Φ = lower triangle with half the diagonal, so that
            # dW = L⁻ᵀ (dQ - (P + Pᵀ) Q) with P = Φ(dQ Qᵀ).
            wide, into = widened(rows), widened(grad)
            inside = product(into, wide).tril_()
            inside.diagonal().mul_(0.5)
            left = product(-(inside + inside.mT), wide.mT, into)
            return product(inverse.mT, left.mT).to(grad.dtype)


def _norm(x: Tensor) -> Tensor:
    """Compute ‖x‖ over the last axis; tiny instead of 0, so that 0/0 becomes 0."""
    wide = widened(x)
    return torch.linalg.vector_norm(wide, dim=-1).clamp(min=torch.finfo(wide.dtype).tiny)
