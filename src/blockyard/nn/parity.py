"""Whether an imported module computes what its original does: both are asked on the same random input.

And what the original says of itself beside its weights, so that an importer can read all of it or refuse it by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from blockyard.errors import InputError

# Two orders of the same float32 sums are some 1e-6 apart. Half precision rounds at 8e-3 (bf16) and 1e-3.
TOLERANCES = {torch.bfloat16: 0.05, torch.float16: 0.01}


def probe(*shape: int, like: Tensor) -> Tensor:
    """Return normal random numbers, the same at every call, on the device and in the type of `like`.

    Raises:
        InputError: for weights on the meta device, which cannot be asked.
    """
    if like.is_meta:
        raise InputError("the weights are on the meta device; load them first")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(like.device, like.dtype)


def settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield names and values of a foreign module's own numbers, switches and words; what is None is left out."""
    for name, value in vars(module).items():
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str)):
            yield name, value


@contextlib.contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode, without gradients; every one gets back the mode that it was in."""
    before = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        with torch.no_grad():
            yield
    finally:
        for m, mode in before:
            m.training = mode


def answer(original: nn.Module, call: Callable[[], Any]) -> Tensor:
    """Return the output of a foreign module, the first of several.

    Raises:
        InputError: when it cannot be called so, or gives no finite numbers.
    """
    kind = type(original).__name__
    try:
        out = call()
    except Exception as error:
        # Whatever another's code raises, it means that the importer did not understand its call.
        line = (str(error).splitlines() or [""])[0]
        raise InputError(f"the {kind} cannot be asked for its output: {type(error).__name__}: {line}") from error
    out = out[0] if isinstance(out, tuple) else out
    if not isinstance(out, Tensor) or not bool(torch.isfinite(out).all()):
        raise InputError(f"the {kind} gives no finite output on random input; are its weights set?")
    return out


def deviation(expected: Tensor, actual: Tensor) -> tuple[float, float]:
    """Return how far outputs [..., d] are apart, as part of their mean size, and how far rounding alone may take them.

    The worst vector counts. In half precision a discrete choice (which expert) may fall out either way for a few of
    them, so there a fourth of the vectors is left out.
    """
    wide = torch.promote_types(expected.dtype, torch.float32)
    gaps = (actual.to(wide) - expected.to(wide).view_as(actual)).flatten(0, -2).norm(dim=-1)
    size = expected.to(wide).flatten(0, -2).norm(dim=-1).mean().clamp_min(torch.finfo(wide).tiny)
    tolerance = TOLERANCES.get(expected.dtype, 1e-5)
    return float((gaps.max() if tolerance == 1e-5 else gaps.quantile(0.75)) / size), tolerance
