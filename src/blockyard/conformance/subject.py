"""What is checked: a class, what it claims to do, and how to build and call it at a tiny size.

All parameters are randomised after construction: a zero-initialised output would hide every fault behind it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.models.order import randomise
from blockyard.protocol.ffn import FFN
from blockyard.protocol.mixer import Mixer
from blockyard.registry.options import check_options, options_of
from blockyard.registry.register import MODEL_PARAMETERS, Traits, accepted_arguments, causal_by, entries, infer_traits

# A prime length, two rows, two heads: shapes in which a swapped axis cannot go unnoticed.
BATCH, LENGTH = 2, 7
SIZES: dict[str, Any] = {"d_model": 32, "n_heads": 2}
REFUSALS = (ValueError, TypeError, NotImplementedError)
# Beyond the chunks, blocks and tables of usual sizes, and no multiples of them.
LONG = (257, 1031)
# What other libraries call the parameters that every model gives.
OTHER_NAMES = {
    "d_model": ("dim", "embed_dim", "hidden_size", "hidden_dim", "model_dim", "width", "channels", "n_embd"),
    "n_heads": ("num_heads", "heads", "nhead", "n_head", "num_attention_heads"),
}


@contextlib.contextmanager
def own_random(seed: int) -> Iterator[None]:
    """Seed random numbers inside; the caller's global generators are left as they were."""
    device = torch.get_default_device()
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        yield


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return standard normal numbers, complex ones for a complex dtype, that depend on the seed and shape alone, on the
    default device."""
    widest = torch.complex128 if dtype.is_complex else torch.float64
    made = torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=widest, device="cpu")
    return made.to(torch.get_default_device(), dtype)


def reals(x: Tensor) -> Tensor:
    """Return the tensor itself, or the real view [..., 2] of a complex one, on which sums and squares are real."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float | None = None) -> None:
    """Assert equality up to rounding, and say by how much and where it fails.

    Args:
        actual, expected: tensors of one shape.
        what: the sentence that the error begins with.
        tolerance: allowed difference in units of 1 + the largest expected value; by dtype when None.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    if actual.numel() == 0:
        return
    if tolerance is None:
        # Not the last bits of float64: a mixer may well normalise or rotate in float32.
        tolerance = 1e-6 if expected.dtype in (torch.float64, torch.complex128) else 1e-4
    assert bool(torch.isfinite(actual).all()), f"{what}: the result is not finite"
    difference = (actual - expected).abs()
    allowed = tolerance * (1 + expected.abs().max().item())
    worst = difference.max().item()
    where = [int(i) for i in torch.unravel_index(difference.argmax(), difference.shape)]
    assert worst <= allowed, f"{what}: differs by {worst:.3g} at {where}, {allowed:.1g} is allowed"


@dataclass(frozen=True)
class Subject:
    """A class under test.

    Args:
        cls: a mixer or an FFN.
        kind: "attn" or "ffn".
        traits: what it claims; checks beyond that are skipped.
        declared: whether the class (or its registration) states its traits; those of a foreign class are read
            from its signatures, and it promises no particular error messages.
        options: constructor options; `d_model` and `n_heads` may be among them.
        device: where it is checked; modules are made on the CPU and moved there.
    """

    cls: type
    kind: str
    traits: Traits
    declared: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @cached_property
    def constructor(self) -> dict[str, Any]:
        """The constructor's named parameters."""
        return dict(options_of(self.cls))

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The arguments that `forward` names."""
        # mypy: a registered class has a forward: the register has refused others.
        return accepted_arguments(self.cls.forward)  # type: ignore[attr-defined]

    @property
    def d_model(self) -> int:
        return self.options.get("d_model", SIZES["d_model"])

    @property
    def precise(self) -> bool:
        """Whether the class computes in float64 or complex128."""
        return bool({"float64", "complex128"} & set(self.traits.dtypes))

    @property
    def real_dtype(self) -> torch.dtype:
        """The dtype of parameters and masks in most checks: float64 if it can be, so that rounding is no excuse."""
        return torch.float64 if self.precise else torch.float32

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the data in most checks."""
        return self.data_dtype(self.real_dtype)

    def data_dtype(self, real: torch.dtype) -> torch.dtype:
        """Return the dtype of the data that goes with parameters of a dtype: half precision has no complex data of its
        own."""
        if not self.traits.complex_valued:
            return real
        return torch.complex128 if real == torch.float64 else torch.complex64

    @property
    def dropout(self) -> dict[str, Any]:
        """Options that turn dropout on, where the class has it and the caller did not choose."""
        named = "dropout" in self.constructor and "dropout" not in self.options
        return {"dropout": 0.5} if named else {}

    @property
    def modes(self) -> list[bool]:
        """The values of `causal` that the class claims."""
        return [mode for mode, claimed in ((True, self.traits.causal), (False, self.traits.bidirectional)) if claimed]

    @property
    def causal_by(self) -> tuple[str, str]:
        """How this class is made causal, as a model does it: by "constructor", "argument" or "mask", and the name; two
        empty words when it is what it is."""
        return causal_by(self.constructor, self.arguments) or ("", "")

    def build(self, causal: bool = False, dtype: torch.dtype | None = None, seed: int = 0, **options: Any) -> Built:
        """Return a randomised module in eval mode, with the call that suits it.

        Raises:
            InputError: when a required option is missing or an option is unknown.
        """
        given = {**{k: v for k, v in SIZES.items() if k in self.constructor}, **self.options, **options}
        how, word = self.causal_by
        if how == "constructor":
            given[word] = causal
        self._check_required(given)
        checked = check_options(self.constructor, given, self.cls.__qualname__)
        with torch.device("cpu"), own_random(seed):
            module = self.cls(**checked)
            randomise(module)
        return Built(self, module.to(self.device, dtype or self.real_dtype).eval(), causal)

    def on_device(self) -> contextlib.AbstractContextManager[object]:
        """Return a context in which tensors are made where it is checked."""
        return contextlib.nullcontext() if self.device == "cpu" else torch.device(self.device)

    def _check_required(self, given: Mapping[str, Any]) -> None:
        """Refuse a constructor that asks for what no model gives."""
        missing = [name for name, option in self.constructor.items() if option.required and name not in given]
        if not missing:
            return
        theirs = [
            f"{other} is {ours} here" for ours, names in OTHER_NAMES.items() for other in names if other in missing
        ]
        raise InputError(
            f"the constructor of {self.cls.__qualname__} needs {', '.join(missing)}"
            + (f" ({', '.join(theirs)})" if theirs else "")
            + f"; a model gives it those of {', '.join(MODEL_PARAMETERS)} that it names, the rest are options: "
            f"name it so, or give it a default or a value (--with {missing[0]}=…; from Python {missing[0]}=…)"
        )

    def x(
        self, batch: int = BATCH, length: int = LENGTH, seed: int = 1, precision: torch.dtype | None = None
    ) -> Tensor:
        """Return a random input [batch, length, d_model] for parameters of the given precision."""
        return random(batch, length, self.d_model, seed=seed, dtype=self.data_dtype(precision or self.real_dtype))


