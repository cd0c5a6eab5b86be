"""Muon: momentum whose matrices are made nearly orthogonal before each step.

Keller Jordan's Muon (https://kellerjordan.github.io/posts/muon); the scale that gives every matrix an update of
AdamW's size is from arXiv 2502.16982. Matrices of one shape are iterated together, as one batched product.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from blockyard.training.sharding import like, local, part, whole

# The quintic of Muon's author: it is steep at zero (small singular values grow 3.4445-fold an iteration), at the
# price of leaving all of them within about [0.7, 1.2] rather than at 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Root mean square of an AdamW update at rate 1, as measured there; the same rate then suits both optimizers.
UPDATE_RMS = 0.2


def orthogonalize(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Nearest nearly-orthogonal matrices U Vᵀ of a stack, by Newton-Schulz iteration.

    Args:
        matrices: [n, rows, columns].
        steps: iterations; five bring singular values down to a hundredth of the largest near 1.
        dtype: floating type of the products. The iteration mends its own rounding errors, so bfloat16 will do.

    Returns: [n, rows, columns] of that type.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the Gram matrix of the short side is the cheap one
    # The norm bounds every singular value by one; taken before rounding, so that tiny gradients survive.
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)).to(dtype).contiguous()
    for _ in range(steps):
        gram = x @ x.mT
        quintic = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, quintic, x, beta=a)
    return x.mT if tall else x


class Muon(Optimizer):
    """Muon over (stacks of) matrices: each update has root mean square 0.2 x `lr`, whatever the shape.

    Args:
        params: parameters of at least two axes, or groups of them as torch's optimizers take. A group's `axes`
            names, per parameter, the two axes that form a matrix; all other axes are a stack.
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
        steps: int = 5,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps, "axes": None}
        self.dtype = dtype
        super().__init__(params, defaults)
        for group in self.param_groups:
            group["axes"] = group["axes"] or [(-2, -1)] * len(group["params"])
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"Muon takes matrices; got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[Any, ...], list[nn.Parameter]] = {}
            for parameter, axes in zip(group["params"], group["axes"]):
                if parameter.grad is not None:
                    key = (parameter.shape, parameter.dtype, axes)
                    by_shape.setdefault(key, []).append(parameter)
            for (_, _, axes), parameters in by_shape.items():
                self._update(parameters, axes, group)

    def _update(self, parameters: list[nn.Parameter], axes: tuple[int, int], group: Mapping[str, Any]) -> None:
        """Update parameters of one shape: one chain of batched products for all of them."""
        direction = torch.stack([whole(d) for d in self._directions(parameters, group["momentum"])])
        # To [n, rows, columns]: the matrix axes last, every other axis a part of the stack.
        moved = direction.movedim([a if a < 0 else a + 1 for a in axes], (-2, -1))
        matrices = moved.reshape(-1, *moved.shape[-2:])
        update = orthogonalize(matrices, group["steps"], self.dtype).reshape(moved.shape)
        update = update.movedim((-2, -1), [a if a < 0 else a + 1 for a in axes])
        # An orthogonal r x c matrix has root mean square 1/sqrt(max(r, c)).
        scale = UPDATE_RMS * max(matrices.shape[-2:]) ** 0.5
        lr = group["lr"]
        mine = [local(p) for p in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(mine, 1 - lr * group["weight_decay"])
        updates = update.to(direction.dtype).unbind()
        torch._foreach_add_(mine, [part(u, p) for u, p in zip(updates, parameters)], alpha=-lr * scale)

    def _directions(self, parameters: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """Nesterov's look-ahead average of each parameter's gradients, and the running average moved on."""
        buffers = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            buffers.append(state["momentum"])
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        averages = [local(b) for b in buffers]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, averages, momentum)
        return [like(a, b) for a, b in zip(ahead, buffers)]
