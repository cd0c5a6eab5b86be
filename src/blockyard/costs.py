"""What a module costs: parameters, FLOPs, cache bytes, by formula."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Costs of a module for one sequence.

    Args:
        parameters: number of parameters.
        flops: forward floating-point operations of the matrix products for the whole sequence, two per
            multiply-add, attention counted dense (causality earns no credit, as `FlopCounterMode` counts).
        cache_bytes_per_token: bytes of decoding state per token and sequence, float32.
    """

    parameters: int = 0
    flops: int = 0
    cache_bytes_per_token: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.flops + other.flops,
            self.cache_bytes_per_token + other.cache_bytes_per_token,
        )


def linear_flops(tokens: int, *shapes: tuple[int, int]) -> int:
    """FLOPs of passing `tokens` rows through matrices of the given (in, out) shapes."""
    return sum(2 * tokens * d_in * d_out for d_in, d_out in shapes)
