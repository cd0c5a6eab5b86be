"""The phase symmetry of complex modules: rotating every input by one angle rotates every output by it.

f(e^{ia} x) = e^{ia} f(x) is equivariance; where the output is real (magnitudes, logits), f(e^{ia} x) = f(x) is
invariance. It is what complex blocks are for, and one wrong option loses it, so it can be measured on any module
(`check_equivariance`) and is measured for every option of the built-in ones (`symmetry_table`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError

# No multiples of a right angle: those only swap real and imaginary parts, and much that breaks the symmetry keeps them.
ANGLES = (0.3, 1.1, 2.0, 3.0, -0.7)
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Symmetry:
    """What a measurement found; true when the symmetry holds.

    Args:
        kind: "equivariant" (complex output) or "invariant" (real output).
        error: largest deviation, relative to the largest output.
        tolerance: the deviation that is still rounding.
    """

    kind: str
    error: float
    tolerance: float

    def __bool__(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        return f"{self.kind if self else f'not {self.kind}'} (error {self.error:.1e})"


def check_equivariance(
    module: nn.Module,
    *inputs: Tensor,
    shape: tuple[int, ...] | None = None,
    call: Callable[..., Any] | None = None,
    randomise: bool = True,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Symmetry:
    """Rotate the complex inputs of a module and see whether its outputs follow.

    The module itself is left as it is: a copy in float64 and eval mode is measured, with random parameters, since a
    bias or a gate that starts at zero hides what it does.

    Args:
        module: a module whose inputs are complex and whose output is complex or real; of a tuple every tensor counts.
        inputs: complex inputs; by default one random tensor.
        shape: shape of the default input; [2, 7, d_model] when the module has a `d_model`.
        call: `call(module, *inputs)` instead of `module(*inputs)`.
        randomise: give the copy random parameters.
        tolerance: largest relative deviation that counts as rounding.
        seed: seed of parameters and inputs.

    Raises:
        InputError: without inputs for a module of unknown width, or for an input that is not complex.
    """
    generator = torch.Generator().manual_seed(seed)
    # In float32 rounding alone is 1e-6, and a small break of the symmetry could hide in it.
    measured = copy.deepcopy(module).to(torch.float64).eval()
    if randomise:
        with torch.no_grad():
            for parameter in measured.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                wide = parameter.ndim >= 2 and parameter.shape[-1] > 2
                pairs = parameter.ndim >= 3
                width = parameter.shape[-2] if pairs else parameter.shape[-1]
                if wide or pairs:
                    # Matrices, at the size that gives outputs like inputs.
                    parameter.copy_(noise * width**-0.5)
                else:
                    # Gains and biases around their start: a gain near 0 would hide what its feature does.
                    parameter.add_(0.5 * noise)
    if not inputs:
        if shape is None:
            features = getattr(module, "d_model", getattr(module, "d_in", None))
            if not isinstance(features, int):
                raise InputError(f"{type(module).__name__} has no d_model: give an input, or shape=(2, 7, width)")
            shape = (2, 7, features)
        inputs = (torch.randn(shape, generator=generator, dtype=torch.complex128),)
    for given in inputs:
        if not given.is_complex():
            raise InputError(f"an input has dtype {given.dtype}; the phase symmetry is about complex inputs")
    xs = [given.to(torch.complex128) for given in inputs]
    run = call or (lambda m, *given: m(*given))
    with torch.no_grad():
        expected = _tensors(run(measured, *xs))
        size = max(float(e.abs().max()) for e in expected) or 1.0
        error = 0.0
        for angle in ANGLES:
            turn = complex(math.cos(angle), math.sin(angle))
            for found, reference in zip(_tensors(run(measured, *(turn * x for x in xs))), expected):
                # A real output has nothing to turn.
                target = turn * reference if reference.is_complex() else reference
                error = max(error, float((found - target).abs().max()) / size)
    kind = "equivariant" if all(e.is_complex() for e in expected) else "invariant"
    return Symmetry(kind, error, tolerance)


def _tensors(output: Any) -> list[Tensor]:
    """Return all floating or complex tensors of an output."""
    if isinstance(output, Tensor):
        return [output] if output.is_complex() or output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    logits = getattr(output, "logits", None)
    return [logits] if isinstance(logits, Tensor) else []


@dataclass(frozen=True)
class SymmetryRow:
    """One line of the table: a part of the library under one option, and what was measured."""

    part: str
    option: str
    default: bool
    symmetry: Symmetry


def symmetry_table(d_model: int = 16, n_heads: int = 2) -> list[SymmetryRow]:
    """Return every option of the complex parts that could touch the phase symmetry, measured now, defaults first."""
    return [
        SymmetryRow(part, option, default, check_equivariance(make(), call=call))
        for part, option, default, make, call in _subjects(d_model, n_heads)
    ]


def _subjects(d: int, h: int) -> list[tuple[str, str, bool, Callable[[], nn.Module], Callable[..., Any] | None]]:
    from blockyard.complex.attention import ComplexAttention
    from blockyard.complex.ffn import ComplexSwiGLU
    from blockyard.complex.linear import ComplexLinear
    from blockyard.complex.norms import COMPLEX_NORMS, ModReLU

    rows: list[tuple[str, str, bool, Callable[[], nn.Module], Callable[..., Any] | None]] = [
        ("linear", "bias=false", True, lambda: ComplexLinear(d, d), None),
        ("linear", "bias=true", False, lambda: ComplexLinear(d, d, bias=True), None),
    ]
    for kind, cls in COMPLEX_NORMS.items():
        rows.append(("norm", kind, kind == "rms", partial(cls, d), None))
    rows.append(("activation", "modReLU", True, lambda: ModReLU(d), None))
    attention: list[tuple[str, dict[str, Any], bool]] = [
        *((f"score={s}", {"score": s}, s == "real") for s in ("real", "magnitude", "phase", "split")),
        *((f"gate={g}", {"gate": g}, g == "none") for g in ("none", "learned", "magnitude")),
        *((f"rope={r}", {"rope": r}, r == "complex") for r in ("complex", "none")),
        ("qk_norm=true", {"qk_norm": True}, True),
        ("qk_norm=false", {"qk_norm": False}, False),
        ("causal=true", {"causal": True}, False),
        ("bias=true", {"bias": True}, False),
    ]
    for option, given, default in attention:
        rows.append(("complex", option, default, partial(ComplexAttention, d, h, **given), None))
    encoding = torch.randn(7, d, generator=torch.Generator().manual_seed(1), dtype=torch.complex128)
    rows.append(("complex", "pe=… (additive)", False, lambda: ComplexAttention(d, h), lambda m, x: m(x, pe=encoding)))
    rows += [
        ("complex_swiglu", "bias=false", True, lambda: ComplexSwiGLU(d, d_ff=d), None),
        ("complex_swiglu", "bias=true", False, lambda: ComplexSwiGLU(d, d_ff=d, bias=True), None),
        ("gate of a SwiGLU", "a complex factor g ⊙ u", False, lambda: _ComplexGate(d), None),
        ("activation", "ReLU of each part", False, lambda: _PartwiseReLU(d), None),
    ]
    return rows


class _ComplexGate(nn.Module):
    """What the library does not offer, measured for the table: value times a complex, input-dependent gate."""

    def __init__(self, d_model: int) -> None:
        from blockyard.complex.linear import ComplexLinear

        super().__init__()
        self.d_model = d_model
        self.gate, self.value = ComplexLinear(d_model, d_model), ComplexLinear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(x) * self.value(x)


class _PartwiseReLU(nn.Module):
    """The "split" activation of many complex networks, measured for the table."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def forward(self, x: Tensor) -> Tensor:
        return torch.complex(x.real.relu(), x.imag.relu())
