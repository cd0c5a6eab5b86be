"""What a benchmark times: the layers of a block choice, their mixers alone or with norms and FFNs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.machine.memory import is_forced, refuse_beyond_memory
from blockyard.models.estimate import counted
from blockyard.protocol.block import build_block, cost_of
from blockyard.protocol.costs import Cost
from blockyard.registry.pattern import LayerSpec, format_choice, parse_choice, split_choices
from blockyard.registry.register import entries, implementation

Part = Literal["mixer", "layer"]
REFERENCE = "standard"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Subject:
    """One repetition of a choice's pattern, causal, in eval mode.

    Args:
        name: the choice as it is written.
        part: its mixers alone, or whole layers with norms and FFNs.
        d_model: width of the residual stream.
        n_heads: number of heads.
        dtype, device: of its parameters.
        seed: of its parameters' random values.

    Raises:
        InputError: for a choice that cannot be built so.
    """

    def __init__(
        self,
        name: str,
        part: Part,
        *,
        d_model: int,
        n_heads: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.name, self.part, self.d_model = name, part, d_model
        self.dtype, self.device = dtype, device
        self.specs: list[LayerSpec] = parse_choice(name)
        self.complex_valued = implementation("attn", self.specs[0].attn).traits.complex_valued
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks = [
                build_block(spec, d_model=d_model, n_heads=n_heads, causal=True, complex_valued=self.complex_valued)
                for spec in self.specs
            ]
        self.layers: list[Any] = [self._part(block).to(device, dtype).eval() for block in blocks]

    def _part(self, block: nn.Module) -> Any:
        if self.part == "layer":
            return block
        if not hasattr(block, "attn"):
            raise InputError(f"{self.name!r} is one block without a mixer of its own; time it with part=layer")
        return block.attn

    @property
    def blocks(self) -> str:
        """The choice with all that its layers are."""
        return format_choice(self.specs)

    @property
    def parameters(self) -> int:
        """Parameters per layer."""
        return sum(p.numel() for layer in self.layers for p in layer.parameters()) // len(self.layers)

    def cost(self, tokens: int) -> Cost:
        """Return costs by formula, of all layers."""
        return sum((cost_of(layer, tokens, self.d_model) for layer in self.layers), Cost())

    def random(self, batch: int, length: int, seed: int) -> Tensor:
        """Return standard normal input [batch, length, d_model], of complex numbers for complex mixers."""
        generator = torch.Generator().manual_seed(seed)
        if not self.complex_valued:
            x = torch.randn(batch, length, self.d_model, generator=generator)
            return x.to(self.device, self.dtype)
        x = torch.randn(batch, length, self.d_model, generator=generator, dtype=torch.complex64)
        return x.to(self.device, torch.complex128 if self.dtype == torch.float64 else torch.complex64)

    def new_caches(self, batch: int, max_len: int | None = None) -> list[Any]:
        """Return one empty cache for every layer (InputError when a mixer has none)."""
        return [_new_cache(self.name, layer, batch, max_len, self.dtype, self.device) for layer in self.layers]

    def __call__(self, x: Tensor, caches: Sequence[Any] | None = None) -> Tensor:
        """Pass x [B, T, d_model] through all layers; a mixer's output is the next one's input."""
        for layer, cache in zip(self.layers, caches or [None] * len(self.layers)):
            out = layer(x) if cache is None else layer(x, cache=cache)
            x = out[0] if isinstance(out, tuple) else out
        return x


def _new_cache(name: str, layer: Any, batch: int, max_len: int | None, dtype: torch.dtype, device: torch.device) -> Any:
    if not hasattr(layer, "new_cache"):
        raise InputError(f"{name!r}: {type(layer).__name__} has no cache, so it cannot decode")
    return layer.new_cache(batch, max_len, dtype, device)


def check_size(
    name: str,
    part: Part,
    d_model: int,
    n_heads: int,
    dtype: torch.dtype,
    device: torch.device,
    more: Callable[[Cost], int],
    tokens: int,
) -> None:
    """Refuse a choice that would not fit into memory, before it is built.

    Args:
        name, part, d_model, n_heads, dtype, device: as a `Subject` takes them.
        more: bytes beside the weights, by the formula's costs of all layers at `tokens`.
        tokens: length of the sequences.

    Raises:
        InputError: for a choice that does not fit, or cannot be built.
    """
    if is_forced():
        return
    what, meta = f"timing {name!r}", torch.device("meta")
    subject = counted(lambda: Subject(name, part, d_model=d_model, n_heads=n_heads, dtype=dtype, device=meta), what)
    parameters = subject.parameters * len(subject.layers)
    needed = parameters * dtype.itemsize + more(subject.cost(tokens))
    refuse_beyond_memory(needed, f"{what} takes at least {{}} ({parameters:,} parameters, {tokens:,} tokens)", device)


def make_subjects(
    config: Any, names: Sequence[str], device: torch.device, more: Callable[[Cost], int], tokens: int
) -> dict[str, Subject]:
    """Build the choices of a benchmark, once it is known that all of them fit into memory.

    Args:
        config: the benchmark's options.
        names: the choices.
        device: where they run.
        more, tokens: as `check_size` takes them.

    Raises:
        InputError: for a choice that does not fit, or cannot be built.
    """
    dtype = DTYPES[config.dtype]
    for name in names:
        check_size(name, config.part, config.d_model, config.n_heads, dtype, device, more, tokens)
    options = {"d_model": config.d_model, "n_heads": config.n_heads, "seed": config.seed}
    return {name: Subject(name, config.part, dtype=dtype, device=device, **options) for name in names}


def cached_mixers() -> list[str]:
    """Return every registered mixer that can decode, by its traits."""
    return [e.name for e in entries("attn") if e.traits.causal and e.traits.cache != "none"]


def causal_mixers() -> list[str]:
    """Return every registered mixer that can hide the future, by its traits."""
    return [e.name for e in entries("attn") if e.traits.causal]


def names_of(blocks: str | None, default: Sequence[str]) -> list[str]:
    """Return the choices to time, `standard` first: those given, or by default these.

    Raises:
        InputError: when one is given twice.
    """
    given = list(default) if blocks is None else ["".join(choice.split()) for choice in split_choices(blocks)]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice:
        raise InputError(f"blocks names {twice!r} twice; every choice stands once")
    return [REFERENCE, *(name for name in given if name != REFERENCE)]
