"""One fault each, in derivatives, costs, numbers and forms: it fails its own check and no other."""

from __future__ import annotations

from typing import Literal
from unittest import SkipTest

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockyard.conformance import mixer_checks
from blockyard.errors import InputError
from blockyard.protocol.costs import Cost
from blockyard.standard.attention import StandardAttention
from tests.fixtures.faults import DOCUMENTS, PLAIN, Simple, failures

# Derivatives


class _Doubled(torch.autograd.Function):
    """exp x, whose backward pass reads what has no graph any more."""

    @staticmethod
    def forward(ctx, x):
        out = x.exp()
        ctx.kept = out.detach()
        return out

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.kept


class _Once(_Doubled):
    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():
            raise InputError("exp has one derivative here")
        return grad * ctx.kept


class SilentlyOnce(Simple):
    exponential = _Doubled

    def forward(self, x):
        return super().forward(x)[0] + self.exponential.apply(x), None


class RefusesTwice(SilentlyOnce):
    exponential = _Once


SECOND = "second derivatives are right or refused"


def test_wrong_second_derivatives_fail_and_refused_ones_are_skipped_with_the_reason():
    (wrong, refused), first = (
        [case for cls in (SilentlyOnce, RefusesTwice) for case in mixer_checks(cls, traits=PLAIN) if case.name == name]
        for name in (SECOND, "gradients equal finite differences")
    )
    for case in first:
        case()
    with pytest.raises(AssertionError, match="second derivatives are wrong"):
        wrong()
    with pytest.raises(SkipTest, match="it refuses second derivatives: exp has one derivative here"):
        refused()


# Costs


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        (Cost(parameters=1), "the cost formula counts the parameters"),
        (Cost(flops=2), "the cost formula counts the flops"),
        (Cost(cache_bytes_per_token=4), "the cost formula counts the bytes of the cache"),
    ],
    ids=["parameters", "flops", "cache"],
)
def test_a_cost_formula_that_lies_fails_its_own_check_and_no_other(lie, caught):
    class Liar(StandardAttention):
        def cost(self, tokens):
            return super().cost(tokens) + lie

    assert failures(Liar) == {caught}


# Numbers, modes and forms


class Batchwise(Simple):
    def forward(self, x):
        out = super().forward(x)[0]
        return out + 1e-2 * out.mean(0, keepdim=True), None


class Restless(Simple):
    def forward(self, x):
        return F.dropout(super().forward(x)[0], 0.1), None


class Upcasting(Simple):
    def forward(self, x):
        return super().forward(x)[0].float() if x.dtype == torch.bfloat16 else super().forward(x)[0], None


class Breaking(Simple):
    def forward(self, x):
        out = super().forward(x)[0]
        return out * (1.0 if out.sum().item() < 1e9 else 2.0), None


class WrongGradient(Simple):
    def forward(self, x):
        out = super().forward(x)[0]
        return out + 0.1 * (x.detach() - x), None


class Unsaved(Simple):
    def __init__(self, d_model: int, causal: bool = False):
        super().__init__(d_model, causal)
        self.offset = torch.randn(d_model)

    def forward(self, x):
        return super().forward(x)[0] + self.offset.to(x.dtype), None


class Unused(Simple):
    def __init__(self, d_model: int, causal: bool = False):
        super().__init__(d_model, causal)
        self.forgotten = nn.Parameter(torch.ones(d_model))


class InPlace(Simple):
    def forward(self, x):
        out = super().forward(x.clone())
        with torch.no_grad():
            x.mul_(2)
        return out


@pytest.mark.parametrize(
    ("cls", "caught"),
    [
        (Batchwise, {"rows of a batch do not mix", *DOCUMENTS}),
        (Upcasting, {"bfloat16 weights load and compute close to float32"}),
        (Breaking, {"torch compile captures it as one graph"}),
        (WrongGradient, {"gradients equal finite differences", SECOND}),
        (
            Unsaved,
            {"a saved and loaded copy gives the same output", "bfloat16 weights load and compute close to float32"},
        ),
        (Unused, {"every parameter gets a gradient"}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_fault_fails_its_own_check_and_no_other(cls, caught):
    assert failures(cls, PLAIN) == caught


@pytest.mark.parametrize(
    ("cls", "caught"),
    [
        (Restless, "two calls in eval mode agree bit for bit"),
        (InPlace, "the input is not written to"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_fault_that_disturbs_all_checks_fails_its_own_too(cls, caught):
    assert caught in failures(cls, PLAIN)


def test_an_option_value_that_does_not_train_fails_that_check_and_no_other():
    class Detaching(Simple):
        def __init__(self, d_model: int, causal: bool = False, form: Literal["plain", "cut"] = "plain"):
            super().__init__(d_model, causal)
            self.form = form

        def forward(self, x):
            out, _ = super().forward(x)
            return (out if self.form == "plain" else out / (out.sum() * 0)), None

    assert failures(Detaching, PLAIN) == {"every value of every enumerated option trains one step"}
