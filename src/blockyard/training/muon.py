"""Muon: momentum whose matrices are made nearly orthogonal before each step.

Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon) with the polynomials of arXiv 2505.16932; the scale
that gives every matrix an update of AdamW's size is from arXiv 2502.16982. Matrices of one shape are iterated together,
as one batched product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from blockyard.training.distributed import is_sharded, like, local, part, whole

# Singular values below this fraction of a gradient's norm are not brought all the way to 1. A smaller floor lifts weak
# directions further and leaves all others less even; this one trained best of those tried, at three and four steps.
FLOOR = 0.005
# Root mean square of an AdamW update at rate 1, as measured there; the same rate then suits both optimizers.
UPDATE_RMS = 0.2
# A matrix with a smaller norm is nearly nothing and stays so. Squares of entries under 1e-19 vanish in float32: divided
# by a norm that misses them, such a matrix would be thrown to infinity by the polynomials.
LEAST_NORM = 1e-12


@cache
def quintics(steps: int, floor: float = FLOOR) -> tuple[tuple[float, float, float], ...]:
    """Return coefficients (a, b, c) of odd polynomials a x + b x^3 + c x^5 whose composition is nearest 1 on [floor,
    1].

    Choosing each as the nearest to 1 on the interval that the ones before leave is best for the composition, too
    (arXiv 2505.16932).
    """
    low, high, found = floor, 1.0, []
    for _ in range(steps):
        (a, b, c), error = _nearest_to_one(low, high)
        # Rounding may lift a value a little over the interval, where the polynomial would throw it far off.
        # x is divided by 1.01, with which powers its coefficients are: the polynomial of a slightly smaller number.
        found.append((a / 1.01, b / 1.01**3, c / 1.01**5))
        low, high = 1 - error, 1 + error
    return tuple(found)


def _nearest_to_one(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """Return the odd quintic with the least largest distance from 1 on [low, high], and that distance (Remez's
    exchange)."""
    # The interval is a point by now, where Newton's own quintic is the limit and the system below is singular.
    if high - low < 1e-3 * high:
        middle = (low + high) / 2
        return (1.875 / middle, -1.25 / middle**3, 0.375 / middle**5), 1e-7
    inner = [0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high]
    # Four unknowns, three coefficients and the error: four points where it is reached (Chebyshev's alternation).
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    # Far more rounds than it takes: the result is kept.
    for _ in range(60):
        x = torch.tensor([low, *inner, high], dtype=torch.float64)
        # At the best polynomial the distance is reached four times, with alternating signs.
        system = torch.stack([x, x**3, x**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(system, torch.ones_like(x)).tolist()
        root = (9 * b * b - 20 * a * c) ** 0.5
        inner = [((-3 * b + sign * root) / (10 * c)) ** 0.5 for sign in (-1, 1)]
    return (a, b, c), error


def orthogonalize(matrices: Tensor, steps: int = 4, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return nearest nearly-orthogonal matrices U Vᵀ of a stack, by Newton-Schulz iteration.

    Args:
        matrices: [n, rows, columns].
        steps: iterations, each with polynomials made for their number.
        dtype: floating type of the products. The iteration mends its own rounding errors, so bfloat16 will do.

    Returns: [n, rows, columns] of that type.
    """
    # The norm bounds every singular value by one. bfloat16 reaches as far down as float32, so it may be taken after
    # rounding.
    x = matrices.to(dtype).contiguous()
    size = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.promote_types(dtype, torch.float32))
    # Into [0, 1], which the polynomials are made for: any bound of the largest singular value does, and this one is
    # cheap.
    x = x * (1 / (size + LEAST_NORM)).to(dtype)
    # The Gram matrix of the short side is the cheap one.
    tall = matrices.shape[-2] > matrices.shape[-1]
    for a, b, c in quintics(steps):
        gram = x.mT @ x if tall else x @ x.mT
        # a x + (b G + c G²) x with G = x xᵀ: three products for a quintic, the additions inside them.
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, inner, beta=a) if tall else torch.baddbmm(x, inner, x, beta=a)
    return x


def real_blocks(pairs: Tensor) -> Tensor:
    """Return complex matrices A + iB as pairs [..., r, c, 2] -> real ones [[A, −B], [B, A]], [n, 2r, 2c].

    Products and transposes keep that form, so the iteration makes the complex matrix nearly unitary.
    """
    a, b = pairs.reshape(-1, *pairs.shape[-3:]).unbind(-1)
    return torch.cat([torch.cat([a, -b], dim=-1), torch.cat([b, a], dim=-1)], dim=-2)


def from_real_blocks(blocks: Tensor) -> Tensor:
    """Return the inverse of `real_blocks`: [n, 2r, 2c] -> [n, r, c, 2]."""
    rows, columns = blocks.shape[-2] // 2, blocks.shape[-1] // 2
    return torch.stack([blocks[..., :rows, :columns], blocks[..., rows:, :columns]], dim=-1)


