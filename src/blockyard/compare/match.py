"""Makes the models of a comparison equally large: the same parameters, or the same FLOPs per token.

The first choice is the reference and stays as it is. Every other choice is brought to its size in the order that
changes least: the FFN's hidden width alone; then d_model (in steps that keep heads of even width) with the hidden
width for the rest; then the number of layers. An option that the user wrote is never changed. Sizes are those of
the blocks and norms, without embedding and output matrix, of models built without memory (torch's meta device).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from blockyard.errors import InputError, one_of
from blockyard.models.config import BlocksConfig
from blockyard.models.estimate import meta_block, on_meta
from blockyard.registry.pattern import LayerSpec, layer_options, parse_choice
from blockyard.report import schema

T = TypeVar("T")
Unit = Literal["params", "flops", "none"]

# The hidden width of an FFN by the names blocks give it; the only option that is solved for.
WIDTH_OPTIONS = ("d_ff", "r_hidden", "d_hidden", "hidden_dim", "hidden_size")
# How far a hidden width may move from its default before the choice would be another kind of block.
# An FFN of a sixteenth, or of sixteen times, its width is a layer of another kind; a narrower model is still the same.
WIDTH_RANGE = (0.25, 4.0)
# A match this near is taken without looking for a nearer one: seeds do more to the loss.
GOOD_ENOUGH = 0.01
# Beyond this the next, further-reaching change is tried.
ACCEPTABLE = 0.02


@dataclass(frozen=True)
class Size:
    """What a model of blocks costs, without embedding and output matrix."""

    params: int
    flops: int  # forward, per position, at the model's length

    def of(self, unit: Unit) -> int:
        return self.flops if unit == "flops" else self.params


@dataclass(frozen=True)
class Matched:
    """A configuration of the reference's size, and the record of how it was reached."""

    config: BlocksConfig
    record: schema.Match


