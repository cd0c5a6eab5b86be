"""What a run has spent: tokens, FLOPs, wall and CPU seconds, and what of them went into compiling."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass
class Clock:
    """What a run has spent; kept in its checkpoints.

    Args:
        tokens: tokens trained on.
        flops: training FLOPs, by formula.
        seconds: wall time of batches, steps and compilation (not of evaluations or checkpoints).
        cpu_seconds: CPU time of this process in the same.
        compile_seconds: the part of `seconds` that went into compiling.
        compile_cpu_seconds: the same of `cpu_seconds`.
    """

    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    compile_seconds: float = 0.0
    compile_cpu_seconds: float = 0.0

    def count_step(self, wall: float, cpu: float, tokens: int, flops: int) -> None:
        """Add a step."""
        self.seconds += wall
        self.cpu_seconds += cpu
        self.tokens += tokens
        self.flops += flops

    def count_compilation(self, wall: float, cpu: float) -> None:
        """Add a compilation: it is paid for by the run that it speeds up, so a budget of seconds has it, too."""
        self.seconds += wall
        self.cpu_seconds += cpu
        self.compile_seconds += wall
        self.compile_cpu_seconds += cpu


class Stopwatch:
    """Wall and CPU time from when it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """Return the seconds of both so far."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu
