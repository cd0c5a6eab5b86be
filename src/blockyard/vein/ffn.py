"""Vein feed-forward: the FFN's hidden layer works on z = V x, and its result goes back through U.

The vein-flow document's `VFTFeedForward`: U · W2 · act(W1 · V x), beside it a direct path called the stabiliser.

Definition in loops and float64: tests/vein/twin.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.dropout import Dropout
from blockyard.nn.fused import add_linear
from blockyard.nn.linear import Linear, check_width, cut, plain, weight_of
from blockyard.nn.norms import LayerNorm
from blockyard.nn.products import linear
from blockyard.protocol.costs import Cost, linear_flops
from blockyard.protocol.ffn import FFN, Shared
from blockyard.registry.register import create, register_ffn
from blockyard.vein.projector import Implementation, InitMethod, VeinProjector, check_choice

Activation = Literal["gelu", "relu", "silu"]
StabilizerKind = Literal["none", "diag", "lowrank", "full"]
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Stabilizer(nn.Module):
    """A direct linear path around the vein: A · LN(x), with A full, of low rank, or diagonal.

    Args:
        d_model: width of the residual stream.
        kind: diag, lowrank or full.
        rank: rank of A for lowrank.
    """

    def __init__(self, d_model: int, kind: StabilizerKind, rank: int) -> None:
        super().__init__()
        self.kind = kind
        self.norm = LayerNorm(d_model)
        if kind == "diag":
            # 1: the direct path starts as LN(x) itself.
            self.scale = nn.Parameter(torch.ones(d_model))
        elif kind == "lowrank":
            if not 1 <= rank < d_model:
                raise InputError(f"stabilizer_rank={rank} should be at least 1 and below d_model={d_model}")
            self.down = Linear(d_model, rank)
            self.up = Linear(rank, d_model)
        else:
            # Nearly all of the document's module: 591,360 parameters with the norm at d_model 768, where the core at
            # rank 4 has 148.
            self.up = Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.kind == "diag":
            return x * self.scale
        return self.up(self.down(x)) if self.kind == "lowrank" else self.up(x)

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute y + A · LN(x); without gradients y is overwritten."""
        if self.kind == "diag":
            # Product and sum in one pass over the stream.
            return torch.addcmul(y, self.norm(x), self.scale)
        if not plain(self.up):
            return y + self(x)
        x = self.norm(x)
        return add_linear(y, self.down(x) if self.kind == "lowrank" else x, self.up.weight, owned=True)

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.scale if self.kind == "diag" else self.up.weight)

    def cost(self, tokens: int) -> Cost:
        linears = [m for m in (getattr(self, "down", None), getattr(self, "up", None)) if m is not None]
        flops = linear_flops(tokens, *[(m.weight.shape[1], m.weight.shape[0]) for m in linears])
        return Cost(sum(p.numel() for p in self.parameters()), flops)


class Guide(nn.Module):
    """Dense matrices that lead a vein FFN's low-rank ones early in training, then are dropped.

    A vein FFN is one whose matrices W1 V and U W2 have rank r at most, and low-rank factors train badly from the start.
    So dense matrices, equal to the products at first, take their place and hand over to them: self-guided training
    (Wei et al. 2024, arXiv 2406.16450).

    Args:
        ffn: the FFN that is led; what is copied from it starts both alike.
    """

    def __init__(self, ffn: VFTFeedForward) -> None:
        super().__init__()
        with torch.no_grad():
            v, u = ffn.vein.matrices()
            # The products themselves, so that leader and led start as one function.
            self.up = nn.Parameter(weight_of(ffn.w1) @ v)
            self.gate = nn.Parameter(weight_of(ffn.w3) @ v) if ffn.w3 is not None else None
            self.down = nn.Parameter(u @ weight_of(ffn.w2))
        # A buffer: saved with the weights, and changed by the schedule without recompiling.
        self.share: Tensor
        self.register_buffer("share", torch.ones((), dtype=self.up.dtype, device=self.up.device))

    def flops(self, tokens: int) -> int:
        """Return forward FLOPs, beside those of the FFN."""
        return 2 * tokens * sum(p.numel() for p in self.parameters())