def size_of(config: BlocksConfig) -> Size:
    """Return the size of the blocks and the last norm of a model, by building each distinct layer once on the meta
    device.

    Raises:
        InputError: when the model cannot be built.
    """
    params = flops = 0
    known: dict[str, tuple[int, int]] = {}
    for spec in config.layers:
        # By text: a pattern of eight layers has two or three kinds, and building one costs milliseconds.
        key = str(spec)
        if key not in known:
            block = meta_block(config, spec)
            cost: Any = block
            known[key] = (sum(p.numel() for p in block.parameters()), cost.cost(config.length).flops)
        params, flops = params + known[key][0], flops + known[key][1]
    # The final norm is the last mixer's kind: real or complex.
    last = meta_block(config, config.layers[-1])
    params += sum(p.numel() for p in on_meta(lambda: config.build_final_norm(last)).parameters())
    return Size(params, flops // config.length)


def match(reference: BlocksConfig, choice: BlocksConfig, unit: Unit) -> Matched:
    """Bring a choice to the reference's size.

    Args:
        reference: the model whose size counts.
        choice: another choice with the same model options.
        unit: params, flops, or none (leave the choice as it is and only record the sizes).

    Raises:
        InputError: when one of the models cannot be built, or the unit is unknown.
    """
    one_of(("params", "flops", "none"), match=unit)
    target = size_of(reference).of(unit)
    found = choice
    if unit != "none":
        search = _Search(choice, target, unit)
        found = search.best()
    got = size_of(found).of(unit)
    record: schema.Match = {
        "unit": unit,
        "target": target,
        "got": got,
        "miss": (got - target) / target,
        "changed": changes(choice, found),
        "note": "",
    }
    if unit != "none" and abs(record["miss"]) > ACCEPTABLE:
        record["note"] = "the nearest that can be built"
    return Matched(found, record)


def changes(before: BlocksConfig, after: BlocksConfig) -> dict[str, Any]:
    """Return options that differ, by name; a hidden width that differs between layers as "344/128"."""
    found: dict[str, Any] = {
        name: getattr(after, name) for name in ("d_model", "n_layers") if getattr(after, name) != getattr(before, name)
    }
    widths: dict[str, list[int]] = {}
    for spec in after.layers:
        written = [old.ffn_options for old in before.layers if (old.attn, old.ffn) == (spec.attn, spec.ffn)]
        for name in spec.ffn_options:
            if is_width(name) and not any(name in options for options in written):
                values = widths.setdefault(name, [])
                if spec.ffn_options[name] not in values:
                    values.append(spec.ffn_options[name])
    found.update({name: v[0] if len(v) == 1 else "/".join(map(str, v)) for name, v in widths.items()})
    return found


class _Search:
    """Looks for the configuration nearest to a target, remembering the sizes it has worked out."""

    def __init__(self, start: BlocksConfig, target: int, unit: Unit) -> None:
        self.start, self.target, self.unit = start, target, unit
        self._sizes: dict[BlocksConfig, float | None] = {}

    def best(self) -> BlocksConfig:
        """Return the first acceptable match of the stages in order, or the nearest of all: later stages change more."""
        best, least = self.start, self.miss(self.start)
        stages: tuple[Iterator[BlocksConfig], ...] = (
            self.widths(self.start, 8),
            self.widths(self.start, 1),
            self.shapes("d_model", self.start),
            self.shapes("n_layers", self.start),
            self.both(),
        )
        for stage in stages:
            if least <= (GOOD_ENOUGH if best is self.start else ACCEPTABLE):
                break
            for config in stage:
                miss = self.miss(config)
                if miss < least:
                    best, least = config, miss
                if least <= GOOD_ENOUGH:
                    return best
        return best

    def miss(self, config: BlocksConfig) -> float:
        """Return the relative distance from the target; infinite for what cannot be built."""
        size = self.size(config)
        return float("inf") if size is None else abs(size - self.target) / self.target

    def size(self, config: BlocksConfig) -> float | None:
        key = replace(config, blocks=config.choice)  # a choice as text, which can be hashed
        if key not in self._sizes:
            self._sizes[key] = None
            try:
                self._sizes[key] = size_of(config).of(self.unit)
            except InputError:
                # A width that does not divide, or a rank above it: not a candidate. The start itself must build.
                if config == self.start:
                    raise
        return self._sizes[key]

    def widths(self, config: BlocksConfig, multiple: int) -> Iterator[BlocksConfig]:
        """Yield the same model with other hidden widths: a bisection of their common factor, rounded to a multiple.

        Multiples of 8 come first because matrix kernels are fast at them.
        """
        knobs = free_widths(config)
        # The user wrote every width: they are compared as they stand.
        if not any(knobs):
            return
        # A mixture of n experts is as large as one FFN when each has a n-th of its width.
        low, high = WIDTH_RANGE[0] / most_experts(config), WIDTH_RANGE[1]
        # Halves the logarithm of a factor of 16 to a millionth; the rounding to whole widths ends it long before.
        for _ in range(20):
            middle = (low * high) ** 0.5
            candidate = with_widths(config, knobs, middle, multiple)
            size = self.size(candidate)
            if size is None:
                return
            yield candidate
            low, high = (middle, high) if size < self.target else (low, middle)

    def shapes(self, name: Literal["d_model", "n_layers"], start: BlocksConfig) -> Iterator[BlocksConfig]:
        """Yield models of other width or depth near the target, each with its hidden widths fitted for the rest."""
        # Heads of a width divisible by 8 are fast; by 2 is what rotary pairs need.
        steps = (8 * start.n_heads, 2 * start.n_heads) if name == "d_model" else (1,)
        for step in steps:
            buildable = [config for config in self._ladder(name, step, start) if self.size(config) is not None]
            # Three: the nearest width may miss only because its FFN cannot be cut to fit, and its neighbour can.
            for config in sorted(buildable, key=self.miss)[:3]:
                yield config
                for multiple in (8, 1):
                    yield from self.widths(config, multiple)

    def both(self) -> Iterator[BlocksConfig]:
        """Yield another depth and another width together, for choices whose size moves in coarse steps."""
        for layers in range(max(1, len(pattern_of(self.start)), self.start.n_layers - 2), self.start.n_layers + 5):
            if layers != self.start.n_layers:
                yield from self.shapes("d_model", replace(self.start, n_layers=layers, blocks=pattern_of(self.start)))

    def _ladder(self, name: str, step: int, start: BlocksConfig) -> Iterator[BlocksConfig]:
        """Yield rising values of an option, up to eight times its start or well past the target."""
        pattern = pattern_of(start)
        least = max(step, len(pattern) if name == "n_layers" else step)
        for value in range(least, 8 * getattr(start, name) + 1, step):
            config = replace(start, blocks=pattern)
            config = replace(config, d_model=value) if name == "d_model" else replace(config, n_layers=value)
            size = self.size(config)
            yield config
            # Sizes grow with the square of a width: beyond this nothing comes back near.
            if size is not None and size > 2.5 * self.target:
                return


def pattern_of(config: BlocksConfig) -> tuple[LayerSpec, ...]:
    """Return the layers as written, before they repeat over the depth."""
    return tuple(parse_choice(config.blocks)) if isinstance(config.blocks, str) else tuple(config.blocks)


def is_width(name: str) -> bool:
    """Return whether an option is a hidden width, of the FFN itself or of a mixture's experts (`expert.d_ff`)."""
    return name.rpartition(".")[2] in WIDTH_OPTIONS


def most_experts(config: BlocksConfig) -> int:
    """Return how many hidden layers of its own an FFN has at most: 1, or a mixture's experts."""
    blocks = [meta_block(config, spec) for spec in pattern_of(config)]
    return max(getattr(getattr(block, "ffn", None), "n_experts", 1) for block in blocks)


def free_widths(config: BlocksConfig) -> list[dict[str, int]]:
    """Return, for each layer of the pattern, the hidden width that may be changed (name -> default), or nothing.

    Only what the user left open: a width written into the choice is what they want to compare.
    """
    found: list[dict[str, int]] = []
    for spec in pattern_of(config):
        known = layer_options("ffn", spec.ffn, spec.ffn_options)
        free: dict[str, int] = {}
        for name in filter(is_width, known):
            if name not in spec.ffn_options and name not in spec.attn_options:
                ffn: Any = getattr(meta_block(config, spec), "ffn", None)
                # expert.d_ff is the d_ff of the FFN's member called expert.
                member, dot, own = name.rpartition(".")
                default = getattr(ffn.member(member) if dot else ffn, own, None)
                if isinstance(default, int) and default > 0:
                    free[name] = default
                break
        found.append(free)
    return found


def with_widths(config: BlocksConfig, knobs: list[dict[str, int]], factor: float, multiple: int) -> BlocksConfig:
    """Return the configuration with every free hidden width scaled by a factor and rounded to a multiple."""
    specs = []
    for spec, free in zip(pattern_of(config), knobs):
        scaled = {name: max(multiple, round(default * factor / multiple) * multiple) for name, default in free.items()}
        specs.append(replace(spec, ffn_options={**spec.ffn_options, **scaled}))
    return replace(config, blocks=tuple(specs))
