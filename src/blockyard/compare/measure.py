"""What the choices cost on this machine: training speed, generation speed, cache bytes, peak memory.

Speeds are taken in raw loops that alternate between the choices, there and back, so that a machine that slows down
slows all of them; nothing is trained by them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from blockyard.compare.failures import is_of_the_machine, keep_failure
from blockyard.compare.plan import task_on_meta
from blockyard.compare.processes import measured_by
from blockyard.errors import InputError
from blockyard.models.trunk import seeded
from blockyard.report import schema
from blockyard.report.stats import quartiles
from blockyard.tasks.kind import Run
from blockyard.tasks.settings import as_groups
from blockyard.training.compilation import ASKED, Extent, block_kinds, compilation_plan, compiler_missing
from blockyard.training.decisions import decide_precision
from blockyard.training.distributed import join_ranks
from blockyard.training.engine import Engine

# The first steps make kernels, thread pools and the allocator's room, which a run pays for once.
WARM_STEPS, WARM_SECONDS = 3, 0.5  # whichever comes first
# Quartiles of nine are its third and seventh value; of fewer than three there are none.
ROUNDS, LEAST_ROUNDS = 9, 3
# Long beside a clock's resolution and a scheduler's slice, short beside a drift of the machine.
ROUND_SECONDS = 0.25
CHOICE_SECONDS = 5.0  # about as long as measuring a choice may take: fewer rounds where its steps are slow
DECODE_ROUNDS = 5
DECODE_TOKENS = 64


class _Clocked:
    """An engine that makes training steps on wall and CPU clocks."""

    def __init__(self, run: Run[Any, Any], data: Any, compiled: Extent) -> None:
        self.ranks = join_ranks(run.train.device)
        # The work of a real step, but the weights stay: a rate that makes training diverge must not stop the clock.
        still = replace(run.train, lr=1e-12, matrix_lr=1e-12)
        self.task = run.kind.make_task(replace(run, train=still), data)
        # The very engine that trains: a loop written for measuring would leave out what training pays for.
        self.engine = Engine(self.task, still, self.ranks, decide_precision(still, self.ranks.device))
        self.made = 0
        if compiled != "no":
            # Outside the clock: what compiling costs is the run's own, and is told there.
            self.engine.compile(0, compiled)
            self.steps(1)  # compiles
        warm = 0.0
        while self.made < WARM_STEPS and warm < WARM_SECONDS:
            step = self.steps(1)[0]
            warm += step
        # By the last warm step; a choice of microseconds has many steps to a round, one of seconds a single one.
        self.round = max(1, round(ROUND_SECONDS / max(step, 1e-6)))
        self.round_seconds = self.round * step

    def steps(self, steps: int) -> tuple[float, float]:
        """Return wall and CPU seconds of some steps; each ends with its loss read, so nothing is left running."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.engine.step(self.made)
            self.made += 1
        return time.perf_counter() - wall, time.process_time() - cpu


