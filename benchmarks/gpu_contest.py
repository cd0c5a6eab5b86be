"""Contests of `benchmarks/gpu.py`: ways of doing one thing, in turns; what fails is a line and leaves the others."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.bench.roofline import Roof, Work, timed
from blockyard.bench.timing import Case, Clock
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import create

Way = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    d_model: int = 768
    n_heads: int = 12
    n_layers: int = 12
    vocabulary: int = 50_304
    context: int = 1024
    rows: int = 16
    lengths: tuple[int, ...] = (8192, 32_768, 131_072)
    behind: tuple[int, ...] = (4096, 32_768)
    batches: tuple[int, ...] = (1, 32)
    tokens: int = 16_384
    experts: tuple[int, ...] = (8, 64)
    windows: tuple[int, ...] = (256, 2048)


TINY = Sizes(32, 2, 2, 64, 16, 2, (64, 96), (24,), (1, 2), 64, (4,), (8,))


@dataclass
class Bench:
    """One run of the benchmark: where, how long, and what was found so far."""

    device: torch.device
    dtype: torch.dtype
    sizes: Sizes
    rounds: int
    round_seconds: float
    compiles: bool
    roof: Roof | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    def normal(self, *shape: int, seed: int = 0) -> Tensor:
        made = torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
        return made.to(self.device, self.dtype)

    def put(self, module: nn.Module) -> Any:
        return module.to(self.device, self.dtype)

    def mixer(self, choice: str) -> Any:
        """A causal mixer by its choice."""
        spec = parse_choice(choice)[0]
        given = {"d_model": self.sizes.d_model, "n_heads": self.sizes.n_heads, "causal": True}
        return self.put(create("attn", spec.attn, {**given, **spec.attn_options}))

    def contest(
        self,
        ways: Mapping[str, Way],
        works: Mapping[str, Work],
        facts: Mapping[str, Any],
        *,
        rewinds: Mapping[str, Way] | None = None,
        per_unit: float = 1.0,
    ) -> None:
        """Time ways in turns and add a row for each; the first that works is what speed is relative to.

        Args:
            ways: by name, one unit of work each.
            works: what a unit cannot do without.
            facts: what the rows have in common.
            rewinds: bring back what a unit has moved on.
            per_unit: things done in a unit, for the rate.
        """
        able: dict[str, Case] = {}
        for name, way in ways.items():
            rewind = (rewinds or {}).get(name, lambda: None)
            if trouble := self.trouble_of(way, rewind):
                self.rows.append({**facts, "what": name, "trouble": trouble})
                say(f"    {name}: {trouble}")
            else:
                able[name] = Case(repeated(way, rewind))
        if not able:
            return
        first = next(iter(able))
        try:
            found = timed(
                able, Clock(self.device), dict.fromkeys(able, 1), first, rounds=self.rounds,
                round_seconds=self.round_seconds, per_unit=per_unit, roof=self.roof, works=lambda: works,
            )  # fmt: skip
        except Exception as error:
            # Together they may need more than each of them alone.
            self.rows.append({**facts, "what": ", ".join(able), "trouble": one_line(error)})
            say(f"    {one_line(error)}")
            return
        for name, measured in found.items():
            self.rows.append({**facts, "what": name, "reference": first, **measured})
            share = f", {measured['share']['median']:.0%} of {measured['limit']}" if "share" in measured else ""
            speed = measured["speedup"]["median"] if measured["speedup"] else 1.0
            say(f"    {name:28} {1e3 * measured['wall_seconds']['median']:9.3f} ms  x{speed:.2f} {first}{share}")

    def trouble_of(self, way: Way, rewind: Way) -> str | None:
        """Why a way cannot be gone, by going it twice; None where it can."""
        try:
            for _ in range(2):
                way()
                rewind()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except Exception as error:
            found = one_line(error)
            del error
            self.tidy()
            return found
        return None

    def tidy(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def repeated(way: Way, rewind: Way) -> Callable[[int], None]:
    def run(units: int) -> None:
        for _ in range(units):
            way()
            rewind()

    return run


def one_line(error: BaseException) -> str:
    first = str(error).strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def say(line: str) -> None:
    print(line, flush=True)


def backward(function: Callable[[], Tensor], *leaves: Tensor) -> Way:
    """Forward and backward, gradients given up."""

    def run() -> None:
        out = function()
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    return run


def without_gradients(function: Way) -> Way:
    def run() -> None:
        with torch.no_grad():
            function()

    return run


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def one_pass(passes: int, function: Callable[[], Tensor], *leaves: Tensor) -> Way:
    """Forward alone, or (three passes) with backward."""
    return backward(function, *leaves) if passes == 3 else without_gradients(function)


def layer_work(bench: Bench, module: Any, tokens: int, rows: int = 1, passes: int = 3) -> Work:
    """What a layer over rows of tokens cannot do without; hidden pairs left out."""
    cost = module.cost(tokens)
    stream = rows * tokens * bench.sizes.d_model
    # Backward reads the weights again and writes their gradients; it reads the output's gradient, writes the input's.
    numbers = 3 * cost.parameters + 4 * stream if passes == 3 else cost.parameters + 2 * stream
    return Work(passes * rows * (cost.flops - cost.pair_flops / 2), numbers * bench.dtype.itemsize)
