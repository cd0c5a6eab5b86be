"""How things are timed: in turns, there and back, so that a machine that slows down slows all contestants alike.

Each contestant repeats its work until a round lasts a fixed time. A round's figure is compared with the reference's in
the same round; medians and quartiles are taken over the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from blockyard.bench.schema import Measured
from blockyard.report.stats import quartiles, speed_word


@dataclass
class Case:
    """One contestant.

    Args:
        run: does so many units of work.
        rewind: brings things back to where `run` began; not timed.
        most: units at a time at most.
    """

    run: Callable[[int], None]
    rewind: Callable[[], None] = lambda: None
    most: int = 1 << 20


@dataclass
class Times:
    """Seconds per unit of one contestant, one entry a round."""

    units: int
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def divide(self, layers: int) -> None:
        """Make them per layer, so that a pattern of several compares with one."""
        self.wall = [seconds / layers for seconds in self.wall]
        self.cpu = [seconds / layers for seconds in self.cpu]


class Clock:
    """Wall seconds (on CUDA the device's own, between two events) and process CPU seconds of a piece of work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self, work: Callable[[], object]) -> tuple[float, float]:
        if self.device.type == "cuda":
            return self._on_device(work)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        return time.perf_counter() - wall, time.process_time() - cpu

    def _on_device(self, work: Callable[[], object]) -> tuple[float, float]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(self.device)
        cpu = time.process_time()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000, time.process_time() - cpu


def interleave(cases: Mapping[str, Case], clock: Clock, *, rounds: int, round_seconds: float) -> dict[str, Times]:
    """Time all contestants in turns.

    Args:
        cases: by name.
        clock: for the device they run on.
        rounds: turns of each.
        round_seconds: how long a turn should last; a unit that takes longer is a turn of its own.
    """
    times = {name: Times(_units(case, clock, round_seconds)) for name, case in cases.items()}
    order = list(cases)
    for _ in range(rounds):
        for name in order:
            case, taken = cases[name], times[name]
            wall, cpu = clock(partial(case.run, taken.units))
            case.rewind()
            taken.wall.append(wall / taken.units)
            taken.cpu.append(cpu / taken.units)
        order.reverse()
    return times


def _units(case: Case, clock: Clock, seconds: float) -> int:
    """Return units that last about so long; finding out also warms the contestant up."""
    units = 1
    while True:
        wall, _ = clock(partial(case.run, units))
        case.rewind()
        # The first turn is slower than those that follow: it is not believed before it is repeated.
        if units >= case.most or (units > 1 and wall >= seconds / 4):
            break
        if units == 1 and wall > seconds:
            return 1
        units = min(case.most, max(units + 1, min(8 * units, round(units * seconds / max(wall, 1e-7)))))
    return max(1, min(case.most, round(units * seconds / max(wall, 1e-7))))


def summarise(times: Times, reference: Times | None, per_unit: float = 1.0) -> Measured:
    """Return medians and quartiles of a contestant, and how many times faster than the reference it was, round by
    round.

    Args:
        times: the contestant's.
        reference: the reference's, from the same call of `interleave`.
        per_unit: things done in a unit of work, for the rate.
    """
    found: Any = {
        "wall_seconds": quartiles(times.wall),
        "cpu_seconds": quartiles(times.cpu),
        "per_second": quartiles([per_unit / max(wall, 1e-12) for wall in times.wall]),
        "speedup": None,
        "speedup_cpu": None,
    }
    if reference is not None:
        ratios = [r / max(t, 1e-12) for r, t in zip(reference.wall, times.wall)]
        found["speedup"], found["word"] = quartiles(ratios), speed_word(ratios)
        found["speedup_cpu"] = quartiles([r / max(t, 1e-12) for r, t in zip(reference.cpu, times.cpu)])
    return found
