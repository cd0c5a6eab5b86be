"""`bench decode`: what one more token costs behind a cache of so many, for every mixer, in time and in bytes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from blockyard.bench.record import check_options, find_device, make_record
from blockyard.bench.roofline import Roof, Work, make_roof, step_work, timed
from blockyard.bench.schema import Bench, Row
from blockyard.bench.subject import DTYPES, REFERENCE, Part, Subject, cached_mixers, make_subjects, names_of
from blockyard.bench.timing import Case, Clock
from blockyard.conformance.costs import counted_flops
from blockyard.errors import InputError
from blockyard.machine.memory import forcing

# Tokens read at a time when a cache is filled.
FILL_CHUNK = 1024
# Steps of a round at most: the cache should stay about as long as it is said to be.
MOST_STEPS = 48


@dataclass(frozen=True)
class DecodeBenchConfig:
    """What is timed: one new token per sequence, behind a cache that holds `context` tokens of each.

    Args:
        blocks: the choices, separated by `;` or (when none has brackets) `,`; by default every mixer that decodes.
            `standard` is always among them: it is what speed is relative to.
        part: the mixers alone, or whole layers with their norms and FFNs.
        d_model: width of the residual stream.
        n_heads: number of heads.
        contexts: tokens in the cache.
        batches: sequences decoded at a time.
        dtype: float32, bfloat16 or float64, of parameters, inputs and cache.
        cache: growing (doubling when full) or static (allocated once).
        roofline: measure how fast this machine multiplies matrices and reads memory, and tell what share is reached.
        rounds: turns of each choice; medians and quartiles are over them.
        round_seconds: how long a turn lasts.
        threads: CPU threads; none leaves torch's number.
        device: where it runs; auto takes CUDA when it is there.
        seed: of the random parameters and inputs.
    """

    blocks: str | None = None
    part: Part = "mixer"
    d_model: int = 512
    n_heads: int = 8
    contexts: tuple[int, ...] = (512, 2048, 8192)
    batches: tuple[int, ...] = (1, 4)
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    cache: Literal["growing", "static"] = "growing"
    roofline: bool = True
    rounds: int = 9
    round_seconds: float = 0.1
    threads: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, ("contexts", "batches"))


def bench_decode(
    config: DecodeBenchConfig,
    *,
    command: str = "",
    say: Callable[[str], None] = lambda line: None,
    force: bool = False,
) -> Bench:
    """Measure, and return the contents of bench.json.

    Args:
        config: what to measure.
        command: the command line that asks for this, for the record.
        say: receives a line on every size that is done.
        force: time also what by its estimate does not fit into memory.

    Raises:
        InputError: for a choice that cannot be built or cannot decode, or a device that is not there.
    """
    started = time.perf_counter()
    device = find_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    names, contexts = names_of(config.blocks, cached_mixers()), sorted(set(config.contexts))
    # The filled cache and its copies, one for each sequence of a batch; the formula counts float32.
    held = contexts[-1] * (1 + max(config.batches)) * DTYPES[config.dtype].itemsize
    with forcing(force):
        subjects = make_subjects(config, names, device, lambda c: c.cache_bytes_per_token * held // 4, contexts[-1])
    rows: list[Row] = []
    roof = make_roof(config, device, say)
    limit = contexts[-1] + MOST_STEPS + 1 if config.cache == "static" else None
    with torch.inference_mode():
        filled = {name: subject.new_caches(1, limit) for name, subject in subjects.items()}
        for context in contexts:
            for name, subject in subjects.items():
                fill(subject, filled[name], context, config.seed)
            for batch in sorted(set(config.batches)):
                say(f"{context} tokens in the cache, batch {batch}")
                rows += _measure(config, subjects, filled, context, batch, device, roof)
    return make_record(
        "decode",
        "Decoding one token",
        config,
        subjects=subjects.values(),
        rows=rows,
        device=device,
        seconds=time.perf_counter() - started,
        command=command,
        notes=[],
        roofline=roof.ceilings.record() if roof else None,
    )


def fill(subject: Subject, caches: list[Any], context: int, seed: int) -> None:
    """Read random inputs until the caches hold `context` tokens."""
    while (missing := context - caches[0].length) > 0:
        subject(subject.random(1, min(missing, FILL_CHUNK), seed), caches)


class Step:
    """Decoding steps of one subject behind a copy of its filled caches."""

    def __init__(self, subject: Subject, filled: list[Any], batch: int, seed: int) -> None:
        self.subject, self.filled, self.batch = subject, filled, batch
        self.x = subject.random(batch, 1, seed + 1)
        self.context = filled[0].length
        self.caches = self._copies()
        self.facts: dict[str, float | int | None] = self._count()

    def _copies(self) -> list[Any]:
        caches = copy.deepcopy(self.filled)
        for cache in caches:
            # Also for one row: what is measured should lie in memory as the cache itself places it.
            cache.repeat(self.batch)
            if hasattr(cache, "reserve"):
                # Growing is paid for once per doubling, not by whichever step is timed.
                cache.reserve(MOST_STEPS)
        return caches

    def _count(self) -> dict[str, float | int | None]:
        layers = len(self.caches)
        held = sum(cache.nbytes for cache in self.caches) / layers
        allocated = [getattr(cache, "allocated_nbytes", None) for cache in self.caches]
        known = [size for size in allocated if size is not None]
        return {
            "cache_bytes": held,
            "cache_bytes_per_token": held / (self.batch * self.context),
            "cache_bytes_allocated": sum(known) / layers if len(known) == layers else None,
            "cache_bytes_per_token_formula_fp32": self.subject.cost(self.context).cache_bytes_per_token / layers,
        }

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.subject(self.x, self.caches)

    def work(self) -> Work:
        """Count what a step cannot do without, per layer."""
        # The first step may fold weights that later ones find folded.
        self.run(1)
        flops = counted_flops(lambda x: self.run(1), self.x)
        self.rewind()
        held = self.facts["cache_bytes"]
        assert held is not None
        return step_work(self.subject, self.batch, flops / len(self.caches), held)

    def rewind(self) -> None:
        try:
            for cache in self.caches:
                cache.crop(self.context)
        except InputError:
            # A recurrent state, or a window that dropped what it would need.
            self.caches = self._copies()


def _measure(
    config: DecodeBenchConfig,
    subjects: Mapping[str, Subject],
    filled: Mapping[str, list[Any]],
    context: int,
    batch: int,
    device: torch.device,
    roof: Roof | None,
) -> list[Row]:
    steps = {name: Step(subject, filled[name], batch, config.seed) for name, subject in subjects.items()}
    measured = timed(
        {name: Case(step.run, step.rewind, MOST_STEPS) for name, step in steps.items()},
        Clock(device),
        {name: len(subject.layers) for name, subject in subjects.items()},
        REFERENCE,
        rounds=config.rounds,
        round_seconds=config.round_seconds,
        per_unit=batch,
        roof=roof,
        works=lambda: {name: step.work() for name, step in steps.items()},
    )
    return [
        {
            "choice": name,
            "length": context,
            "batch": batch,
            "times": {"decode": measured[name]},
            "facts": step.facts,
            "note": "",
        }
        for name, step in steps.items()
    ]
