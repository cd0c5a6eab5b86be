"""Bringing tokens to their experts and back: the choices sorted by expert, and the inverse for the way home.

Both ways are gathers, forward and backward: the indices are permutations, so no sum has to be scattered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockyard.moe.grouped import Kernel, Rows
from blockyard.nn.derivatives import HandWritten, hand_written

# Padded to a multiple of this, rows fill the tiles of the CPU's matrix units.
TILE = 32


@dataclass(frozen=True)
class Plan:
    """The choices [N, k] of N tokens, laid out as rows for the experts.

    Args:
        rows: which row belongs to which expert.
        order: [N · k] the choices (token · k + j) sorted by expert.
        row: [N · k] the row of each choice; 0 for a dropped one.
        k: choices per token.
        kept: [N, k] bool, the choices that are computed; None for all.
        filled: [N · k] padded form only: the row of each sorted choice; E · C, one too many, for dropped ones.
        source: [E · C] padded form only: the token that fills each row; any for rows of padding, whose results nobody
            takes and whose gradients are 0.
        shape: padded form only: E and C.
    """

    rows: Rows
    order: Tensor
    row: Tensor
    k: int
    kept: Tensor | None = None
    filled: Tensor | None = None
    source: Tensor | None = None
    shape: tuple[int, int] | None = None

    @property
    def token(self) -> Tensor:
        """[N · k] the token of each sorted choice."""
        return self.order // self.k

    def gather(self, x: Tensor) -> Tensor:
        """Return tokens [N, d] as rows [N · k, d], padded [E, C, d]."""
        if self.source is None or self.shape is None:
            return x.index_select(0, self.token)
        return x.index_select(0, self.source).view(*self.shape, x.shape[1])

    def lay(self, choices: Tensor) -> Tensor:
        """Return sorted choices [N · k, ...] as rows: the same, or padded [E, C, ...]."""
        if self.filled is None or self.shape is None:
            return choices
        experts, capacity = self.shape
        padded = choices.new_zeros(experts * capacity + 1, *choices.shape[1:])
        return padded.index_copy_(0, self.filled, choices)[:-1].view(experts, capacity, *choices.shape[1:])

    def take(self, rows: Tensor) -> Tensor:
        """Return rows as the tokens' choices [N, k, d]."""
        width = rows.shape[-1]
        return rows.reshape(-1, width).index_select(0, self.row).view(-1, self.k, width)


def counts_of(experts: Tensor, n_experts: int, kept: Tensor | None) -> Tensor:
    """Return [E] how many of the choices fell on each expert, as integers."""
    flat = experts.flatten()
    ones = torch.ones_like(flat) if kept is None else kept.flatten().to(flat.dtype)
    return torch.zeros(n_experts, dtype=flat.dtype, device=flat.device).scatter_add_(0, flat, ones)


