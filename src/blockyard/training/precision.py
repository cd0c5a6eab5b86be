"""In which floating-point type a run computes: fp32, or bf16 mixed precision where the machine is good at it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import torch

MatmulPrecision = Literal["highest", "high", "medium"]


def bf16_pays(device: torch.device) -> bool:
    """Return whether this device has bf16 matrix units (AMX or AVX-512 BF16 on a CPU, Ampere or later on CUDA).

    A property of the machine, not a timing: two runs on one machine must not differ in their numbers because
    a measurement was noisy.
    """
    if device.type == "cuda":
        # Emulated bf16 runs, several times slower than fp32.
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    # Private names that have been renamed before: one that is gone counts as no.
    tests = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, test, lambda: False)() for test in tests)


def matmul_error(precision: MatmulPrecision, device: torch.device) -> float:
    """Return largest relative error of an fp32 product under `torch.set_float32_matmul_precision(precision)`.

    About 1e-6 where `medium` only chooses a faster fp32 kernel; about 1e-2 where it rounds inputs to bf16 (AMX).
    """
    # One of its own: asking the machine a question must not move the run's random state.
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    with float32_matmul(precision):
        product = (a.to(device) @ b.to(device)).cpu().double()
    exact = a.double() @ b.double()
    return float((product - exact).abs().max() / exact.abs().max())


@contextlib.contextmanager
def float32_matmul(precision: str) -> Iterator[None]:
    """Set torch's process-wide fp32 matmul precision for a while, so that two runs in one process can differ."""
    before = torch.get_float32_matmul_precision()
    if precision == before:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Return the context in which a forward pass runs."""
    if precision == "bf16":
        # A function and not a context: every pass enters one of its own.
        return lambda: torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext
