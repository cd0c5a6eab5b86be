"""When a run compiles, and how far: at once where that is asked for, after a few timed steps where it is `auto`.

What pays is `compilation_plan`'s to say (compilation.py); here it is asked at the right step, the answer is kept with
the run, so that a run that is resumed computes with the same kernels, and a compilation that fails leaves `auto` eager.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

from blockyard.training.clock import Clock, Stopwatch
from blockyard.training.compilation import Extent, block_kinds, compilation_plan, decided_untimed
from blockyard.training.config import TrainConfig
from blockyard.training.decisions import Decisions, Remembered
from blockyard.training.engine import Engine

# With compile=auto a run's first steps are eager and timed; the first two pay for warming up.
TIMED_STEPS, WARM_STEPS = 8, 2


class Compiling:
    """The compilation of one run's model.

    Args:
        engine: what computes the steps.
        config: the options.
        decisions: those of the run so far; `compile` is None until it is decided.
        clock: the run's; compiling is spent on it.
        timings: seconds of the run's first steps, of which more are noted here.
        decided: told every decision, and why.
    """

    def __init__(
        self,
        engine: Engine,
        config: TrainConfig,
        decisions: Decisions,
        clock: Clock,
        timings: list[float],
        decided: Callable[[Decisions, str], None],
    ) -> None:
        self._engine, self._config, self._clock, self._decided = engine, config, clock, decided
        self.decisions, self.timings = decisions, timings
        # `auto` times eager steps first, in every run alike, so that runs are comparable.
        self._from = TIMED_STEPS if config.compile == "auto" else 0

    def decide_untimed(self) -> None:
        """Decide as far as can be said before any step was timed."""
        engine = self._engine
        varies = getattr(engine.task, "varies", None)
        found = decided_untimed(self._config.compile, engine.blocks, sharded=engine.kind == "fsdp2", varies=varies)
        if found is not None:
            extent, words = found
            self._decide(f"compile: {extent}, {words}", extent)

    def before_step(self, step: int) -> None:
        """Decide by the steps that were timed, when they are enough, and compile when it is time."""
        if self.decisions.compile is None and step == TIMED_STEPS:
            self._decide_by_timing(step)
        self.compile_if_due(step)

    def compile_if_due(self, step: int) -> None:
        """Compile, unless nothing shall be, everything is, or eager steps are yet to be timed."""
        if self.decisions.compile in ("blocks", "model") and not self._engine.compiled and step >= self._from:
            self._compile(step)

    def after_step(self, step: int, seconds: float) -> None:
        """Note how long an early step took."""
        if step < TIMED_STEPS:
            self.timings.append(seconds)

    def _decide_by_timing(self, step: int) -> None:
        """Compile or not, from the time of the first steps or what is remembered of this machine."""
        nothing: tuple[Extent, float, str] = ("no", 0.0, "")
        # The first rank decides for all: ranks that compiled differently would no longer compute the same.
        ranks = self._engine.ranks
        extent, eager, words = ranks.share(ranks.together(lambda: self._plan(step), nothing))
        self._decide(f"compile: {extent}, {words}", extent, eager)

    def _plan(self, step: int) -> tuple[Extent, float, str]:
        memory, engine = self._remembered(), self._engine
        eager = memory.eager_ms
        if eager is None:
            eager = statistics.median(self.timings[WARM_STEPS:]) * 1e3
            memory.put(eager_ms=eager)
        extent, _, words = compilation_plan(
            eager / 1e3,
            # Where a clock ends the run, the schedule knows better than the options how long it is.
            engine.optimizers.config.steps - step,
            kinds=block_kinds(engine.blocks),
            layers=len(engine.blocks),
            warm=memory.compiled,
        )
        return extent, eager, words

    def _remembered(self) -> Remembered:
        shape = (self._config.batch_size, self._engine.task.tokens_per_step)
        return Remembered(self._engine.model, self.decisions, shape)

    def _decide(self, reason: str, extent: Extent, eager_ms: float | None = None) -> None:
        self.decisions = self.decisions.because(reason, compile=extent, eager_ms=eager_ms)
        self._decided(self.decisions, reason)

    def _compile(self, step: int) -> None:
        """Compile now, on the run's clock."""
        watch, engine = Stopwatch(), self._engine
        extent = self.decisions.compile or "no"
        try:
            engine.compile(step, extent)
        except Exception as error:
            if self._config.compile != "auto":
                raise
            # `auto` promises a run, not a compilation.
            engine.uncompile()
            self._decide(f"compile: no, it failed ({_first_line(error)})", "no")
        else:
            if engine.ranks.first:
                memory = self._remembered()
                memory.put(compiled=sorted({*memory.compiled, extent}))
        self._clock.count_compilation(*watch.read())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
