"""Mixture of experts: n FFNs of one kind, of which every token passes k.

y = Σ gate_j · expert_j(x) over the k experts that a router chooses (Shazeer et al. 2017, arXiv 1701.06538; the
complex-block document's "only the selected k experts are computed"). Parameters grow with n, the work with k.

Definition in loops and float64: tests/moe/twin.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError, at_least
from blockyard.moe.dispatch import collect, counts_of, plan, send, within_capacity
from blockyard.moe.experts import GatedExperts, SeparateExperts, StackedExperts, row_keys
from blockyard.moe.grouped import FAST_ROWS, Kernel
from blockyard.moe.router import Balance, Router, Routing, Scoring, balance_loss, check_k, check_router, z_loss
from blockyard.nn.derivatives import must_read, transformed
from blockyard.nn.dropout import mix
from blockyard.nn.linear import check_width
from blockyard.nn.products import in_halves, suits
from blockyard.protocol.costs import Cost, cost_of
from blockyard.protocol.ffn import FFN, Aux
from blockyard.registry.options import options_of
from blockyard.registry.register import create, ffn_class, register_ffn

Implementation = Literal["auto", "loop", "segment", "grouped", "padded"]
# bf16 on a CPU: one batched product of padded rows beats a product per expert while experts have few rows and little
# of it is padding. Measured in docs/moe.md.
PADDED_ROWS, PADDED_WASTE = 256, 1.6


@register_ffn("moe", group="moe")
class MoE(FFN):
    """Mixture of experts over any registered FFN: a router sends every token to k of n experts.

    Options of the expert itself are written `expert.d_ff=512` in brackets behind the name, and stand in the expert's
    own group on the command line and in YAML (`--ffn.d_ff 512`, `--vft.rank 4`).

    Args:
        d_model: width of the residual stream.
        expert: the FFN that the experts are, by its registered name.
        n_experts: number of experts.
        k: experts per token; a call may name another number.
        scoring: how logits become scores: softmax or sigmoid (DeepSeek-V3's).
        renormalise: divide a token's k weights by their sum; with softmax that is a softmax over the chosen k alone
            (Mixtral, the complex-block document), without it the weights are the probabilities (Switch).
        scale: factor on the experts' weighted sum (DeepSeek's routed scaling factor).
        n_groups: groups of neighbouring experts; a token chooses from k_groups of them.
        k_groups: groups that a token may choose from.
        n_shared: further experts that every token passes, without weights.
        n_gated: further experts that every token passes, their sum weighted by a gate σ(w·x) (Qwen2-MoE's).
        balance: what keeps the experts equally busy: loss (Switch's, returned in aux), bias (on the choice alone, moved
            once per optimizer step) or none.
        bias_rate: step of that bias, in units of the scores.
        capacity: in training, choices that an expert takes from a sequence, as a multiple of an equal share of its
            tokens (padding is none); what is over it is dropped and gives 0. None drops nothing.
        vein_rank: router and experts act on z = V x, with one vein of so many directions for all; None: on x. A vft
            expert is then its core alone, its stabiliser stands beside the mixture once.
        impl: how experts are computed: loop (expert by expert), segment (sorted, one product per expert), grouped
            (sorted, F.grouped_mm where it can), padded (one batched product), or auto, the fastest by measurement.
        dropout: probability of dropping a hidden element of an expert in training.
        expert_options: the expert's own options.

    Shapes: x [..., T, d_model], real or complex as the expert takes it -> the same.
    Raises: InputError for k above n_experts or above what the groups leave open, n_groups that do not divide n_experts,
        k=1 with renormalise (a weight of 1 teaches the router nothing), logits that are not finite, or a capacity in
        training with a cache.
    """

    # The registry gives an option that names an expert's class, and the options of that class, their meaning.
    members: ClassVar[dict[str, str]] = {"expert": "ffn"}

    def __init__(
        self,
        d_model: int,
        *,
        expert: str = "swiglu",
        n_experts: int = 8,
        k: int = 2,
        scoring: Scoring = "softmax",
        renormalise: bool = True,
        scale: float = 1.0,
        n_groups: int = 1,
        k_groups: int = 1,
        n_shared: int = 0,
        n_gated: int = 0,
        balance: Balance = "loss",
        bias_rate: float = 0.001,
        capacity: float | None = None,
        vein_rank: int | None = None,
        impl: Implementation = "auto",
        dropout: float = 0.0,
        expert_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_router(n_experts, k, n_groups, k_groups)
        _check_options(expert, k, renormalise, scale, n_shared, n_gated, bias_rate, capacity)
        self.d_model, self.expert, self.n_experts, self.k = d_model, expert, n_experts, k
        self.balance, self.bias_rate, self.capacity, self.impl = balance, bias_rate, capacity, impl
        # What router and experts read.
        self.width = d_model if vein_rank is None else vein_rank
        # Any: V and U by `matrices()`, as the class that shares them has them.
        self.vein: Any = None
        self.stabilizer: nn.Module | None = None
        members = self._build(n_experts + n_shared + n_gated, vein_rank, dropout, dict(expert_options or {}))
        self.router = Router(
            self.width,
            n_experts,
            scoring=scoring,
            renormalise=renormalise,
            scale=scale,
            n_groups=n_groups,
            k_groups=k_groups,
            biased=balance == "bias",
        )
        self.complex_valued = bool(getattr(members[0], "complex_valued", False))
        routed = members[:n_experts]
        self.experts: StackedExperts | SeparateExperts
        if self.part == "core" or getattr(members[0], "stackable", False):
            self.experts = StackedExperts(routed, self.part)
        elif impl in ("grouped", "padded"):
            raise InputError(f"impl={impl!r} computes experts made of Linear layers, {expert!r} is not; use segment")
        else:
            self.experts = SeparateExperts(routed, self.width)
        self.shared = nn.ModuleList(members[n_experts : n_experts + n_shared])
        gated = members[n_experts + n_shared :]
        self.gated = GatedExperts(gated, self.width, self.part) if gated else None

    def _build(self, count: int, vein_rank: int | None, dropout: float, options: dict[str, Any]) -> list[nn.Module]:
        """Return the experts, and with one vein for all of them that vein and the stabiliser beside it."""
        if "dropout" in options_of(ffn_class(self.expert)):
            options.setdefault("dropout", dropout)
        # The method of an expert that computes: within a shared vein, a vein FFN is only its core.
        self.part = "forward"
        if vein_rank is None:
            return [create("ffn", self.expert, {"d_model": self.d_model, **options}) for _ in range(count)]
        expert = ffn_class(self.expert)
        # An expert that knows how several of it stand behind one vein, or else the vein FFN, which knows it of any.
        sharing: Any = expert if hasattr(expert, "share") else ffn_class("vft")
        shared = sharing.share(self.d_model, vein_rank, count, self.expert, options)
        self.vein, self.stabilizer, self.part = shared.projector, shared.beside, shared.part
        return list(shared.members)

    def forward(
        self, x: Tensor, *, k: int | None = None, padding_mask: Tensor | None = None, cache: Any = None
    ) -> Tensor:
        """Compute x [..., T, d_model] -> the same shape.

        Args:
            k: experts per token in this call.
            padding_mask: nonzero = a token, of x's leading shape (with a cache, the past before it). Padding passes no
                expert, counts in no statistic and takes no capacity.
            cache: whether tokens come piece by piece; only asked to refuse a capacity.
        """
        return self._compute(x, k, padding_mask, cache)[0]

    def with_aux(
        self, x: Tensor, *, k: int | None = None, padding_mask: Tensor | None = None, cache: Any = None
    ) -> tuple[Tensor, Aux | None]:
        """Return the output, and `{"losses": {"balance", "z"}, "stats": {"load", "dropped"}}`.

        `balance` is there when it is what balances. `load` [E] counts the choices that fell on each expert, `dropped`
        is the fraction of them that found no room (there with a capacity).
        """
        y, routing, load, counted, kept = self._compute(x, k, padding_mask, cache)
        # Returned, never kept on the module: recomputed activations would count it twice.
        losses = {"z": z_loss(routing.logits, counted)}
        if self.balance == "loss":
            losses["balance"] = balance_loss(self.router.scores(routing.logits), load, counted)
        stats = {"load": load.float()}
        if self.capacity is not None:
            computed = load.sum() if kept is None else kept.sum()
            stats["dropped"] = (load.sum() - computed) / load.sum().clamp_min(1)
        return y, {"losses": losses, "stats": stats}

    def _compute(
        self, x: Tensor, k: int | None, padding_mask: Tensor | None, cache: Any
    ) -> tuple[Tensor, Routing, Tensor, Tensor | None, Tensor | None]:
        """Return the output, the routing, the load, which tokens count, and which choices were computed (None for
        all)."""
        check_width(x, self.d_model)
        k = self._k(k)
        counted = _counted(x, padding_mask)
        if counted is not None:
            # Whatever stands in padding must not reach a gradient, not even times 0.
            x = torch.where(counted.view(*x.shape[:-1], 1), x, torch.zeros_like(x))
        down, up = (None, None) if self.vein is None else self.vein.matrices()
        # What the vein leaves out no router and no expert sees.
        z = x if down is None else F.linear(x, down)
        rows = z.reshape(-1, self.width)
        routing = self.router(rows, k)
        must_read(routing.experts, "moe sends every token to experts that its values choose")
        asked = None if counted is None else counted[:, None].expand(-1, k)
        # What the router asked for, room or not: that is what has to be balanced.
        load = counts_of(routing.experts, self.n_experts, asked)
        kept, counts = asked, load
        if self.capacity is not None and self.training:
            kept = self._with_room(x, routing, counted, k, cache)
            counts = counts_of(routing.experts, self.n_experts, kept)
        y = self._mix(rows, routing, counts, kept, row_keys(self.experts, x.shape)).view(*x.shape[:-1], self.width)
        for expert in self.shared:
            # In the vein, too: U is applied once, to the sum of all.
            y = y + getattr(expert, self.part)(z)
        if self.gated is not None:
            y = y + self.gated(z)
        if up is not None:
            y = F.linear(y, up)
        if self.stabilizer is not None:
            y = y + self.stabilizer(x)
        return y, routing, load, counted, kept

    def _k(self, k: int | None) -> int:
        """Return the number of experts in this call.

        Raises:
            InputError: when there are not so many, or when the router could not learn from it.
        """
        if k is None or k == self.k:
            return self.k
        check_k(k, self.n_experts, self.router.n_groups, self.router.k_groups)
        if self.training and torch.is_grad_enabled():
            _check_teaches(k, self.router.renormalise)
        return k

    def _with_room(self, x: Tensor, routing: Routing, counted: Tensor | None, k: int, cache: Any) -> Tensor:
        """Return [N, k] which choices find room."""
        assert self.capacity is not None
        if cache is not None:
            raise InputError(
                f"capacity={self.capacity} in training with a cache: what is dropped would depend on the pieces in "
                "which the tokens come; call eval() first, or leave the capacity out"
            )
        length = x.shape[-2] if x.ndim > 1 else 1
        by_sequence = routing.experts.view(-1, length, k)
        if counted is None:
            places = math.ceil(self.capacity * length * k / self.n_experts)
            return within_capacity(by_sequence, self.n_experts, places).view(-1, k)
        counted = counted.view(-1, length)
        # A sequence's places go by its own tokens, in the same arithmetic: it gets what it gets without its padding.
        tokens = counted.sum(-1, keepdim=True).to(torch.float64)
        places_each = (self.capacity * tokens * k / self.n_experts).ceil().to(torch.int64)
        asked = counted[..., None].expand_as(by_sequence)
        return within_capacity(by_sequence, self.n_experts, places_each, asked).view(-1, k)

    def _mix(self, x: Tensor, routing: Routing, counts: Tensor, kept: Tensor | None, keys: Tensor | None) -> Tensor:
        """Compute Σ gate · expert(x) over the chosen experts, [N, width]."""
        if torch.compiler.is_exporting():
            return self._of_all(x, routing, kept)
        if self.impl == "loop":
            if torch.compiler.is_compiling():
                from blockyard.nn.uncompiled import uncompiled

                return uncompiled(self._loop, x, routing, kept, keys)
            return self._loop(x, routing, kept, keys)
        if isinstance(self.experts, StackedExperts) and x.is_floating_point():
            # Before there are k of every row.
            x = x.to(_product_dtype(x))
        placed = plan(routing.experts, counts, self._kernel(x, counts), kept)
        row_key = None
        if keys is not None:
            # A row's dropout is its token's and its expert's, wherever the row lies.
            owner = routing.experts.flatten().index_select(0, placed.order)
            row_key = placed.lay(_expert_key(keys.index_select(0, placed.token), owner))
        return collect(self.experts.run(send(x, placed), placed.rows, row_key), routing.gates, placed)

    def _kernel(self, x: Tensor, counts: Tensor) -> Kernel:
        """Return the fastest way for these rows, unless one is prescribed."""
        if isinstance(self.experts, SeparateExperts):
            return "segment"
        if self.impl in ("segment", "grouped", "padded"):
            return self.impl
        if transformed():
            return "segment"
        if torch.compiler.is_compiling():
            return "grouped" if x.dtype == torch.bfloat16 else "segment"
        if x.dtype == torch.bfloat16 and x.device.type == "cpu":
            # Padding costs the busiest expert's rows times the number of experts.
            most, rows = int(counts.max()), int(counts.sum())
            if rows <= PADDED_ROWS * self.n_experts and most * self.n_experts <= PADDED_WASTE * rows:
                return "padded"
        # Where torch has a library for single products that is much faster than the one F.grouped_mm uses.
        rows = x[..., 0].numel() * self.k // self.n_experts // FAST_ROWS * FAST_ROWS
        return "segment" if not in_halves() and suits(rows, x.shape[-1], x.shape[-1], x) else "grouped"

    def _loop(self, x: Tensor, routing: Routing, kept: Tensor | None, keys: Tensor | None) -> Tensor:
        """Go expert by expert: find its tokens, compute them, add them up. Slow, and plainly the definition."""
        total: Tensor | None = None
        for e, expert in enumerate(self.experts.each()):
            # The slow twin of all other ways, which the tests hold them to.
            here = routing.experts == e
            token, choice = (here if kept is None else here & kept).nonzero(as_tuple=True)
            key = None if keys is None else _expert_key(keys[token], torch.full_like(token, e))
            y = expert(x[token], key)
            y = y * routing.gates[token, choice, None].to(y.dtype)
            total = y.new_zeros(x.shape) if total is None else total
            total = total.index_add(0, token, y)
        assert total is not None
        return total

    def _of_all(self, x: Tensor, routing: Routing, kept: Tensor | None) -> Tensor:
        """Send every token to every expert and keep what was chosen: the form for a graph of all lengths.

        How many tokens an expert gets is known only when it runs, and an exported graph cannot go by that everywhere.
        """
        total: Tensor | None = None
        for e, expert in enumerate(self.experts.each()):
            here = routing.experts == e
            here = here if kept is None else here & kept
            gate = torch.where(here, routing.gates, 0.0).sum(-1, keepdim=True)
            y = expert(x, None)
            # Chosen, not multiplied by 0: what an expert makes of another's token may be beyond all bounds.
            y = torch.where(here.any(-1, keepdim=True), y * gate.to(y.dtype), 0.0)
            total = y if total is None else total + y
        assert total is not None
        return total

    def after_step(self, stats: Mapping[str, Tensor]) -> None:
        """Move the balancing bias, once per optimizer step.

        Args:
            stats: what `with_aux` returned, `load` summed over the passes and ranks of the step.
        """
        if self.balance == "bias" and "load" in stats:
            self.router.rebalance(stats["load"], self.bias_rate)

    def member(self, option: str) -> Any:
        """Return one of the modules that an option names: the first expert."""
        assert option == "expert"
        return self.experts.body if isinstance(self.experts, StackedExperts) else self.experts[0]

    def active_parameters(self) -> int:
        """Return parameters that one token passes: all but the experts that it is not sent to."""
        total = sum(p.numel() for p in self.parameters())
        each = sum(p.numel() for p in self.experts.parameters()) // self.n_experts
        return total - (self.n_experts - self.k) * each

    def cost(self, tokens: int) -> Cost:
        """Return all parameters, and the FLOPs of the experts that are chosen: k per token, and what is shared."""
        routed = self.experts.cost(self.k * tokens).flops
        beside = Cost() if self.vein is None else self.vein.cost(tokens)
        if self.stabilizer is not None:
            beside = beside + cost_of(self.stabilizer, tokens, self.d_model)
        shared = len(self.shared) * self.experts.cost(tokens).flops
        if self.gated is not None:
            shared += len(self.gated) * self.experts.cost(tokens).flops + self.gated.gate_cost(tokens).flops
        flops = self.router.cost(tokens).flops + routed + shared + beside.flops
        return Cost(sum(p.numel() for p in self.parameters()), flops)

    def zero_init_output(self) -> None:
        self.experts.zero_init_output()
        for member in (*self.shared, *(self.gated or ()), self.stabilizer):
            if hasattr(member, "zero_init_output"):
                member.zero_init_output()


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the type that products of x are computed in."""
    device = x.device.type
    return (
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) and x.dtype != torch.float64 else x.dtype
    )


def _counted(x: Tensor, padding_mask: Tensor | None) -> Tensor | None:
    """Return [N] bool, tokens that are not padding; None for all."""
    if padding_mask is None:
        return None
    leading = x.shape[:-1]
    if padding_mask.ndim != len(leading) or padding_mask.shape[-1] < leading[-1]:
        raise InputError(f"padding_mask has shape {tuple(padding_mask.shape)}, x has {tuple(x.shape)}")
    return (padding_mask[..., -leading[-1] :] != 0).expand(leading).reshape(-1)


def _expert_key(keys: Tensor, expert: Tensor) -> Tensor:
    """Return a token's dropout key for one of its experts."""
    return mix((keys + 0x9E3779B9 * (expert + 1)) & 0xFFFFFFFF)


def _check_teaches(k: int, renormalise: bool) -> None:
    if k == 1 and renormalise:
        raise InputError(
            "k=1 with renormalise=True (softmax after the top-k): the one weight is 1 whatever the router says, so "
            "it learns nothing; use k of at least 2, or renormalise=False"
        )


def _check_options(
    expert: str,
    k: int,
    renormalise: bool,
    scale: float,
    n_shared: int,
    n_gated: int,
    bias_rate: float,
    capacity: float | None,
) -> None:
    _check_teaches(k, renormalise)
    if expert == "moe":
        raise InputError("expert='moe': a mixture cannot be its own expert; name another FFN")
    if not 0 < scale < float("inf"):
        raise InputError(f"scale={scale} should be a number above 0")
    at_least(0, n_shared=n_shared, n_gated=n_gated)
    if not 0 <= bias_rate < float("inf"):
        raise InputError(f"bias_rate={bias_rate} should be a number of at least 0")
    if capacity is not None and not 0 < capacity < float("inf"):
        raise InputError(f"capacity={capacity} should be a number above 0, or none")
