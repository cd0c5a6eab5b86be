"""Scaled rotary frequencies: how models that were trained on short texts are made to read longer ones.

A scaling is written like a block with its options, `llama3[factor=8,original=8192]`; all of them change the plain
frequencies θ^(−2i/d) of `nn/rotary.py`:

    linear    every frequency ÷ factor (position interpolation, arXiv 2306.15595)
    dynamic   a larger θ for rows longer than `original`, by their length (NTK-aware)
    yarn      slow pairs ÷ factor, fast ones as they are, a ramp between (arXiv 2309.00071); cos and sin × magnitude
    llama3    the same idea by wavelength: above original/low ÷ factor, below original/high as they are
    longrope  a factor for every pair: `short` ones up to `original` positions, `long` ones for longer rows
              (arXiv 2402.13753); cos and sin × magnitude
    given     other frequencies altogether, in radians per position: those of chosen pairs of a trained model
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from blockyard.errors import InputError, at_least, one_of, suggest


class Scaling:
    """One way of scaling; those below say what their options mean.

    Attributes:
        by_length: whether the length of a row decides: then keys in a cache may have been turned by other frequencies.
        ever_other: whether every length beyond the original has frequencies of its own.
        magnitude: what cos and sin are multiplied by.
        original: positions the model was trained on, for those that ask for it.
    """

    by_length: ClassVar[bool] = False
    ever_other: ClassVar[bool] = False
    # Annotations alone: a value here would be the default of the fields below.
    magnitude: Any = 1.0
    original: Any

    def __post_init__(self) -> None:
        for name in ("factor", "magnitude", "low", "beta_slow", "beta_fast"):
            value = getattr(self, name, 1.0)
            if not 0 < value < float("inf"):
                raise InputError(f"rope_scaling: {name}={value} should be a number above 0")
        at_least(1, **{"rope_scaling: original": getattr(self, "original", 1)})

    def parts(self, past: int, length: int) -> bool:
        """Return whether the first `past` positions of a row were turned otherwise than those of the row they now are
        in, of `length` positions."""
        return self.by_length and past > 0 and length > self.original and (self.ever_other or past <= self.original)

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        """Return the angle per position of each pair, float64 [d/2], or [..., d/2] for lengths [..., 1].

        Args:
            d: width that is rotated.
            theta: base of the wavelengths.
            length: positions of the whole row, past and new.
            device: where.
        """
        raise NotImplementedError


def plain_frequencies(d: int, theta: float, device: torch.device) -> Tensor:
    """Compute θ^(−2i/d) in float64 [d/2]."""
    # At position 100,000 a float32 angle is already off by 0.004 rad.
    return theta ** (-torch.arange(0, d, 2, device=device, dtype=torch.float64) / d)


@dataclass(frozen=True)
class Linear(Scaling):
    """Positions lie closer together.

    Args:
        factor: how many times.
    """

    factor: float

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        return plain_frequencies(d, theta, device) / self.factor


@dataclass(frozen=True)
class Dynamic(Scaling):
    """A base that grows with the length of rows longer than the original.

    Args:
        factor: how fast.
        original: positions up to which nothing changes.
    """

    factor: float
    original: int
    by_length: ClassVar[bool] = True
    ever_other: ClassVar[bool] = True

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        if d < 4:
            raise InputError(f"rope_scaling=dynamic: a rotated width of {d} has one pair; use at least 4")
        grown = torch.as_tensor(length, dtype=torch.float64, device=device).clamp_min(self.original) / self.original
        base = theta * (self.factor * grown - (self.factor - 1)) ** (d / (d - 2))
        return base ** (-torch.arange(0, d, 2, device=device, dtype=torch.float64) / d)


@dataclass(frozen=True)
class Yarn(Scaling):
    """Pairs that turn less than `beta_slow` times over the original context are interpolated, those that turn more than
    `beta_fast` times are left, with a ramp between.

    Args:
        factor: how many times longer.
        original: positions of the training.
        beta_fast: turns from which on a pair is left.
        beta_slow: turns up to which it is interpolated.
        magnitude: of cos and sin.
        truncate: let the ramp begin and end at whole pairs.
    """

    factor: float
    original: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    magnitude: float = 1.0
    truncate: bool = True

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        plain = plain_frequencies(d, theta, device)
        low, high = (self._pair(turns, d, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, d - 1)
        pairs = torch.arange(d // 2, dtype=torch.float64, device=device)
        # A ramp of no width would divide by 0.
        ramp = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def _pair(self, turns: float, d: int, theta: float) -> float:
        """Return which pair turns so often over the original context."""
        return d * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))


@dataclass(frozen=True)
class Llama3(Scaling):
    """Long wavelengths are interpolated, short ones left, with a ramp in the frequency between.

    Args:
        factor: how many times longer.
        original: positions of the training.
        low: wavelengths above original / low are interpolated.
        high: those below original / high are left.
    """

    factor: float
    original: int
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.low < self.high < float("inf"):
            raise InputError(f"rope_scaling=llama3: high={self.high} should be above low={self.low}")

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        plain = plain_frequencies(d, theta, device)
        # Turns over the original context: `low` of them and fewer, or `high` and more.
        turns = self.original * plain / (2 * math.pi)
        left = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain / self.factor * (1 - left) + plain * left


@dataclass(frozen=True)
class LongRope(Scaling):
    """A divisor for each pair, one set for rows within the original context and one for longer ones.

    Args:
        original: positions of the training.
        short: divisors of the pairs for rows of up to so many positions.
        long: divisors for longer rows.
        magnitude: of cos and sin.
    """

    original: int
    short: tuple[float, ...]
    long: tuple[float, ...]
    magnitude: float = 1.0
    by_length: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 < each < float("inf") for each in (*self.short, *self.long)):
            raise InputError("rope_scaling=longrope: short and long should be numbers above 0")

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        plain = plain_frequencies(d, theta, device)
        for name, factors in (("short", self.short), ("long", self.long)):
            if len(factors) != d // 2:
                raise InputError(f"rope_scaling=longrope: {name} has {len(factors)} factors for {d // 2} pairs")
        divisors = (torch.tensor(each, dtype=torch.float64, device=device) for each in (self.short, self.long))
        short, long = (plain / each for each in divisors)
        if isinstance(length, Tensor):
            return torch.where(length > self.original, long, short)
        return long if length > self.original else short


@dataclass(frozen=True)
class Given(Scaling):
    """Frequencies of one's own, whatever the base.

    Args:
        pairs: radians per position of each pair.
    """

    pairs: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(abs(each) < float("inf") for each in self.pairs):
            raise InputError("rope_scaling=given: pairs should be numbers, radians per position")

    def frequencies(self, d: int, theta: float, length: int | Tensor, device: torch.device) -> Tensor:
        if len(self.pairs) != d // 2:
            raise InputError(f"rotary frequencies are given for {len(self.pairs)} pairs, but {d // 2} are rotated")
        return torch.tensor(self.pairs, dtype=torch.float64, device=device)


KINDS: dict[str, type[Scaling]] = {
    "linear": Linear, "dynamic": Dynamic, "yarn": Yarn, "llama3": Llama3, "longrope": LongRope, "given": Given,
}  # fmt: skip


@cache
def scaling_of(text: str) -> Scaling:
    """Read a scaling: `yarn[factor=4,original=32768]`; lists are separated by blanks, `short=1 1.05 1.1`.

    Raises:
        InputError: for an unknown kind or option, one that is missing, or no number.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\[(.*)\])?\s*", text, re.DOTALL)
    if match is None:
        raise InputError(f"rope_scaling={text!r} should be a name with options, such as llama3[factor=8,original=8192]")
    one_of(KINDS, rope_scaling=match[1])
    kind = KINDS[match[1]]
    given: dict[str, Any] = {}
    known = {field.name: str(field.type) for field in fields(kind)}  # type: ignore[arg-type]
    for item in (match[2] or "").split(",") if (match[2] or "").strip() else []:
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in known:
            near = suggest(name, known) or f"; it has {', '.join(known)}"
            raise InputError(f"rope_scaling={match[1]} has no option {name!r}{near}")
        given[name] = _value(known[name], value, f"rope_scaling={match[1]}: {name}={value!r}")
    every = fields(kind)  # type: ignore[arg-type]
    missing = [field.name for field in every if field.name not in given and field.default is MISSING]
    if missing:
        raise InputError(f"rope_scaling={match[1]} needs {', '.join(missing)}")
    return kind(**given)


def scaling_text(kind: str, **options: float | bool | Sequence[float]) -> str:
    """Return a scaling as the text that `scaling_of` reads."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(f"{name}={str(value).lower()}")
        elif isinstance(value, int | float):
            words.append(f"{name}={value!r}")
        else:
            words.append(f"{name}={' '.join(map(repr, value))}")
    return f"{kind}[{','.join(words)}]"


def given(frequencies: Sequence[float]) -> str:
    """Return these frequencies, radians per position of each pair, as a scaling."""
    return scaling_text("given", pairs=[float(each) for each in frequencies])


def _value(kind: str, text: str, where: str) -> int | float | bool | tuple[float, ...]:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        if kind.startswith("tuple"):
            return tuple(float(word) for word in text.split())
        return int(text) if kind == "int" else float(text)
    except (ValueError, KeyError, OverflowError):
        raise InputError(f"{where} should be {'a list of numbers' if kind.startswith('tuple') else kind}") from None
