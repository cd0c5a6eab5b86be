"""Checks that the cost formulas say what tensors and FLOP counters say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blockyard.conformance.subject import LENGTH, Subject, skip
from blockyard.conformance.suite import check_of

TOKENS = (1, 7, 40)


def _complex_aware(rows_at: int) -> Callable[..., int]:
    """Return a formula of the FLOPs of a product whose factors stand at `rows_at` and behind; the counter's own takes
    every multiplication for a real one, and one of complex numbers is four."""

    def formula(*arguments: Any, **_: Any) -> int:
        a, b = arguments[rows_at : rows_at + 2]
        return 2 * a.numel() * b.shape[-1] * (4 if a.is_complex() else 1)

    # mypy: how FlopCounterMode is told to hand over tensors and not shapes.
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def counted_flops(call: Callable[[Tensor], Any], x: Tensor) -> int:
    """Return real FLOPs of all matrix products in a training step's forward pass."""
    aten = torch.ops.aten
    products = {aten.mm: 0, aten.bmm: 0, aten.addmm: 1, aten.baddbmm: 1, aten._grouped_mm: 0}
    known = {product: _complex_aware(place) for product, place in products.items()}
    # The fused kernel of the CPU is not in the counter's books; the plain one does the same products. Gradients stay
    # on: without them a module may keep what it computed from its parameters alone.
    with FlopCounterMode(display=False, custom_mapping=known) as counter, sdpa_kernel(SDPBackend.MATH):
        call(x)
    return counter.get_total_flops()


def require_formula(module: Any) -> None:
    """Skip when the class has no cost formula."""
    if not hasattr(module, "cost"):
        skip("it has no cost formula (a method `cost(tokens)`)")


@check_of("attn")
def the_cost_formula_counts_the_parameters(subject: Subject) -> None:
    mixer = subject.build(subject.modes[0])
    require_formula(mixer.module)
    count = sum(p.numel() for p in mixer.module.parameters())
    formula = mixer.module.cost(LENGTH).parameters
    assert formula == count, f"cost().parameters is {formula}, the module has {count}"


@check_of("attn")
def the_cost_formula_counts_the_flops(subject: Subject) -> None:
    for causal in subject.modes:
        mixer = subject.build(causal, torch.float32)
        require_formula(mixer.module)
        for tokens in TOKENS:
            count = counted_flops(mixer, subject.x(batch=1, length=tokens, precision=torch.float32))
            formula = mixer.module.cost(tokens).flops
            assert formula == count, f"cost({tokens}).flops is {formula}, counted are {count} (causal={causal})"


@check_of("attn", "cache", "causal")
def the_cost_formula_counts_the_bytes_of_the_cache(subject: Subject) -> None:
    mixer = subject.build(True, torch.float32)
    require_formula(mixer.module)
    if subject.traits.cache == "recurrent":
        skip("a recurrent state does not grow with the tokens")
    formula = mixer.module.cost(7).cache_bytes_per_token
    cache = mixer.new_cache(1)
    mixer.decode(subject.x(batch=1, precision=torch.float32), [7], cache)
    held = cache.nbytes / cache.length
    assert formula == held, f"cost().cache_bytes_per_token is {formula}, a float32 cache holds {held:g} per token"
