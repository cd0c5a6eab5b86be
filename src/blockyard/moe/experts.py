"""A bank of experts: n FFNs of one class, run on the rows that were sent to each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.moe.grouped import GroupedLinear, Rows
from blockyard.nn.dropout import Dropout, mix
from blockyard.nn.linear import Linear
from blockyard.protocol.costs import Cost, cost_of, linear_flops


class StackedExperts(nn.Module):
    """Experts as one module whose `Linear` layers hold one matrix per expert.

    Args:
        experts: the experts; their class says by `stackable` that its forward is made of calls of its `Linear` layers
            and of operations on single rows.
        call: the method that computes, "forward" or a part of it.
    """

    def __init__(self, experts: Sequence[nn.Module], call: str = "forward") -> None:
        super().__init__()
        self.n_experts, self.call = len(experts), call
        self.body = experts[0]
        for name, module in list(self.body.named_modules()):
            if isinstance(module, Linear):
                parent, _, leaf = name.rpartition(".")
                members: list[Any] = [expert.get_submodule(name) for expert in experts]
                # The first expert's code, with every matrix replaced by all experts' matrices: act and gate work row
                # by row.
                setattr(self.body.get_submodule(parent), leaf, GroupedLinear(members))

    @property
    def linears(self) -> list[GroupedLinear]:
        return [m for m in self.body.modules() if isinstance(m, GroupedLinear)]

    def run(self, x: Tensor, rows: Rows, keys: Tensor | None) -> Tensor:
        """Return all experts on their rows: x [N, d] sorted by expert, or padded [E, C, d].

        Args:
            keys: the rows' dropout keys, of x's leading shape.
        """
        linears = self.linears
        for linear in linears:
            # Set for one call alone, so that a module copied or saved holds none.
            linear.rows = rows
        try:
            with keyed(self.body, keys):
                return getattr(self.body, self.call)(x)
        finally:
            for linear in linears:
                linear.rows = None

    def each(self) -> list[Callable[[Tensor, Tensor | None], Tensor]]:
        """Return the experts as functions of (rows, dropout keys), one by one; every matrix is taken apart once."""
        linears = self.linears
        parts = [linear.parts() for linear in linears]

        def expert(e: int) -> Callable[[Tensor, Tensor | None], Tensor]:
            def compute(x: Tensor, keys: Tensor | None) -> Tensor:
                for linear, part in zip(linears, parts):
                    linear.only = part[e]
                try:
                    with keyed(self.body, keys):
                        return getattr(self.body, self.call)(x)
                finally:
                    for linear in linears:
                        linear.only = None

            return compute

        return [expert(e) for e in range(self.n_experts)]

    def cost(self, tokens: int) -> Cost:
        """Return the FLOPs of one expert."""
        formula = {"forward": "cost", "core": "core_cost"}[self.call]
        return getattr(self.body, formula)(tokens)

    def zero_init_output(self) -> None:
        # Any: an FFN, whose methods nn.Module does not know of.
        body: Any = self.body
        body.zero_init_output()


class SeparateExperts(nn.ModuleList):
    """Experts of any class, each a module of its own, called with its rows alone."""

    def __init__(self, experts: Sequence[nn.Module], d_in: int) -> None:
        super().__init__(experts)
        self.d_in = d_in

    def run(self, x: Tensor, rows: Rows, keys: Tensor | None) -> Tensor:
        """Return all experts on their rows of x [N, d], sorted by expert. In training an expert without rows is called,
        too: a parameter without a gradient would make ranks wait for one another."""
        if torch.compiler.is_compiling():
            from blockyard.nn.uncompiled import uncompiled

            return uncompiled(self._run, x, rows, keys)
        return self._run(x, rows, keys)

    def _run(self, x: Tensor, rows: Rows, keys: Tensor | None) -> Tensor:
        sizes = rows.sizes or tuple(torch.diff(rows.ends, prepend=rows.ends.new_zeros(1)).tolist())
        parts, start = [], 0
        for size, expert in zip(sizes, self.each()):
            segment = slice(start, start + size)
            if size or torch.is_grad_enabled():
                parts.append(expert(x[segment], None if keys is None else keys[segment]))
            start += size
        if start < x.shape[0]:
            # Dropped choices lie behind the last expert's.
            parts.append(torch.zeros_like(x[start:]))
        return torch.cat([part.to(parts[0].dtype) for part in parts])

    def each(self) -> list[Callable[[Tensor, Tensor | None], Tensor]]:
        """Return the experts as functions of (rows, dropout keys)."""

        def wrap(module: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
            def compute(x: Tensor, keys: Tensor | None) -> Tensor:
                with keyed(module, keys):
                    return module(x)

            return compute

        return [wrap(module) for module in self]

    def cost(self, tokens: int) -> Cost:
        """Return the FLOPs of one expert."""
        return cost_of(self[0], tokens, self.d_in)

    def zero_init_output(self) -> None:
        members: list[Any] = list(self)
        for expert in members:
            if hasattr(expert, "zero_init_output"):
                expert.zero_init_output()


class GatedExperts(nn.ModuleList):
    """Experts that every token passes, their sum weighted by one gate σ(w·x) (Qwen2-MoE, arXiv 2407.10671, 2.2.2).

    Args:
        experts: modules of one class.
        d_in: width of what they read; complex input is gated by its magnitudes, as it is routed.
        call: the method of theirs that computes, "forward" or a part of it.
    """

    def __init__(self, experts: Sequence[nn.Module], d_in: int, call: str = "forward") -> None:
        super().__init__(experts)
        self.call = call
        # One half for every token at the start.
        self.gate = nn.Parameter(torch.zeros(d_in))

    def forward(self, x: Tensor) -> Tensor:
        magnitudes = x.abs() if x.is_complex() else x
        gate = F.linear(magnitudes, self.gate.to(magnitudes.dtype)[None]).sigmoid()
        # Added up before the gate, which is one for all of them.
        first, *others = (getattr(expert, self.call)(x) for expert in self)
        return sum(others, start=first) * gate

    def gate_cost(self, tokens: int) -> Cost:
        return Cost(self.gate.numel(), linear_flops(tokens, (self.gate.numel(), 1)))


@contextlib.contextmanager
def keyed(module: nn.Module, keys: Tensor | None) -> Iterator[None]:
    """Let dropouts within take their masks from the rows' keys; they are set back to their own after."""
    if keys is None:
        yield
        return
    dropouts = [m for m in module.modules() if isinstance(m, Dropout) and m.keys is not None]
    before = [m.keys for m in dropouts]
    for number, dropout in enumerate(dropouts):
        # Each dropout of the expert has masks of its own.
        dropout.keys = mix(keys + number)
    try:
        yield
    finally:
        for dropout, own in zip(dropouts, before):
            dropout.keys = own


def row_keys(module: nn.Module, shape: torch.Size) -> Tensor | None:
    """Return dropout keys per token of an input [B, ..., d], from the keys per row of the batch; None where none are
    set."""
    for dropout in module.modules():
        if isinstance(dropout, Dropout) and dropout.p > 0 and dropout.training and dropout.keys is not None:
            inner = shape[1:-1].numel()
            token = torch.arange(inner, device=dropout.keys.device)
            return mix(dropout.keys[:, None] ^ mix(token)).flatten()
    return None