def plan(experts: Tensor, counts: Tensor, kernel: Kernel, kept: Tensor | None = None) -> Plan:
    """Sort the choices by expert.

    Args:
        experts: [N, k].
        counts: [E] how many of the kept ones fell on each expert.
        kernel: how the products will be computed.
        kept: [N, k] bool, the choices to compute; None for all.
    """
    (n, k), n_experts = experts.shape, counts.shape[0]
    flat = experts.flatten()
    if kept is not None:
        # Dropped ones are sorted behind the last expert's.
        flat = torch.where(kept.flatten(), flat, n_experts)
    # Stable: within an expert tokens stay in their order, whatever else is in the batch.
    order = flat.argsort(stable=True)
    ends = counts.cumsum(0)
    # How many there are is known only when it runs; an accelerator would have to wait for it, too.
    unknown = torch.compiler.is_compiling() or (kernel == "grouped" and flat.is_cuda)
    rows = Rows(kernel, ends, None if unknown else tuple(counts.tolist()), whole=kept is None)
    at = torch.arange(n * k, device=flat.device)
    # The inverse permutation: the way home is a gather like the way there.
    row = torch.empty_like(order).scatter_(0, order, at)
    if kernel != "padded":
        return Plan(rows, order, row, k, kept)
    # A token chooses an expert at most once, so N rows are enough for any.
    capacity = n if rows.sizes is None else -(-max(1, *rows.sizes) // TILE) * TILE
    owner = flat.index_select(0, order)
    # One more for the dropped ones, which are sorted last.
    starts = torch.cat([ends - counts, ends[-1:]])
    filled = owner * capacity + (at - starts.index_select(0, owner))
    if kept is not None:
        filled = filled.clamp(max=n_experts * capacity)
    # Dropped choices all went to one row behind the last, which is cut off.
    source = order.new_zeros(n_experts * capacity + 1).scatter_(0, filled, order // k)[:-1]
    row = filled.index_select(0, row)
    if kept is not None:
        row = torch.where(kept.flatten(), row, 0)
    return Plan(rows, order, row, k, kept, filled, source, (n_experts, capacity))


def within_capacity(experts: Tensor, n_experts: int, capacity: int | Tensor, kept: Tensor | None = None) -> Tensor:
    """Return which choices find room when every expert takes `capacity` of them from each sequence: bool [B, T, k].

    Tokens are served in order, all choices of one before the next (token-major): going by first choices first, as
    GShard does (arXiv 2006.16668), a later token could push an earlier one out.

    Args:
        experts: [B, T, k].
        n_experts: number of experts.
        capacity: choices that an expert takes from a sequence; a tensor [B, 1] where sequences differ.
        kept: [B, T, k] bool, choices that ask for room at all; None for all.
    """
    # All of a sequence at once: whether there is room depends on what came before alone.
    asks = torch.nn.functional.one_hot(experts.flatten(1), n_experts)
    if kept is not None:
        asks = asks * kept.flatten(1)[..., None]
    # Which one of its expert's choices this is, in the order of the tokens.
    place = asks.cumsum(1).gather(-1, experts.flatten(1)[..., None])[..., 0]
    room = (place <= capacity).view(experts.shape)
    return room if kept is None else room & kept


def send(x: Tensor, plan: Plan) -> Tensor:
    """Return tokens [N, d] to rows [N · k, d], padded [E, C, d]."""
    return hand_written(_Send, x, plan)


def collect(rows: Tensor, gates: Tensor, plan: Plan) -> Tensor:
    """Return the sum [N, d] of every token's rows, weighted by its gates [N, k]; 0 for what was dropped."""
    if plan.kept is not None:
        gates = torch.where(plan.kept, gates, torch.zeros_like(gates))
    gates = gates.to(torch.view_as_real(rows).dtype if rows.is_complex() else rows.dtype)
    return hand_written(_Collect, rows, gates, plan)[0]


class _Send(HandWritten):
    differentiable = True

    @staticmethod
    def plain(x: Tensor, plan: Plan) -> Tensor:
        return plan.gather(x)

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan) -> Tensor:
        ctx.plan = plan
        return plan.gather(x)

    @staticmethod
    def backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None]:
        plan: Plan = ctx.plan
        back = plan.take(d_rows)
        # A token went to k rows and gets the sum of their gradients: fetched, where scattering would add in any
        # order.
        return (back if plan.kept is None else back * plan.kept[..., None]).sum(1), None


class _Collect(HandWritten):
    """The sum, and the choices [N, k, d] that it is of: kept for the backward pass in the rows' stead, they must be a
    result, so that second derivatives find their way back to the rows."""

    differentiable = True

    @staticmethod
    def plain(rows: Tensor, gates: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        chosen = plan.take(rows)
        # k additions of [N, d]; a product would be one of 1 × k with k × d for every token.
        out = chosen[:, 0] * gates[:, 0, None]
        for j in range(1, plan.k):
            out = torch.addcmul(out, chosen[:, j], gates[:, j, None].to(out.dtype))
        return out, chosen

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gates: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        out, chosen = _Collect.plain(rows, gates, plan)
        ctx.save_for_backward(chosen, gates)
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        return out, chosen

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_chosen: Tensor | None) -> tuple[Tensor | None, ...]:
        chosen, gates = ctx.saved_tensors
        plan: Plan = ctx.plan
        d_rows = None
        if d_chosen is not None and not torch.compiler.is_compiling():
            d_rows = plan.lay(d_chosen.flatten(0, 1).index_select(0, plan.order))
        if d_out is None:
            return d_rows, None, None
        sorted_gates = gates.flatten().index_select(0, plan.order)
        summed = plan.lay(d_out.index_select(0, plan.token) * sorted_gates[:, None])
        d_rows = summed if d_rows is None else d_rows + summed
        # Gates are real, so the imaginary part of complex experts' gradients is nothing to them.
        d_gates = (chosen.conj() * d_out[:, None]).sum(-1)
        return d_rows, d_gates.real if d_gates.is_complex() else d_gates, None