def training_speed(
    runs: Mapping[str, Run[Any, Any]],
    data: Any,
    compiled: Mapping[str, Extent],
    rounds: int | None = None,
    failed: dict[str, str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return tokens (or other units of input) per second of training steps, by wall clock and by process CPU time.

    Args:
        runs: the runs to imitate, by choice.
        data: the task's data.
        compiled: how far a choice's own runs were compiled.
        rounds: turns of each choice; ROUNDS by default. Fewer, but LEAST_ROUNDS, where they would take too long.
        failed: takes the reason, by choice, where one could not be measured: it is not finite, or raises.

    Returns: by choice, `train_wall` and `train_cpu` as medians with quartiles over the rounds; without those that
        failed.
    """
    failed = {} if failed is None else failed
    clocks: dict[str, _Clocked] = {}
    for name, run in runs.items():
        with _contained(name, failed):
            # All are built before the first is timed, so that they meet the same machine: memory taken, caches cold.
            clocks[name] = _Clocked(run, data, compiled.get(name, "no"))
    wall: dict[str, list[float]] = {name: [] for name in clocks}
    cpu: dict[str, list[float]] = {name: [] for name in clocks}
    order = list(clocks)
    longest = max((clock.round_seconds for clock in clocks.values()), default=0.0)
    # The slowest decides for all: unequal numbers of rounds would end the slow one's turns at another hour.
    affordable = max(LEAST_ROUNDS, int(CHOICE_SECONDS / max(longest, 1e-6)))
    for _ in range(min(rounds or ROUNDS, affordable)):
        for name in order:
            clock = clocks[name]
            # In the task's own units, so that a choice with another batch would still be comparable.
            tokens = clock.round * clock.task.tokens_per_step
            with _contained(name, failed):
                wall_seconds, cpu_seconds = clock.steps(clock.round)
                wall[name].append(tokens / wall_seconds)
                # Both clocks: the wall's is what one waits for, the processor's is the one that other programs disturb
                # less.
                cpu[name].append(tokens / max(cpu_seconds, 1e-9))
        order = [name for name in reversed(order) if name not in failed]
    for clock in clocks.values():
        clock.ranks.close()
    return {name: {"train_wall": quartiles(wall[name]), "train_cpu": quartiles(cpu[name])} for name in order}


@contextmanager
def _contained(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note an error that is one choice's own, so that it costs the others nothing."""
    try:
        yield
    except Exception as error:
        if is_of_the_machine(error):
            raise
        # In a word: the traceback is with the run that failed in training, or will be.
        failed[name] = keep_failure(error)


def length_scaling(
    runs: Mapping[str, Run[Any, Any]],
    lengths: Sequence[int],
    rounds: int = 3,
    *,
    memory: bool = False,
    failed: dict[str, str] | None = None,
) -> dict[str, dict[str, list[Any]]]:
    """Return the training speed and memory over the length of a row, eager, with as many tokens in a batch at every
    length.

    Args:
        runs: the runs to imitate, by choice, of a task that has `at_length`.
        lengths: the lengths, in any order.
        rounds: turns of each choice at each length.
        memory: measure peak memory too, each length of each choice in a fresh process.
        failed: as for `training_speed`.

    Returns: by choice, `lengths` in rising order, `tokens_per_second` (medians) and, if asked for, `peak_bytes`; None
        where it could not be measured.
    """
    # Rising, so that a length that takes the memory is the last that is tried.
    ordered = sorted(set(lengths))
    columns = ("lengths", "tokens_per_second", *(["peak_bytes"] if memory else []))
    found: dict[str, dict[str, list[Any]]] = {name: {column: [] for column in columns} for name in runs}
    for length in ordered:
        at: dict[str, Run[Any, Any]] = {}
        for name, run in runs.items():
            # As many tokens at every length: a batch of equal rows would measure its growth and not that of the block.
            rows = max(1, round(run.train.batch_size * run.model.length / length))
            model = run.kind.at_length(run.model, length)
            at[name] = replace(run, model=model, train=replace(run.train, batch_size=rows, accumulate=1))
        first = next(iter(at.values()))
        # Made-up data: the true ones need not be as long as the longest length.
        speeds = training_speed(at, first.kind.sample_data(first), {}, rounds, failed)
        for name in runs:
            found[name]["lengths"].append(length)
            measured = speeds.get(name)
            found[name]["tokens_per_second"].append(measured["train_wall"]["median"] if measured else None)
            if memory:
                found[name]["peak_bytes"].append(_peak_memory(at[name])["peak_bytes"])
    return found


def seconds_per_step(runs: Mapping[str, Run[Any, Any]], data: Any, budget: float) -> dict[str, float]:
    """Return training clock of one step for a budget in seconds, compilation spread over the steps where it will be
    done.

    Args:
        runs: the runs to imitate; their own number of steps does not matter.
        data: the task's data.
        budget: seconds of a whole run.

    A choice that cannot be timed is taken to be as slow as the slowest: its own run will tell what is wrong with it.

    Raises:
        InputError: when none can be timed.
    """
    # A twentieth of the budget for measuring, within reason.
    rounds = max(3, min(12, round(0.05 * budget / ROUND_SECONDS)))
    failed: dict[str, str] = {}
    speeds = training_speed(runs, data, {}, rounds, failed)
    if not speeds:
        name, why = next(iter(failed.items()))
        raise InputError(f"no choice can be timed for a budget in seconds; {name or 'the model'}: {why}")
    # Pessimism costs nothing: the clock ends the run, whatever was planned.
    slowest = min(speed["train_wall"]["median"] for speed in speeds.values())
    found = {}
    for name, run in runs.items():
        measured = speeds[name]["train_wall"]["median"] if name in speeds else slowest
        eager = task_on_meta(run, data).tokens_per_step / measured
        found[name] = _with_compilation(run, eager, budget)
    return found


def _with_compilation(run: Run[Any, Any], eager: float, budget: float) -> float:
    # With `auto` a long budget repays compiling and a short one does not: the pace is that of the run as it will be.
    option = run.train.compile
    if option == "off" or compiler_missing():
        return eager
    blocks = list(getattr(_build(run, run.model), "layers", []))
    if not blocks:
        return eager
    # A budget below one step is refused later, where it is turned into steps.
    steps = max(1, round(budget / eager))
    asked = ASKED.get(option)
    _, seconds, _ = compilation_plan(eager, steps, kinds=block_kinds(blocks), layers=len(blocks), asked=asked)
    return seconds / steps


def _build(run: Run[Any, Any], model: Any) -> Any:
    """Return a model of the run's task with weights of seed 0."""
    with seeded(0):
        return run.kind.build_model(model)


def decoding(
    runs: Mapping[str, Run[Any, Any]], rounds: int | None = None, failed: dict[str, str] | None = None
) -> dict[str, tuple[dict[str, Any], float] | None]:
    """Return tokens per second of greedy generation with the cache (one sequence), and the cache's bytes per token.

    Half of the context is read first, then up to 64 tokens are written one by one; only the writing is timed. The
    bytes are those the cache holds at the end, divided by its tokens. None for a choice whose mixer has no cache, and
    for a task whose models do not write. `failed` is as for `training_speed`.
    """
    failed = {} if failed is None else failed
    none: dict[str, str] = {}
    built: dict[str, Any] = {}
    for name, run in runs.items():
        # A classifier writes nothing, and a forecaster its whole horizon at once.
        if run.kind.decodes:
            with _contained(name, failed):
                built[name] = _build(run, run.model).eval()
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    sizes: dict[str, float] = {}
    order = list(built)
    for _ in range(rounds or DECODE_ROUNDS):
        for name in order:
            with _contained(name, failed):
                try:
                    tokens_per_second, sizes[name] = _decode(built[name], runs[name].model.length)
                except InputError as error:
                    none[name] = str(error)  # no cache: nothing to measure
                    continue
                speeds[name].append(tokens_per_second)
        order = [name for name in reversed(order) if name not in failed and name not in none]
    return {name: (quartiles(speeds[name]), sizes[name]) if speeds[name] else None for name in runs}


def _decode(model: Any, context: int) -> tuple[float, float]:
    # Half: a cache that is neither empty nor full, with room for what is written.
    read = max(1, context // 2)
    write = max(1, min(DECODE_TOKENS, context - read))
    # Any tokens: a step's time depends on how many there are.
    ids = torch.arange(read)[None] % model.config.vocab_size
    with torch.no_grad():
        cache = model.new_cache(1)
        token = model(ids, cache=cache).logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(write):
            token = model(token, cache=cache).logits[:, -1:].argmax(-1)
        token.tolist()  # waits for an accelerator to finish
        seconds = time.perf_counter() - start
    # Over what it holds, so that a window's bytes per token fall with the text, as they do.
    return write / seconds, cache.nbytes / cache.length


def peak_memory(runs: Mapping[str, Run[Any, Any]]) -> dict[str, schema.Memory]:
    """Return the peak memory of training, each choice in a fresh process (see peak_memory.py)."""
    return {name: _peak_memory(run) for name, run in runs.items()}


def _peak_memory(run: Run[Any, Any]) -> schema.Memory:
    fitted = {name: getattr(run.model, name) for name in run.kind.from_data}
    # A fresh process each: an allocator never gives all back, so a second model in one process would look smaller than
    # it is.
    answer = measured_by("blockyard.compare.peak_memory", {"groups": as_groups(run), "fitted": fitted})
    if answer is None:
        # A block registered in the running program (not in a plug-in) cannot be built in another process.
        return {"peak_bytes": None, "how": "not measured: the model could not be trained in a fresh process"}
    return {"peak_bytes": answer["peak_bytes"], "how": answer["how"]}


def compiled_in(decisions: Sequence[str]) -> Extent:
    """Return how far a run was compiled, by its decisions; the last word counts."""
    found: Extent = "no"
    for line in decisions:
        for extent in ("no", "blocks", "model"):
            if line.startswith(f"compile: {extent}"):
                found = extent
    return found
