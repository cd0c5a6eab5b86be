"""The roofline: the least time that a piece of work can take on this machine, from two rates measured beside it.

    least seconds = max(FLOPs / rate of matrix products, bytes / rate of reading)        share = least / measured

(Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009.) Both counts are of what cannot be left out: FLOPs of the
matrix products, masked pairs not among them; weights, input, output and cache once each. What a block does beside that,
its element-wise passes and copies, is what the share shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from blockyard.bench.schema import Measured, Roofline
from blockyard.bench.subject import DTYPES, Subject
from blockyard.bench.timing import Case, Clock, Times, interleave, summarise
from blockyard.nn import products
from blockyard.report.stats import quartiles

# The gauge's name among contestants: no choice is called so.
GAUGE = "matrix product"
# A forward pass, and gradients of what is read and of the weights: three products for each.
TRAINING_PASSES = 3
Limit = Literal["products", "memory"]

# Sides of square products: the fastest is the rate. On a device a product of 1024 ends before it is under way.
_SIDES, _SIDES_ON_DEVICE = (256, 512, 1024), (2048, 4096, 8192)
# Bytes read: from what a core's own cache holds to what none does.
_SIZES, _SIZES_ON_DEVICE = tuple(1 << k for k in range(16, 29, 2)), tuple(1 << k for k in range(20, 31, 2))
_ROUNDS, _ROUND_SECONDS = 5, 0.02


@dataclass(frozen=True)
class Work:
    """What a unit of work cannot do without: real FLOPs of matrix products, and bytes read or written."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOPs per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches in this dtype, with this many threads.

    Args:
        flops_per_second: of the fastest square matrix product.
        side: of that product's matrices.
        reading: (bytes of a buffer, bytes per second of reading it again and again), by rising size.
        by_cpu_time: whether seconds are CPU time, which of one thread holds nothing of what others do on the machine.
    """

    flops_per_second: float
    side: int
    reading: tuple[tuple[int, float], ...]
    by_cpu_time: bool = False

    def seconds(self, times: Times) -> list[float]:
        """Return the seconds of each round by the clock that the rates go by."""
        return times.cpu if self.by_cpu_time else times.wall

    def bytes_per_second(self, size: float) -> float:
        """Return the rate of reading for work of so many bytes, between measured sizes in proportion of logarithms."""
        places = [math.log(known) for known, _ in self.reading]
        at = min(max(math.log(max(size, 1.0)), places[0]), places[-1])
        above = next(i for i, place in enumerate(places) if place >= at)
        if above == 0:
            return self.reading[0][1]
        part = (at - places[above - 1]) / (places[above] - places[above - 1])
        low, high = (math.log(rate) for _, rate in self.reading[above - 1 : above + 1])
        return math.exp(low + part * (high - low))

    def least_seconds(self, work: Work) -> tuple[float, Limit]:
        """Return the least time of a piece of work, and which rate sets it."""
        multiplying, reading = work.flops / self.flops_per_second, work.bytes / self.bytes_per_second(work.bytes)
        return (multiplying, "products") if multiplying >= reading else (reading, "memory")

    def record(self) -> Roofline:
        """Return it as bench.json has it."""
        return {
            "flops_per_second": self.flops_per_second,
            "side": self.side,
            "seconds": "cpu" if self.by_cpu_time else "wall",
            "reading": [{"bytes": size, "bytes_per_second": rate} for size, rate in self.reading],
        }


def measure_ceilings(dtype: torch.dtype, device: torch.device) -> Ceilings:
    """Measure both rates, in about two seconds.

    Args:
        dtype: of the matrix products.
        device: where they run, with torch's present number of threads.
    """
    clock, on_device = Clock(device), device.type == "cuda"
    sides = _SIDES_ON_DEVICE if on_device else _SIDES
    by_cpu_time = not on_device and torch.get_num_threads() == 1
    fastest = _fastest({str(side): product(side, dtype, device) for side in sides}, clock, by_cpu_time)
    rates = {int(name): _product_flops(int(name)) / best for name, best in fastest.items()}
    side = max(rates, key=lambda each: rates[each])
    reading = []
    for size in _SIZES_ON_DEVICE if on_device else _SIZES:
        # Which of the two reads faster depends on the size and on the library below torch.
        best = min(_fastest(_reads(size, device), clock, by_cpu_time).values())
        reading.append((size, size / best))
    return Ceilings(rates[side], side, tuple(reading), by_cpu_time)


def product(side: int, dtype: torch.dtype, device: torch.device) -> Case:
    """Return a contestant that multiplies two square matrices, by the library that blocks use here."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))

    def run(units: int) -> None:
        with torch.no_grad():
            for _ in range(units):
                products.product(a, b)

    return Case(run)


def _product_flops(side: int) -> int:
    return 2 * side**3