@register_ffn("vft", group="vft")
class VFTFeedForward(FFN):
    """An FFN inside a vein of `rank` directions, with a direct path beside it (vein-flow document).

    Args:
        d_model: width of the residual stream.
        rank: directions of the vein; None = d_model / 4.
        r_hidden: hidden width inside the vein; None = 4 · rank.
        activation: gelu, relu or silu.
        dropout: probability of dropping a hidden element in training.
        gated: multiply act(W1 z) by W3 z, as SwiGLU does.
        stabilizer: the direct path A · LN(x): none, diag, lowrank or full (the document's, a square matrix that is
            nearly all of the module's parameters); None follows use_stabilizer.
        use_stabilizer: the document's switch between full and none.
        stabilizer_rank: rank of the lowrank stabiliser; None = d_model / 16.
        vein_projector: a vein to share with other modules; it brings its own rank.
        tied: rebuild with the transpose of an orthonormal projection (for a vein of its own).
        implementation: how a vein of its own stores its matrices, linear or parameter.
        init_method: how a vein of its own starts: orthogonal, normal or xavier.

    Shapes: x [..., d_model] -> [..., d_model].
    Raises: InputError for ranks or widths out of range, a shared vein of another width or rank, or a stabilizer that
        contradicts use_stabilizer=False.
    """

    def __init__(
        self,
        d_model: int,
        rank: int | None = None,
        r_hidden: int | None = None,
        activation: Activation = "silu",
        dropout: float = 0.0,
        *,
        gated: bool = False,
        stabilizer: StabilizerKind | None = None,
        use_stabilizer: bool = True,
        stabilizer_rank: int | None = None,
        vein_projector: VeinProjector | None = None,
        tied: bool = False,
        implementation: Implementation = "linear",
        init_method: InitMethod = "orthogonal",
    ) -> None:
        super().__init__()
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        self.d_model, self.activation, self.gated = d_model, activation, gated
        self.vein = self._own_or_shared(vein_projector, rank, tied, implementation, init_method)
        self.rank = self.vein.rank
        # Four times, as FFNs of the full width have had since Vaswani et al. 2017.
        self.r_hidden = r_hidden if r_hidden is not None else 4 * self.rank
        if self.r_hidden < 1:
            raise InputError(f"r_hidden={r_hidden} should be at least 1")
        # The biases are the document's; inside the vein they cost nothing.
        self.w1 = Linear(self.rank, self.r_hidden, bias=True)
        self.w2 = Linear(self.r_hidden, self.rank, bias=True)
        self.w3 = Linear(self.rank, self.r_hidden, bias=True) if gated else None
        self.dropout = Dropout(dropout)
        kind = self._stabilizer_kind(stabilizer, use_stabilizer)
        if stabilizer_rank is not None and kind != "lowrank":
            raise InputError(f"stabilizer_rank={stabilizer_rank} belongs to stabilizer=lowrank; it is {kind}")
        direct_rank = stabilizer_rank if stabilizer_rank is not None else max(1, d_model // 16)
        self.stabilizer = Stabilizer(d_model, kind, direct_rank) if kind != "none" else None
        # Put here for a part of training, see `blockyard.vein.guide.attach_guides`.
        self.guide: Guide | None = None

    @classmethod
    def share(cls, d_model: int, rank: int, count: int, expert: str, options: Mapping[str, Any]) -> Shared:
        """Return FFNs of any kind within one vein: vein FFNs as their cores alone, others on z as if that were the
        stream.

        Args:
            d_model: width of the residual stream.
            rank: directions of the vein.
            count: number of FFNs.
            expert: the FFN, by its registered name.
            options: its options.

        Raises:
            InputError: when the options name another rank.
        """
        if expert != "vft":
            vein = VeinProjector(d_model, rank)
            members = [create("ffn", expert, {"d_model": rank, **options}) for _ in range(count)]
            return Shared(vein, None, members, "forward")
        if options.get("rank") not in (None, rank):
            raise InputError(f"vein_rank={rank} is the experts' rank, too, but expert.rank={options['rank']}")
        # One whole FFN brings the vein and the direct path for all; the others are cores on its numbers.
        whole = create("ffn", "vft", {"d_model": d_model, **options, "rank": rank})
        core = {name: options[name] for name in ("r_hidden", "activation", "gated", "dropout") if name in options}
        core |= {"d_model": d_model, "vein_projector": whole.vein, "use_stabilizer": False}
        members = [create("ffn", "vft", core) for _ in range(count)]
        for member in members:
            # Held once, by whoever shares it.
            member.vein = None
        return Shared(whole.vein, whole.stabilizer, members, "core")

    def _own_or_shared(
        self,
        shared: VeinProjector | None,
        rank: int | None,
        tied: bool,
        implementation: Implementation,
        init_method: InitMethod,
    ) -> VeinProjector:
        if shared is None:
            rank = rank if rank is not None else max(1, self.d_model // 4)
            return VeinProjector(self.d_model, rank, implementation, init_method, tied=tied)
        if shared.d_model != self.d_model:
            raise InputError(f"vein_projector is {shared.d_model} wide, but d_model={self.d_model}")
        if rank is not None and shared.rank != rank:
            raise InputError(f"vein_projector has rank {shared.rank}, but rank={rank}")
        return shared

    @staticmethod
    def _stabilizer_kind(stabilizer: StabilizerKind | None, use_stabilizer: bool) -> StabilizerKind:
        if stabilizer is None:
            return "full" if use_stabilizer else "none"
        check_choice("stabilizer", stabilizer, ("none", "diag", "lowrank", "full"))
        if not use_stabilizer and stabilizer != "none":
            raise InputError(f"use_stabilizer=False contradicts stabilizer={stabilizer!r}; give one of them")
        return stabilizer

    def forward(self, x: Tensor) -> Tensor:
        check_width(x, self.d_model)
        v, u = self.vein.matrices()
        return self.from_vein(x, linear(x, v), u)

    def from_vein(self, x: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Return the output when z = V x [..., rank] is known already (a block needs it for the reconstruction error).

        Args:
            x: [..., d_model], read by the stabiliser only.
            z: its projection.
            u: the vein's U.
        """
        # All that is not linear happens on `rank` numbers; one thin product leads back to the stream.
        y = linear(self.core(z), u) if self.guide is None else self._guided(self.guide, x, z, u)
        return y if self.stabilizer is None else self.stabilizer.add_to(y, x)

    @property
    def reads_all(self) -> bool:
        """Whether it reads its input beside z = V x."""
        return self.stabilizer is not None or self.guide is not None

    def add_to(self, x: Tensor, h: Tensor | None, z: Tensor, u: Tensor) -> Tensor:
        """Compute x + the output, with the addition inside the last product.

        Args:
            x: the residual stream [..., d_model]; without gradients it is overwritten.
            h: what the FFN reads of it; None will do unless `reads_all`.
            z: V h.
            u: the vein's U.
        """
        if self.guide is not None:
            assert h is not None
            return x + self.from_vein(h, z, u)
        # Behind post-norm the FFN reads the residual stream itself, and the stabiliser needs it once more.
        x = add_linear(x, self.core(z), u, owned=h is not x)
        if self.stabilizer is None:
            return x
        assert h is not None
        return self.stabilizer.add_to(x, h)

    def core(self, z: Tensor) -> Tensor:
        """Return the non-linear part alone, z [..., rank] -> [..., rank], without V, U and the stabiliser.

        Modules that share one vein (the experts of a mixture, say) add these up and rebuild once.
        """
        h = _ACTIVATIONS[self.activation](self.w1(z))
        if self.w3 is not None:
            # SwiGLU's second factor (arXiv 2002.05202), inside the vein.
            h = h * self.w3(z)
        return self.w2(self.dropout(h))

    def _guided(self, guide: Guide, x: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Compute U core(z) with every low-rank matrix mixed with its dense guide."""
        # Matrix by matrix (1 − share) · low rank + share · dense, in front of the non-linearity (arXiv 2406.16450).
        h = _ACTIVATIONS[self.activation](torch.lerp(self.w1(z), F.linear(x, guide.up, self.w1.bias), guide.share))
        if self.w3 is not None and guide.gate is not None:
            h = h * torch.lerp(self.w3(z), F.linear(x, guide.gate, self.w3.bias), guide.share)
        h = self.dropout(h)
        assert self.w2.bias is not None
        # w2's bias reaches the stream through U, and goes the same way beside the dense matrix.
        dense = F.linear(h, guide.down) + F.linear(self.w2.bias, u)
        return torch.lerp(F.linear(self.w2(h), u), dense, guide.share)

    @torch.no_grad()
    def trim(self) -> None:
        """Cut the vein, and what reads and writes it, to the directions in use; the function stays the same."""
        kept = self.vein.trim()
        self.rank = self.vein.rank
        for module in (self.w1, self.w3):
            if module is not None:
                # Directions that are not in use are zeros in z: what their columns hold never mattered.
                cut(module, kept, inputs=True)
        # The same for rows of w2, which meet columns of U that are 0.
        cut(self.w2, kept, inputs=False)

    def core_cost(self, tokens: int) -> Cost:
        """Return parameters and FLOPs of `core`."""
        up = 2 if self.gated else 1
        shapes = [(self.rank, self.r_hidden)] * up + [(self.r_hidden, self.rank)]
        return Cost(sum(a * b for a, b in shapes) + up * self.r_hidden + self.rank, linear_flops(tokens, *shapes))

    def cost(self, tokens: int) -> Cost:
        direct = self.stabilizer.cost(tokens) if self.stabilizer is not None else Cost()
        return self.core_cost(tokens) + self.vein.cost(tokens) + direct

    def zero_init_output(self) -> None:
        nn.init.zeros_(self.w2.weight)
        if self.stabilizer is not None:
            self.stabilizer.zero_init_output()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, r_hidden={self.r_hidden}, gated={self.gated}"
