"""Linear modulations: how bits become points of the complex plane. All have unit mean power."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from blockyard.errors import InputError, suggest


def _pam(m: int) -> Tensor:
    """Return m equally spaced real levels, symmetric around 0."""
    return torch.complex(2.0 * torch.arange(m, dtype=torch.float64) - (m - 1), torch.zeros(m, dtype=torch.float64))


def _ask(m: int) -> Tensor:
    """Return m equally spaced non-negative levels, on-off keying for m = 2."""
    return torch.complex(torch.arange(m, dtype=torch.float64), torch.zeros(m, dtype=torch.float64))


def _psk(m: int, start: float = 0.0) -> Tensor:
    """Return m points on a circle."""
    angles = start + 2 * math.pi * torch.arange(m, dtype=torch.float64) / m
    return torch.polar(torch.ones(m, dtype=torch.float64), angles)


def _qam(m: int) -> Tensor:
    """Return a square grid of m points."""
    levels = _pam(math.isqrt(m)).real
    side = len(levels)
    return torch.complex(levels[:, None].expand(side, side), levels.expand(side, side)).flatten()


def _cross(m: int) -> Tensor:
    """Return a cross of m points: the square of the next size without its corners."""
    side = {32: 6, 128: 12}[m]
    levels = _pam(side).real
    grid = torch.complex(levels[:, None].expand(side, side), levels.expand(side, side)).flatten()
    edge = levels.max() - (2 if m == 128 else 0)
    return grid[~((grid.real.abs() >= edge) & (grid.imag.abs() >= edge))]


def _apsk(rings: tuple[int, ...], radii: tuple[float, ...], starts: tuple[float, ...]) -> Tensor:
    """Return rings of equally spaced points, each from an angle on, as in DVB-S2 (ETSI EN 302 307, section 5.4)."""
    return torch.cat([radius * _psk(m, start) for m, radius, start in zip(rings, radii, starts)])


_MAKERS: dict[str, Callable[[], Tensor]] = {
    "bpsk": lambda: _pam(2),
    "pam4": lambda: _pam(4),
    "qpsk": lambda: _psk(4, math.pi / 4),
    "8psk": lambda: _psk(8),
    "16qam": lambda: _qam(16),
    "64qam": lambda: _qam(64),
    "ook": lambda: _ask(2),
    "4ask": lambda: _ask(4),
    "8ask": lambda: _ask(8),
    "pam8": lambda: _pam(8),
    "16psk": lambda: _psk(16),
    "32psk": lambda: _psk(32),
    "16apsk": lambda: _apsk((4, 12), (1.0, 2.85), (math.pi / 4, math.pi / 12)),
    # The outer ring lies at multiples of π/8, one point on the axis, unlike the two within (figure 12 of the standard).
    "32apsk": lambda: _apsk((4, 12, 16), (1.0, 2.84, 5.27), (math.pi / 4, math.pi / 12, 0.0)),
    "32qam": lambda: _cross(32),
    "128qam": lambda: _cross(128),
    "256qam": lambda: _qam(256),
}
MODULATIONS = tuple(_MAKERS)
# The six of the usual experiments.
USUAL = ("bpsk", "pam4", "qpsk", "8psk", "16qam", "64qam")


@cache
def constellation(name: str) -> Tensor:
    """Return the points of a modulation, complex128, of unit mean power.

    Raises:
        InputError: for an unknown name, with the nearest one.
    """
    if name not in _MAKERS:
        hint = suggest(name, MODULATIONS) or f"; there are: {', '.join(MODULATIONS)}"
        raise InputError(f"no modulation named {name!r}{hint}")
    points = _MAKERS[name]()
    return points / points.abs().square().mean().sqrt()


@cache
def symmetry_order(name: str) -> int:
    """Return the largest n for which turning the constellation by 2π/n gives itself."""
    points = constellation(name)
    for order in range(len(points), 0, -1):
        angle = 2 * math.pi / order
        turned = points * complex(math.cos(angle), math.sin(angle))
        if bool(((turned[:, None] - points).abs().amin(1) < 1e-9).all()):
            return order
    return 1


@cache
def product_levels(name: str) -> tuple[Tensor, Tensor] | None:
    """Return real and imaginary levels when the constellation is their product (QAM, PAM, QPSK), else None."""
    points = constellation(name)
    # Rounding before unique: levels that differ in the last bit are one.
    real, imaginary = (torch.unique((part * 1e9).round()) / 1e9 for part in (points.real, points.imag))
    return (real, imaginary) if len(real) * len(imaginary) == len(points) else None


def parse_modulations(text: str) -> tuple[str, ...]:
    """Read `bpsk,qpsk,16qam`, `usual` (the six usual ones) or `all`.

    Raises:
        InputError: for an unknown or repeated name, or fewer than two.
    """
    if text in ("usual", "all"):
        return USUAL if text == "usual" else MODULATIONS
    names = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in names:
        constellation(name)
    if len(set(names)) != len(names) or len(names) < 2:
        raise InputError(f"data.modulations={text!r} should be at least two different names, or usual, or all")
    return names