def _reads(size: int, device: torch.device) -> dict[str, Case]:
    """Return two ways of reading a buffer of so many bytes: as a matrix times a vector, and as a dot product."""
    # Float32 whatever the benchmark's dtype: bytes are bytes, and sums of it are vectorised everywhere.
    held = torch.ones(size // 4, device=device)
    matrix, vector = held.view(-1, 1024), torch.ones(1024, device=device)
    halves = held.view(2, -1)

    def times_vector(units: int) -> None:
        with torch.no_grad():
            for _ in range(units):
                torch.mv(matrix, vector)

    def dot(units: int) -> None:
        with torch.no_grad():
            for _ in range(units):
                torch.dot(halves[0], halves[1])

    return {"mv": Case(times_vector), "dot": Case(dot)}


def _fastest(cases: Mapping[str, Case], clock: Clock, by_cpu_time: bool) -> dict[str, float]:
    """Return each contestant's least seconds: a rate is what the machine can do, not what it usually does."""
    times = interleave(cases, clock, rounds=_ROUNDS, round_seconds=_ROUND_SECONDS)
    return {name: min(taken.cpu if by_cpu_time else taken.wall) for name, taken in times.items()}


def whole_work(subject: Subject, batch: int, length: int, counted: float | None, *, training: bool) -> Work:
    """Return what a pass over whole sequences cannot do without, per layer.

    Args:
        subject: what is timed.
        batch, length: of the input.
        counted: FLOPs of a forward pass, per layer, where they were counted.
        training: forward and backward rather than forward alone.
    """
    cost, layers = subject.cost(length), len(subject.layers)
    # Every query scores itself and what is before it: (T + 1) / 2T of all pairs.
    masked = cost.pair_flops * (length - 1) / (2 * length)
    flops = batch * cost.flops / layers
    if subject.complex_valued and counted is not None:
        # Gauss's product of complex numbers takes three real ones, the formula four.
        flops = min(flops, counted)
    flops -= batch * masked / layers
    stream = batch * length * subject.d_model * (2 if subject.complex_valued else 1)
    weights = _weights(subject, flops)
    # Backward reads the weights again and writes their gradients; it reads the output's gradient, writes the input's.
    held = 3 * weights + 4 * stream if training else weights + 2 * stream
    return Work((TRAINING_PASSES if training else 1) * flops, held * subject.dtype.itemsize)


def step_work(subject: Subject, batch: int, flops: float, cache_bytes: float) -> Work:
    """Return what decoding one token of each sequence cannot do without, per layer.

    Args:
        subject: what is timed.
        batch: sequences.
        flops: of one step, per layer, counted.
        cache_bytes: that the cache holds, per layer.
    """
    stream = 2 * batch * subject.d_model * (2 if subject.complex_valued else 1)
    return Work(flops, cache_bytes + (_weights(subject, flops) + stream) * subject.dtype.itemsize)


def _weights(subject: Subject, flops: float) -> float:
    """Return weights that are read: all, or of a mixture no more than take part in a multiply-add."""
    return min(subject.parameters, flops / 2)


class Roof:
    """The ceilings, and a product that takes turns with the contestants so that a slow round is known for one.

    Args:
        dtype, device: of what is timed.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.ceilings = measure_ceilings(dtype, device)
        self._gauge = product(self.ceilings.side, dtype, device)

    def join(self, cases: Mapping[str, Case]) -> dict[str, Case]:
        """Return the contestants with the gauge among them."""
        return {**cases, GAUGE: self._gauge}

    def judge(self, measured: Mapping[str, Measured], times: Mapping[str, Times], works: Mapping[str, Work]) -> None:
        """Add `flops`, `bytes`, `share` and `limit` to what was measured of each choice.

        Args:
            measured: by choice, as `summarise` gives it; changed in place.
            times: of the same round, the gauge's among them.
            works: by choice, of one unit of work.
        """
        # How many times slower than at its best the machine was, round by round.
        best = _product_flops(self.ceilings.side) / self.ceilings.flops_per_second
        slowness = [taken / best for taken in self.ceilings.seconds(times[GAUGE])]
        for name, found in measured.items():
            least, limit = self.ceilings.least_seconds(works[name])
            taken = self.ceilings.seconds(times[name])
            shares = [least * slow / max(seconds, 1e-12) for slow, seconds in zip(slowness, taken)]
            spread: Any = quartiles(shares)
            found["flops"], found["bytes"] = works[name].flops, works[name].bytes
            found["least_seconds"], found["share"], found["limit"] = least, spread, limit


def make_roof(config: Any, device: torch.device, say: Callable[[str], None]) -> Roof | None:
    """Measure what shares are taken of, where a benchmark's options ask for it."""
    if not config.roofline:
        return None
    say("rates of matrix products and of reading")
    return Roof(DTYPES[config.dtype], device)


def timed(
    cases: Mapping[str, Case],
    clock: Clock,
    layers: Mapping[str, int],
    reference: str,
    *,
    rounds: int,
    round_seconds: float,
    per_unit: float,
    roof: Roof | None,
    works: Callable[[], Mapping[str, Work]],
) -> dict[str, Measured]:
    """Time choices in turns; return what was measured of each, per layer.

    Args:
        cases: by choice.
        clock, rounds, round_seconds: as `interleave` takes them.
        layers: of each choice.
        reference: the choice that speed is relative to.
        per_unit: things done in a unit of work.
        roof: what a share is taken of; None for no shares.
        works: what a unit of each choice's work cannot do without; asked for beside a roof.
    """
    times = interleave(roof.join(cases) if roof else cases, clock, rounds=rounds, round_seconds=round_seconds)
    for name in cases:
        times[name].divide(layers[name])
    measured = {name: summarise(times[name], times.get(reference), per_unit=per_unit) for name in cases}
    if roof is not None:
        roof.judge(measured, times, works())
    return measured