class Muon(Optimizer):
    """Muon over (stacks of) matrices: each update has root mean square 0.2 x `lr`, whatever the shape.

    Args:
        params: parameters of at least two axes, or groups of them as torch's optimizers take. A group's `axes`
            names, per parameter, the two axes that form a matrix; all other axes are a stack. Its `pairs` says of
            which the last axis holds real and imaginary parts: a complex matrix is made nearly unitary. Its `parts`
            are numbers of rows of maps that lie stacked in one matrix: each is made orthogonal by itself.
        lr: learning rate.
        momentum: averaging of the gradients.
        weight_decay: decoupled decay.
        steps: Newton-Schulz iterations.
        dtype: floating type of their products.

    Sharded parameters (FSDP2) keep sharded momentum; the update needs the whole matrix, so it is gathered, made
    orthogonal on every rank alike, and each rank applies its own part.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-2,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 4,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "steps": steps,
            "axes": None,
            "pairs": None,
            "parts": None,
        }
        self.dtype = dtype
        self._averages: dict[int, Tensor] = {}
        self._views: dict[int, list[Tensor]] = {}
        super().__init__(params, defaults)
        for group in self.param_groups:
            group["axes"] = group["axes"] or [(-2, -1)] * len(group["params"])
            group["pairs"] = group["pairs"] or [False] * len(group["params"])
            group["parts"] = group["parts"] or [()] * len(group["params"])
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    # mypy: torch's takes a closure, which would run all passes once more.
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Make one update of every parameter that has a gradient."""
        for group in self.param_groups:
            # Small matrices leave a processor idle: those of one shape, from all layers, are one batched product.
            by_shape: dict[tuple[Any, ...], list[nn.Parameter]] = {}
            for parameter, *form in zip(group["params"], group["axes"], group["pairs"], group["parts"]):
                if parameter.grad is not None:
                    by_shape.setdefault((parameter.shape, parameter.dtype, *form), []).append(parameter)
            for (_, _, axes, pairs, parts), parameters in by_shape.items():
                self._update(parameters, axes, pairs, parts, group)

    def _update(
        self,
        parameters: list[nn.Parameter],
        axes: tuple[int, int],
        pairs: bool,
        parts: tuple[int, ...],
        group: Mapping[str, Any],
    ) -> None:
        """Update parameters of one shape: one chain of batched products for all of them."""
        # Momentum is linear and stays in parts; orthogonalising is not, and needs the whole matrix.
        sharded = is_sharded(parameters[0])
        stack = (self._gathered if sharded else self._stacked)(parameters, group["momentum"])
        # To [n, rows, columns]: the matrix axes last, every other axis a part of the stack.
        # One more axis in front: the stack of parameters of this shape.
        places = [a if a < 0 else a + 1 for a in axes]
        moved = stack.movedim([*places, -1], (-3, -2, -1)) if pairs else stack.movedim(places, (-2, -1))
        rows = -3 if pairs else -2
        made = [
            self._direction(piece, pairs, group["steps"])
            for piece in (moved.split(parts, dim=rows) if parts else (moved,))
        ]
        # What all are multiplied by as they are added; pieces with another scale are brought to it.
        scale = made[0][1]
        pieces = [piece if own == scale else piece * (own / scale) for piece, own in made]
        update = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=rows)
        update = update.movedim((-3, -2, -1) if pairs else (-2, -1), [*places, -1] if pairs else places)
        lr = group["lr"]
        mine = [local(p) for p in parameters]
        if group["weight_decay"]:
            # Decoupled (arXiv 1711.05101): in the gradient it would be orthogonalised away.
            torch._foreach_mul_(mine, 1 - lr * group["weight_decay"])
        # Rounded to bf16 in the products at most: the addition is in the parameters' type.
        updates = update.to(parameters[0].dtype).unbind()
        torch._foreach_add_(mine, [part(u, p) for u, p in zip(updates, parameters)], alpha=-lr * scale)

    def _direction(self, moved: Tensor, pairs: bool, steps: int) -> tuple[Tensor, float]:
        """Return nearly orthogonal matrices of a shape [..., r, c] (or pairs, [..., r, c, 2]), and the factor that
        gives them root mean square 0.2."""
        matrices = real_blocks(moved) if pairs else moved.reshape(-1, *moved.shape[-2:])
        # The whole stack in one call, whatever its axes meant.
        made = orthogonalize(matrices, steps, self.dtype)
        made = from_real_blocks(made) if pairs else made
        # An orthogonal r x c matrix has root mean square 1/sqrt(max(r, c)).
        return made.reshape(moved.shape), UPDATE_RMS * max(matrices.shape[-2:]) ** 0.5

    def _stacked(self, parameters: list[nn.Parameter], momentum: float) -> Tensor:
        """Return Nesterov's look-ahead average of the gradients, [n, ...], and the running average moved on."""
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        average = self._average(parameters)
        average.lerp_(gradients, 1 - momentum)
        # A copy of the gradients that nobody else sees, so it may be written into.
        return gradients.lerp_(average, momentum)

    def _average(self, parameters: list[nn.Parameter]) -> Tensor:
        """Return the running averages of these parameters as one tensor, which each one's state is a view of."""
        first = id(parameters[0])
        known = self._averages.get(first)
        if known is not None and len(known) == len(parameters):
            # Loading a state replaces its tensors: then the stack is no longer what the states are views of.
            mine = all(self.state[p].get("momentum") is view for p, view in zip(parameters, self._views[first]))
            if mine:
                return known
        # The first step, or a state that was loaded.
        states = [self.state[p] for p in parameters]
        average = torch.stack([s.get("momentum", torch.zeros_like(p)) for s, p in zip(states, parameters)])
        self._averages[first], self._views[first] = average, list(average.unbind())
        for state, view in zip(states, self._views[first]):
            state["momentum"] = view
        return average

    def _gathered(self, parameters: list[nn.Parameter], momentum: float) -> Tensor:
        """Return the same for sharded parameters: averaged in parts, then gathered."""
        whole_directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            gradient, average = local(parameter.grad), local(state["momentum"])
            average.lerp_(gradient, 1 - momentum)
            whole_directions.append(whole(like(gradient.lerp(average, momentum), parameter)))
        return torch.stack(whole_directions)
