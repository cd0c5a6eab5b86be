"""What a parameter is to the optimizer: modules say it of their own parameters, `roles` collects it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Role:
    """How an optimizer should treat a parameter.

    Args:
        kind: matrix (decayed; Muon's domain), embedding, head (the output matrix) or vector (gains, biases).
        axes: the two axes that form the matrix; any others are a stack of independent matrices.
        group: its option group: "main", "vein" for projectors that warm up slowly, or "gate" for spectral gates,
            whose decay can be set apart.
        pairs: the last axis holds real and imaginary parts; the matrix is complex.
        parts: numbers of rows, where several maps of one input lie stacked in the matrix and are to be treated as the
            matrices that they are; () = one map.
    """

    kind: Literal["matrix", "embedding", "head", "vector"]
    axes: tuple[int, int] = (-2, -1)
    group: str = "main"
    pairs: bool = False
    parts: tuple[int, ...] = ()


def roles(model: nn.Module) -> dict[str, Role]:
    """Return the role of every parameter by its full name; a tied parameter is listed once, under its first name.

    A module declares the roles of its direct parameters in `parameter_roles()`. The rest follow from their
    shape: fewer than two axes make a vector, two or more a (stack of) matrices.
    """
    found: dict[str, Role] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        declared = module.parameter_roles() if hasattr(module, "parameter_roles") else {}
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            default = Role("vector" if parameter.ndim < 2 else "matrix")
            if isinstance(module, nn.Embedding):
                default = Role("embedding")
            found[f"{prefix}.{name}" if prefix else name] = declared.get(name, default)
    return found
