"""`bench blocks`: time, FLOPs and memory of whole sequences, forward and backward, over their length."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from blockyard.bench.decode import MOST_STEPS, Step, fill
from blockyard.bench.memory import peak_bytes
from blockyard.bench.record import check_options, find_device, make_record
from blockyard.bench.roofline import Roof, Work, make_roof, timed, whole_work
from blockyard.bench.schema import Bench, Measured, Row
from blockyard.bench.subject import DTYPES, REFERENCE, Part, Subject, causal_mixers, make_subjects, names_of
from blockyard.bench.timing import Case, Clock
from blockyard.conformance.costs import counted_flops
from blockyard.errors import InputError
from blockyard.machine.memory import forcing

# The counter needs the plain form, which holds every score in memory.
MOST_COUNTED = 4096
FORWARD, TRAINING, DECODE, COMPILED = "forward", "forward + backward", "decode", ", compiled"


@dataclass(frozen=True)
class BlocksBenchConfig:
    """What is timed: whole sequences of `lengths` tokens, causal.

    Args:
        blocks: the choices, separated by `;` or (when none has brackets) `,`; by default every causal mixer.
            `standard` is always among them: it is what speed is relative to.
        part: the mixers alone, or whole layers with their norms and FFNs.
        d_model: width of the residual stream.
        n_heads: number of heads.
        lengths: tokens in a sequence.
        batches: sequences at a time.
        dtype: float32, bfloat16 or float64, of parameters and inputs.
        mode: eager, compiled by torch.compile, or both; compiling takes seconds for each choice and size.
        decode: also time one more token behind a cache of that length, where there is a cache.
        roofline: measure how fast this machine multiplies matrices and reads memory, and tell what share is reached.
        memory: measure the peak memory of a training step, in a fresh process for each choice.
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
    lengths: tuple[int, ...] = (128, 512, 2048)
    batches: tuple[int, ...] = (1,)
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    mode: Literal["eager", "compiled", "both"] = "eager"
    decode: bool = True
    roofline: bool = True
    memory: bool = True
    rounds: int = 7
    round_seconds: float = 0.1
    threads: int | None = None
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_options(self, ("lengths", "batches"))


def bench_blocks(
    config: BlocksBenchConfig,
    *,
    command: str = "",
    plugins: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda line: None,
    force: bool = False,
) -> Bench:
    """Measure, and return the contents of bench.json.

    Args:
        config: what to measure.
        command: the command line that asks for this, for the record.
        plugins: modules that the process which measures memory imports first.
        say: receives a line on every size that is begun.
        force: time also what by its estimate does not fit into memory.

    Raises:
        InputError: for a choice that cannot be built, or a device that is not there.
    """
    started = time.perf_counter()
    device = find_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    lengths, batches = sorted(set(config.lengths)), sorted(set(config.batches))
    # Input, output and the gradients of both.
    held = 4 * lengths[-1] * batches[-1] * config.d_model * DTYPES[config.dtype].itemsize
    with forcing(force):
        names = names_of(config.blocks, causal_mixers())
        subjects = make_subjects(config, names, device, lambda cost: held, lengths[-1])
    peaks, notes = _memory(config, subjects, lengths, batches, plugins, say) if config.memory else ({}, [])
    roof = make_roof(config, device, say)
    rows: list[Row] = []
    for length in lengths:
        for batch in batches:
            say(f"{length} tokens, batch {batch}")
            counts = {name: _count(subject, length, batch, config.seed) for name, subject in subjects.items()}
            times = _times(config, subjects, length, batch, device, roof, counts)
            for name, subject in subjects.items():
                peak = peaks.get((name, length, batch))
                rows.append(_row(name, subject, length, batch, times, counts[name], peak, config))
    return make_record(
        "blocks",
        "Whole sequences",
        config,
        subjects=subjects.values(),
        rows=rows,
        device=device,
        seconds=time.perf_counter() - started,
        command=command,
        notes=notes,
        roofline=roof.ceilings.record() if roof else None,
    )


def _memory(
    config: BlocksBenchConfig,
    subjects: Mapping[str, Subject],
    lengths: list[int],
    batches: list[int],
    plugins: tuple[str, ...],
    say: Callable[[str], None],
) -> tuple[dict[tuple[str, int, int], int], list[str]]:
    """Return the peak bytes per layer by (choice, length, batch), and what could not be measured."""
    found, notes = {}, []
    sizes = sorted((length * batch, length, batch) for length in lengths for batch in batches)
    for name, subject in subjects.items():
        say(f"peak memory of {name}")
        peaks, trouble = peak_bytes(
            {
                "name": name,
                "part": config.part,
                "d_model": config.d_model,
                "n_heads": config.n_heads,
                "dtype": config.dtype,
                "device": str(subject.device),
                "seed": config.seed,
                "plugins": list(plugins),
                "threads": config.threads,
                "sizes": [[length, batch] for _, length, batch in sizes],
            }
        )
        if trouble:
            notes.append(f"peak memory of {name}: {trouble}")
        for (_, length, batch), peak in zip(sizes, peaks):
            found[name, length, batch] = peak // len(subject.layers)
    return found, notes


