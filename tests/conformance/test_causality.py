"""Mixers that see the future, openly or behind zeros, fail the checks of causality and no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.conformance import mixer_checks
from blockyard.standard.attention import StandardAttention
from tests.fixtures.faults import DECODING, PAST, PLAIN, Leaky, Simple, failures


class LeakyBehindZeros(Simple):
    """As it is built it leaks nothing, because its output starts at zero; once trained it does."""

    def __init__(self, d_model: int, causal: bool = False):
        super().__init__(d_model, causal)
        self.summary = nn.Linear(d_model, d_model, bias=False)
        nn.init.zeros_(self.summary.weight)

    def forward(self, x):
        return super().forward(x)[0] + self.summary(x.mean(1, keepdim=True)), None


class LeakyByOne(Simple):
    """The mask is off by one: each position sees the next."""

    def scores(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(2), -torch.inf)
        return scores, v


class LeakyStatistics(Simple):
    """No position is mixed into another, but all are scaled by the sequence's own standard deviation."""

    def forward(self, x):
        return super().forward(x)[0] / (1 + x.std(dim=(1, 2), keepdim=True, correction=0)), None


@pytest.mark.parametrize("cls", [Leaky, LeakyBehindZeros, LeakyByOne, LeakyStatistics], ids=lambda c: c.__name__)
def test_a_leaky_mixer_fails_the_causality_checks_and_no_other(cls):
    assert failures(cls, PLAIN) == PAST


def test_a_mixer_that_leaks_strongly_predicts_random_tokens():
    leaking = [case for case in mixer_checks(LeakyByOne, traits=PLAIN, slow=True) if case.check.slow]
    with pytest.raises(AssertionError, match="it sees ahead"):
        for case in leaking:
            case()


def test_a_leaky_form_of_the_whole_standard_mixer_fails():
    class Whole(StandardAttention):
        def forward(self, x, **arguments):
            out, weights = super().forward(x, **arguments)
            return out + 1e-3 * x.mean(1, keepdim=True), weights

    assert failures(Whole) >= PAST | DECODING
