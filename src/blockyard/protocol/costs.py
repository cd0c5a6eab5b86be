"""What a module costs: parameters, FLOPs, cache bytes, by formula."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """Costs of a module for one sequence.

    Args:
        parameters: number of parameters.
        flops: forward floating-point operations of the matrix products for the whole sequence, two per
            multiply-add, attention counted dense (causality earns no credit, as `FlopCounterMode` counts). Fourier
            transforms count as 2.5 n log2 n, and the products of their bins.
        cache_bytes_per_token: bytes of decoding state per token and sequence, float32.
        pair_flops: of `flops`, those of scores and weighted means over all pairs of tokens: hiding the future leaves
            half of them to be done. A window's are not among them.
    """

    parameters: int = 0
    flops: int = 0
    cache_bytes_per_token: int = 0
    pair_flops: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.cache_bytes_per_token + other.cache_bytes_per_token,
            self.pair_flops + other.pair_flops,
        )


def linear_flops(tokens: int, *shapes: tuple[int, int]) -> int:
    """Return FLOPs of passing `tokens` rows through matrices of the given (in, out) shapes."""
    # Biases are additions, n per row beside 2 · n · m: the counter leaves them out, and so do formulas.
    return sum(2 * tokens * d_in * d_out for d_in, d_out in shapes)


def cost_of(module: Any, tokens: int, d_model: int) -> Cost:
    """Return a module's own formula, or for one without: parameters counted, FLOPs measured once.

    Args:
        module: a mixer or FFN.
        tokens: length of the sequence.
        d_model: width of its input.
    """
    # A formula is data that tests check against the counter; measuring takes a pass at full length.
    return module.cost(tokens) if hasattr(module, "cost") else measured_cost(module, tokens, d_model)


def measured_cost(module: Any, tokens: int, d_model: int) -> Cost:
    """Count the parameters of a mixer or FFN, and measure the FLOPs of one pass; arguments as for `cost_of`."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    parameters = sum(p.numel() for p in module.parameters())
    first = next(module.parameters(), torch.empty(0))
    dtype = first.dtype.to_complex() if getattr(module, "complex_valued", False) else first.dtype
    # Zeros: FLOPs of products depend on shapes alone.
    x = torch.zeros(1, tokens, d_model, device=first.device, dtype=dtype)
    counter = FlopCounterMode(display=False)
    # The counter does not know SDPA's CPU kernel; in its plain form every product is seen.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(x)
    return Cost(parameters, int(counter.get_total_flops()))