def _times(
    config: BlocksBenchConfig,
    subjects: Mapping[str, Subject],
    length: int,
    batch: int,
    device: torch.device,
    roof: Roof | None,
    counts: Mapping[str, float | None],
) -> dict[str, dict[str, Measured]]:
    """Return, by what is timed, what was measured of each choice, per layer."""
    kinds: dict[str, dict[str, Case]] = {}
    steps: dict[str, Step] = {}
    for name, subject in subjects.items():
        x = subject.random(batch, length, config.seed)
        modes = {"eager": [""], "compiled": [COMPILED], "both": ["", COMPILED]}[config.mode]
        for suffix in modes:
            call: Callable[[Tensor], Tensor] = subject
            if suffix:
                call = torch.compile(partial(Subject.__call__, subject), dynamic=False)
            kinds.setdefault(FORWARD + suffix, {})[name] = _forward(call, x)
            kinds.setdefault(TRAINING + suffix, {})[name] = _training(call, x, subject)
        if config.decode and (step := _step(subject, length, batch, config.seed)) is not None:
            steps[name] = step
            kinds.setdefault(DECODE, {})[name] = _decoding(step)
    found = {}
    for kind, cases in kinds.items():
        found[kind] = timed(
            cases,
            Clock(device),
            {name: len(subjects[name].layers) for name in cases},
            REFERENCE,
            rounds=config.rounds,
            round_seconds=config.round_seconds,
            per_unit=batch if kind == DECODE else batch * length,
            roof=roof,
            works=partial(_works, subjects, steps, kind, length, batch, counts),
        )
    # Compiled code of one size is of no use to the next.
    torch.compiler.reset()
    return found


def _works(
    subjects: Mapping[str, Subject],
    steps: Mapping[str, Step],
    kind: str,
    length: int,
    batch: int,
    counts: Mapping[str, float | None],
) -> dict[str, Work]:
    """Return what a unit of work of one kind cannot do without, by choice."""
    if kind == DECODE:
        with torch.no_grad():
            return {name: step.work() for name, step in steps.items()}
    training = kind.startswith(TRAINING)
    return {name: whole_work(each, batch, length, counts[name], training=training) for name, each in subjects.items()}


def _forward(call: Callable[[Tensor], Tensor], x: Tensor) -> Case:
    def run(units: int) -> None:
        with torch.no_grad():
            for _ in range(units):
                call(x)

    return Case(run)


def _training(call: Callable[[Tensor], Tensor], x: Tensor, subject: Subject) -> Case:
    x = x.clone().requires_grad_()
    parameters = [parameter for layer in subject.layers for parameter in layer.parameters()]
    pull = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype).to(x.device)

    def run(units: int) -> None:
        for _ in range(units):
            x.grad = None
            for parameter in parameters:
                parameter.grad = None
            call(x).backward(pull)

    return Case(run)


def _step(subject: Subject, length: int, batch: int, seed: int) -> Step | None:
    """Return steps of one more token behind a cache of that length; None without a cache."""
    with torch.no_grad():
        try:
            filled = subject.new_caches(1)
        except InputError:
            return None
        fill(subject, filled, length, seed)
        return Step(subject, filled, batch, seed)


def _decoding(step: Step) -> Case:
    def run(units: int) -> None:
        with torch.no_grad():
            step.run(units)

    def rewind() -> None:
        with torch.no_grad():
            step.rewind()

    return Case(run, rewind, MOST_STEPS)


def _row(
    name: str,
    subject: Subject,
    length: int,
    batch: int,
    times: dict[str, dict[str, Measured]],
    counted: float | None,
    peak: int | None,
    config: BlocksBenchConfig,
) -> Row:
    layers = len(subject.layers)
    cost = subject.cost(length)
    facts: dict[str, float | int | None] = {
        "flops_formula": batch * cost.flops / layers,
        "flops_counted": counted,
        "cache_bytes_per_token_formula_fp32": cost.cache_bytes_per_token / layers,
    }
    if config.memory:
        facts["training_peak_bytes"] = peak
    measured = {kind: taken[name] for kind, taken in times.items() if name in taken}
    note = "it has no cache to decode with" if config.decode and DECODE not in measured else ""
    return {"choice": name, "length": length, "batch": batch, "times": measured, "facts": facts, "note": note}


def _count(subject: Subject, length: int, batch: int, seed: int) -> float | None:
    """Return FLOPs of a forward pass, per layer, as `FlopCounterMode` sees them; None for lengths too long for it."""
    if length > MOST_COUNTED:
        return None
    return batch * counted_flops(subject, subject.random(1, length, seed)) / len(subject.layers)
