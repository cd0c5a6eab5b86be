"""The optimizers of a run, built from what the modules say about their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.nn.roles import Role, roles
from blockyard.training.config import TrainConfig
from blockyard.training.distributed import is_sharded, local, spread, whole
from blockyard.training.muon import Muon


@dataclass
class _Members:
    """Parameters that share one rule."""

    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    axes: list[tuple[int, int]] = field(default_factory=list)
    pairs: list[bool] = field(default_factory=list)
    parts: list[tuple[int, ...]] = field(default_factory=list)


class Optimizers:
    """AdamW and, by option, Muon over one model, with one schedule and state kept by parameter name.

    Args:
        model: its parameters are grouped by `blockyard.nn.roles.roles`: matrices go to Muon (or AdamW with
            decay), heads to AdamW with decay, embeddings and vectors to AdamW without.
        config: rates, decay, schedule.
        precision: `bf16` lets Muon's products use bf16, as the model's do.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, precision: str = "fp32") -> None:
        self.config = config
        self.names: dict[nn.Parameter, str] = {}
        groups = self._members(model)
        adam, muon = [], []
        for (kind, group_name), members in groups.items():
            # Embeddings are matrices by shape and not by role: orthogonal rows of a table mean nothing (Muon's author
            # leaves them to AdamW).
            by_muon = kind == "matrix" and config.optimizer == "muon"
            group: dict[str, Any] = {
                "params": members.parameters,
                "weight_decay": config.decay(group_name, config.weight_decay) if kind in ("matrix", "head") else 0.0,
                "peak_lr": (config.matrix_lr if by_muon else config.adamw_lr) * config.scale(group_name),
                "role": group_name,
            }
            if by_muon:
                muon.append(group | {"axes": members.axes, "pairs": members.pairs, "parts": members.parts})
            else:
                adam.append(group)
            self.names.update(zip(members.parameters, members.names))
        self.parameters = list(self.names)
        self.members: list[torch.optim.Optimizer] = []
        if adam:
            betas = (config.beta1, config.beta2)
            self.members.append(torch.optim.AdamW(adam, lr=config.adamw_lr, betas=betas, eps=1e-10, fused=True))
        if muon:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            steps = config.orthogonal_steps
            self.members.append(Muon(muon, lr=config.matrix_lr, momentum=config.momentum, steps=steps, dtype=dtype))

    def _members(self, model: nn.Module) -> dict[tuple[str, str], _Members]:
        """Return trainable parameters by (rule, option group), in the model's order."""
        named = dict(model.named_parameters())
        groups: dict[tuple[str, str], _Members] = {}
        for name, role in roles(model).items():
            parameter = named[name]
            if not parameter.requires_grad:
                continue
            members = groups.setdefault((_rule(role), role.group), _Members())
            members.names.append(name)
            members.parameters.append(parameter)
            members.axes.append(role.axes)
            members.pairs.append(role.pairs)
            members.parts.append(role.parts)
        if not groups:
            raise InputError("the model has no trainable parameter")
        return groups

    def step(self, step: int) -> float:
        """Apply the gradients as update number `step` (from 0); returns the factor on the peak rates."""
        factor = lr_factor(step, self.config)
        for optimizer in self.members:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor * self.config.rate(group["role"], step)
            optimizer.step()
        return factor

    def forget_all_but(self, model: nn.Module) -> None:
        """Drop the parameters that the model has no longer, and their state."""
        kept = {id(p) for p in model.parameters()}
        for optimizer in self.members:
            for group in optimizer.param_groups:
                stays = [id(p) in kept for p in group["params"]]
                # Beside the parameters lie lists of what is known of each.
                for key in [key for key, value in group.items() if isinstance(value, list)]:
                    group[key] = [each for each, stay in zip(group[key], stays, strict=True) if stay]
            for parameter in [p for p in optimizer.state if id(p) not in kept]:
                del optimizer.state[parameter]
        self.names = {p: name for p, name in self.names.items() if id(p) in kept}
        self.parameters = list(self.names)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, norm: float) -> None:
        """Scale the gradients from global norm `norm` down to the option `grad_clip`, if they exceed it."""
        if self.config.grad_clip and norm > self.config.grad_clip:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self.config.grad_clip / (norm + 1e-6))

    def grad_norm(self) -> Tensor:
        """Return global L2 norm of the gradients, a scalar tensor (not yet read, so it costs no wait)."""
        gradients = [local(p.grad) for p in self.parameters if p.grad is not None]
        if not gradients:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if is_sharded(self.parameters[0]):
            # The parts are disjoint, so their squares add up.
            square = norm.square()
            torch.distributed.all_reduce(square)
            norm = square.sqrt()
        return norm

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every state tensor, whole, as ("parameter name/state key", tensor); a collective call when sharded."""
        for name, tensor in self.own_state():
            yield name, whole(tensor)

    def own_state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every state tensor, sharded as it is, as ("parameter name/state key", tensor)."""
        for optimizer in self.members:
            for parameter, state in optimizer.state.items():
                assert isinstance(parameter, nn.Parameter)
                for key, value in state.items():
                    if isinstance(value, Tensor):
                        yield f"{self.names[parameter]}/{key}", value

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` gave, sharded and laid out in memory as the parameters now are.

        Raises:
            InputError: for state of a parameter that is not there, or of another shape. A parameter without any begins
                anew, as one does that no gradient has reached.
        """
        by_name: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, _, state_key = key.rpartition("/")
            by_name.setdefault(name, {})[state_key] = tensor
        for optimizer in self.members:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    name = self.names[parameter]
                    state = by_name.pop(name, {})
                    if state:
                        optimizer.state[parameter] = {k: _restore(name, k, t, parameter) for k, t in state.items()}
        if by_name:
            raise InputError(f"optimizer state for unknown parameters: {', '.join(sorted(by_name)[:3])}")


def _rule(role: Role) -> str:
    """Return roles with one rule fall together, so that fewer fused calls do the work."""
    return "plain" if role.kind in ("embedding", "vector") else role.kind


def _restore(name: str, key: str, tensor: Tensor, parameter: nn.Parameter) -> Tensor:
    if tensor.ndim == 0:
        # AdamW's step count: fused kernels want it beside the parameter.
        return tensor.to(parameter.device)
    if tensor.shape != parameter.shape:
        raise InputError(
            f"optimizer state {name}/{key} has shape {tuple(tensor.shape)}, its parameter {tuple(parameter.shape)}"
        )
    # Fused steps pair the raw memory of a parameter with that of its state, so the state has the parameter's strides:
    # a file knows shapes alone, and a transposed parameter would meet the moments of other entries.
    return torch.empty_like(parameter).copy_(spread(tensor.to(parameter.device), parameter))


def lr_factor(step: int, config: TrainConfig) -> float:
    """Return factor on the peak learning rate for the update number `step` (the first is 0).

    Linear warm-up over `warm_steps` steps, then: `constant` stays at 1; `cosine` falls to `final_lr` along half a
    cosine (arXiv 1608.03983); `wsd` stays at 1 and falls linearly over the last `decay_fraction` of the run
    (arXiv 2404.06395).
    """
    warmup = config.warm_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        progress = _progress(step, warmup, config.steps)
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    # The decay never starts inside the warm-up, so that the rate has one peak.
    start = max(warmup, config.steps - round(config.decay_fraction * config.steps))
    return 1.0 - (1 - config.final_lr) * _progress(step, start, config.steps)


def _progress(step: int, start: int, end: int) -> float:
    """Return the part of the way from `start` to the last step before `end`, within [0, 1]."""
    return min(max((step - start) / max(end - 1 - start, 1), 0.0), 1.0)
