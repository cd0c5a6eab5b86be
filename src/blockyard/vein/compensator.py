"""Normal compensation: tokens far from the vein get a small correction along learnt directions.

The vein-flow document's `NormalCompensator`: x + 1[eps > tau] · Σ_j alpha_scale · σ(gate_j(x)) · u_j (v_jᵀ x).

Definition in loops and float64: tests/vein/twin.py.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.derivatives import hidden
from blockyard.nn.linear import Linear, check_width, untouched
from blockyard.nn.norms import LayerNorm
from blockyard.nn.roles import Role
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.vein.projector import check_choice

Form = Literal["auto", "dense", "gather"]


class Gate(Linear):
    """One logit per correction; too narrow to be a matrix to an optimizer."""

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("vector")}


class NormalCompensator(nn.Module):
    """Corrects the tokens whose reconstruction error exceeds a threshold.

    Args:
        d_model: width of the residual stream.
        s: number of correction directions; 0 corrects nothing and has no parameters.
        tau: threshold on the error, in the error's own units (docs/vein.md; `VFTBlock.calibrate_tau` finds it).
        alpha_scale: largest weight of a direction.
        gate_norm: normalise x before the gate reads it (the document's); without, gate and directions are one product.
        form: dense computes every token, gather only those over tau; auto gathers on a CPU below half of them.

    Shapes: x [..., d_model], eps [...] -> x's shape and dtype.
    Raises: InputError for s < 0, or an eps that does not have one value per token.
    """

    def __init__(
        self,
        d_model: int,
        s: int = 1,
        tau: float = 0.18,
        alpha_scale: float = 0.5,
        *,
        gate_norm: bool = True,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        if s < 0:
            raise InputError(f"s={s} should be at least 0 (0 corrects nothing)")
        check_choice("form", form, ("auto", "dense", "gather"))
        self.d_model, self.s, self.alpha_scale, self.form = d_model, s, alpha_scale, form
        # A buffer: saved with the weights, and changed by a schedule without recompiling.
        self.tau: Tensor
        self.register_buffer("tau", torch.tensor(float(tau), dtype=torch.float32))
        if s > 0:
            # The document's start: small, and so are the first corrections.
            self.U = nn.Parameter(torch.randn(s, d_model) * 0.02)
            self.V = nn.Parameter(torch.randn(s, d_model) * 0.02)
            self.gate_norm = LayerNorm(d_model) if gate_norm else None
            self.gate = Gate(d_model, s, bias=True)

    def parameter_roles(self) -> dict[str, Role]:
        return {"U": Role("vector"), "V": Role("vector")} if self.s else {}

    def set_tau(self, tau: float) -> None:
        """Change the threshold in place."""
        self.tau.fill_(tau)

    def forward(self, x: Tensor, eps: Tensor) -> Tensor:
        check_width(x, self.d_model)
        if eps.shape != x.shape[:-1]:
            raise InputError(f"eps has shape {tuple(eps.shape)}, expected one value per token, {tuple(x.shape[:-1])}")
        if self.s == 0:
            return x
        rows, over = x.reshape(-1, self.d_model), (eps > self.tau).reshape(-1)
        # Few tokens are fetched, corrected and put back; from about half of them on a product for all is cheaper.
        if self._gathers(over):
            index = over.nonzero().squeeze(-1)
            chosen = rows[index]
            out = rows.index_add(0, index, (self._strengths(chosen) @ self.U).to(x.dtype))
        else:
            # 1[eps > tau] has no slope: who is corrected is not learnt, only how.
            strengths = self._strengths(rows) * over.unsqueeze(-1)
            out = torch.addmm(rows, strengths.to(x.dtype), self.U.to(x.dtype))
        return out.view(x.shape)

    def _strengths(self, x: Tensor) -> Tensor:
        """alpha_scale · σ(gate_j(x)) · v_jᵀ x for each direction: [rows, s]."""
        if self.gate_norm is None and untouched(self.gate):
            # v_jᵀ x and the gates' logits from one product, d_model -> 2 s.
            along, logits = F.linear(x, torch.cat([self.V, self.gate.weight])).split(self.s, dim=-1)
            logits = logits + self.gate.bias
        else:
            along, logits = F.linear(x, self.V), self.gate(x if self.gate_norm is None else self.gate_norm(x))
        return self.alpha_scale * torch.sigmoid(logits) * along

    def _gathers(self, over: Tensor) -> bool:
        if hidden(over):
            return False
        if self.form != "auto":
            return self.form == "gather"
        # Counting stalls a GPU and breaks a compiled graph.
        if torch.compiler.is_compiling() or over.device.type != "cpu":
            return False
        return 2 * int(over.sum()) < over.numel()

    def zero_init_output(self) -> None:
        if self.s:
            nn.init.zeros_(self.U)

    def cost(self, tokens: int) -> Cost:
        """Parameters, and the FLOPs of the dense form."""
        width = self.d_model
        flops = linear_flops(tokens, *[(width, self.s)] * 2, (self.s, width)) if self.s else 0
        return Cost(sum(p.numel() for p in self.parameters()), flops)

    def extra_repr(self) -> str:
        return f"s={self.s}, alpha_scale={self.alpha_scale}"
