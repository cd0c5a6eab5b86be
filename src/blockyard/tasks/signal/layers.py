"""Layers of the signal model around its blocks: stems on samples, what joins features to them, and the head."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blockyard.complex.linear import ComplexLinear, ComplexModule, from_pairs, to_pairs
from blockyard.complex.norms import ModReLU, make_complex_norm
from blockyard.nn.linear import Linear
from blockyard.nn.roles import Role
from blockyard.protocol.block import Aux
from blockyard.protocol.costs import Cost, linear_flops

# Width of what joins features and blocks before the head.
JOINED = 128
# Highest frequency that a real stem starts with, in radians per unit of amplitude: levels 0.5 apart are told apart.
MOST_RADIANS = 12.0


class OnParts(nn.Module):
    """A real block on the real and imaginary parts of a complex stream, side by side."""

    complex_valued = True
    norm = staticmethod(make_complex_norm)

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block

    def forward(self, x: Tensor, **given: Any) -> tuple[Tensor, Aux | None]:
        out, aux = self.block(to_pairs(x), **given)
        return from_pairs(out), aux

    def cost(self, tokens: int) -> Cost:
        return self.block.cost(tokens)

    def zero_init_output(self) -> None:
        if hasattr(self.block, "zero_init_output"):
            self.block.zero_init_output()


class RealStem(nn.Module):
    """sin(W [re, im] + b) of every patch. Where the points of a constellation lie is a periodic question, which a
    network of smooth steps learns slowly; frequencies start spread over those of usual constellations, half of them
    along one part of a sample, and are learnt like every weight."""

    def __init__(self, patch: int, d_model: int) -> None:
        super().__init__()
        self.embed = Linear(2 * patch, d_model, bias=True)
        with torch.no_grad():
            along = d_model // 2
            weight = torch.zeros(d_model, 2 * patch)
            frequency = torch.linspace(0.5, MOST_RADIANS, -(-along // 2)).repeat_interleave(2)[:along]
            weight[torch.arange(along), torch.arange(along) % (2 * patch)] = frequency
            direction = torch.nn.functional.normalize(torch.randn(d_model - along, 2 * patch), dim=-1)
            weight[along:] = direction * (0.5 * MOST_RADIANS * torch.rand(d_model - along, 1))
            self.embed.weight.copy_(weight)
        nn.init.uniform_(self.embed.bias, -math.pi, math.pi)

    def forward(self, patches: Tensor) -> Tensor:
        # Angles reach 30 radians, where numbers of half precision are an eighth apart.
        with torch.autocast(patches.device.type, enabled=False):
            return torch.sin(self.embed(to_pairs(patches)))

    def cost(self, tokens: int) -> Cost:
        weight = self.embed.weight
        return Cost(sum(p.numel() for p in self.parameters()), linear_flops(tokens, (weight.shape[1], weight.shape[0])))


class ComplexStem(ComplexModule):
    """modReLU(W x) of every patch. Thresholds from −2 to 0 let some features see only large amplitudes, so that their
    proportions say how large a sample is, which the blocks' norms would else take away."""

    def __init__(self, patch: int, d_model: int) -> None:
        super().__init__()
        self.embed = ComplexLinear(patch, d_model)
        nn.init.normal_(self.embed.weight, std=(2 * patch) ** -0.5)
        self.activation = ModReLU(d_model)
        with torch.no_grad():
            self.activation.bias.copy_(torch.linspace(-2.0, 0.0, d_model))

    def forward(self, patches: Tensor) -> Tensor:
        return self.activation(self.embed(patches))

    def cost(self, tokens: int) -> Cost:
        return Cost(sum(p.numel() for p in self.parameters()), self.embed.flops(tokens))


class Joint(nn.Module):
    """Two layers of GELU over features and what the blocks have made of the frame, side by side.

    Args:
        width: of the blocks' mean.
        features: how many.

    Shapes: x [B, width], features [B, n] -> [B, JOINED].
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.first = Linear(width + features, JOINED, bias=True)
        self.second = Linear(JOINED, JOINED, bias=True)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = F.gelu(self.first(torch.cat([x, features.to(x.dtype)], dim=-1)))
        return x + F.gelu(self.second(x))

    def cost(self) -> Cost:
        """Return parameters, and forward FLOPs of one frame."""
        shapes = [(m.weight.shape[1], m.weight.shape[0]) for m in (self.first, self.second)]
        return Cost(sum(p.numel() for p in self.parameters()), linear_flops(1, *shapes))


class Head(Linear):
    """The output matrix."""

    def parameter_roles(self) -> dict[str, Role]:
        return {"weight": Role("head")}