@dataclass
class Built:
    """A constructed module and how to call it."""

    subject: Subject
    module: Any
    causal: bool

    def full(self, x: Tensor, **arguments: Any) -> Any:
        """Return whatever `forward` returns."""
        how, word = self.subject.causal_by
        if how == "argument":
            arguments.setdefault(word, self.causal)
        if self.causal and how == "mask":
            # What a block does for a foreign mixer that has no notion of causality: mask the future itself.
            # Additive, because a foreign class may read True in a boolean mask either way.
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            mask = arguments.get("attn_mask", torch.zeros_like(future, dtype=x.dtype))
            boolean = mask.dtype == torch.bool
            arguments["attn_mask"] = mask & ~future if boolean else mask.masked_fill(future, -torch.inf)
        return self.module(x, **arguments)

    def __call__(self, x: Tensor, **arguments: Any) -> Tensor:
        """Return the output [B, T, d_model]."""
        result = self.full(x, **arguments)
        return result[0] if isinstance(result, tuple) else result

    def new_cache(self, batch: int = BATCH, max_len: int | None = None) -> Any:
        """Return a cache in the module's dtype."""
        return self.module.new_cache(batch, max_len=max_len, dtype=next(self.module.parameters()).dtype)

    def decode(self, x: Tensor, sizes: list[int], cache: Any = None, mask: Tensor | None = None) -> Tensor:
        """Return the output of feeding x in pieces of the given sizes through a cache.

        Args:
            mask: padding mask [B, past + T], cut for each piece to the tokens seen by then.
        """
        cache = self.new_cache(x.shape[0]) if cache is None else cache
        pieces, at = [], 0
        for size in sizes:
            seen = cache.length + size
            padding = {} if mask is None else {"padding_mask": mask[:, :seen]}
            with torch.no_grad():
                pieces.append(self(x[:, at : at + size], cache=cache, **padding))
            at += size
        return torch.cat(pieces, dim=1)


