"""Linear maps and token embeddings with the initialisation of the basics document (section 3.4)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.roles import Role


class Linear(nn.Module):
    """y = x Wᵀ (+ b), with W stored as [d_out, d_in].

    Args:
        d_in: width of the input.
        d_out: width of the output.
        bias: add a bias, zero at the start (off: most language models have none).

    Shapes: x [..., d_in] -> [..., d_out].
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(d_out, d_in, **factory))
        self.bias = nn.Parameter(torch.zeros(d_out, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal, variance 2 / (d_in + d_out), cut at three standard deviations."""
        d_out, d_in = self.weight.shape
        std = math.sqrt(2.0 / (d_in + d_out))
        # trunc_normal_ takes the cut in absolute units, not in standard deviations.
        nn.init.trunc_normal_(self.weight, std=std, a=-3 * std, b=3 * std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        d_out, d_in = self.weight.shape
        return f"{d_in} -> {d_out}{', bias' if self.bias is not None else ''}"


class StackedLinear(Linear):
    """Several maps of one input with their weights stacked in one matrix: one product makes all outputs.

    To the optimizer they stay the maps that they are (`Role.parts`): orthogonalised as one matrix, a direction that
    several of them need would be shared out among them.

    Args:
        d_in: width of the input.
        d_outs: widths of the outputs, which lie side by side.
        bias: as in `Linear`.

    Shapes: x [..., d_in] -> [..., sum of d_outs].
    """

    def __init__(self, d_in: int, d_outs: tuple[int, ...], *, bias: bool = False) -> None:
        super().__init__(d_in, sum(d_outs), bias=bias)
        self.d_outs = d_outs

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("matrix", parts=self.d_outs)}


def plain(*modules: nn.Module) -> bool:
    """Return whether these are bare `Linear`s without bias, so that their weights alone say what calling them would
    give.

    One that was replaced (by an adapter such as LoRA), parametrised or hooked has to be called.
    """
    return all(type(m) is Linear and m.bias is None and not hooked(m) for m in modules)


def hooked(module: nn.Module) -> bool:
    """Return whether someone listens to calls of this module, so that it has to be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class Embedding(nn.Module):
    """A table of token vectors, looked up by id; N(0, 1) cut at ±3 at the start.

    Args:
        vocab_size: number of rows.
        d_model: width of a row.

    Shapes: ids [...] (integers) -> [..., d_model].
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.trunc_normal_(self.weight, std=1.0, a=-3.0, b=3.0)

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("embedding")}

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]} x {self.weight.shape[1]}"


def check_width(x: Tensor, d_model: int) -> None:
    """Raise InputError unless the last axis of x is d_model wide."""
    if x.ndim < 1 or x.shape[-1] != d_model:
        raise InputError(f"x has shape {tuple(x.shape)}, expected [..., {d_model}]")