def at_lengths(run: Callable[[int], None], lengths: Sequence[int] = LONG, least: int = 13) -> str:
    """Run a check at rising lengths, and say how far that went.

    A class may refuse what is longer than it can be, by ValueError or NotImplementedError; anything else that it
    raises there is a fault.

    Args:
        run: the check, of a length.
        lengths: the lengths.
        least: the longest that was tried before.
    """
    for length in lengths:
        try:
            run(length)
        except AssertionError as error:
            raise AssertionError(f"in {length} positions: {error}") from error
        except (ValueError, NotImplementedError) as error:
            first = str(error).strip().split("\n")[0]
            return f"tried up to {least} positions; {length} are refused: {first}"
        except Exception as error:
            first = str(error).strip().split("\n")[0]
            raise AssertionError(
                f"in {length} positions: {type(error).__name__}: {first} (a length that is too long for it would be "
                "refused by a ValueError)"
            ) from error
        least = length
    return f"tried up to {least} positions"


def influence(mixer: Built, x: Tensor, **arguments: Tensor) -> Tensor:
    """Return bool [T, T]: whether the output of a row's position depends on the input at another one."""
    x = x.clone().requires_grad_()
    out = mixer(x, **arguments)
    rows = [torch.autograd.grad(reals(out[:, t]).sum(), x, retain_graph=True)[0][0] for t in range(x.shape[1])]
    return torch.stack(rows).abs().amax(-1) > 0


def subject_of(
    cls: type, kind: str | None, traits: Traits | None, options: Mapping[str, Any], device: str = "cpu"
) -> Subject:
    """Return the subject for a class: registered classes bring their traits, others are read from their signatures.

    Raises:
        InputError: when `cls` is not a class with a `forward`.
    """
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.forward is not nn.Module.forward):
        raise InputError(f"{cls!r} is not a torch module class with a forward(x, ...); give a mixer or an FFN class")
    own = issubclass(cls, Mixer | FFN)
    for each in ("attn", "ffn") if kind is None else (kind,):
        for entry in entries(each):
            if entry.cls is cls:
                declared = own or traits is not None or entry.traits != infer_traits(cls)
                return Subject(cls, each, traits or entry.traits, declared, dict(options), device)
    # An FFN knows no heads.
    kind = kind or ("attn" if "n_heads" in options_of(cls) else "ffn")
    return Subject(cls, kind, traits or infer_traits(cls), own or traits is not None, dict(options), device)


def skip(reason: str) -> None:
    """Leave a check out, with the reason (pytest understands it too)."""
    raise SkipTest(reason)
