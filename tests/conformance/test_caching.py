"""Wrong caches, growing ones and states of constant size, fail the checks of decoding that are meant for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.conformance import check
from blockyard.errors import InputError
from blockyard.protocol.mixer import default_positions
from blockyard.registry.register import Traits
from blockyard.standard.attention import StandardAttention
from tests.fixtures.faults import DECODING, failures


class Forgetful(StandardAttention):
    """Attends to the new tokens alone."""

    def forward(self, x, *, cache=None, padding_mask=None, **arguments):
        if cache is None:
            return super().forward(x, padding_mask=padding_mask, **arguments)
        super().forward(x, cache=cache, padding_mask=padding_mask, **arguments)
        if padding_mask is not None:
            arguments["positions"] = default_positions(padding_mask, x.shape[1])
            padding_mask = padding_mask[:, -x.shape[1] :]
        return super().forward(x, padding_mask=padding_mask, **arguments)


class OneTooFar(StandardAttention):
    """Counts the positions of cached steps one too high."""

    def forward(self, x, *, cache=None, padding_mask=None, positions=None, **arguments):
        if cache is not None and cache.length and positions is None:
            positions = torch.arange(x.shape[1]) + cache.length + 1
            if padding_mask is not None:
                positions = default_positions(padding_mask, x.shape[1]) + 1
        return super().forward(x, cache=cache, padding_mask=padding_mask, positions=positions, **arguments)


@pytest.mark.parametrize("cls", [Forgetful, OneTooFar], ids=lambda c: c.__name__)
def test_a_wrong_cache_fails_the_decoding_checks_and_no_other(cls):
    assert failures(cls) == DECODING


class WrongRows(StandardAttention):
    """Its cache ignores the index of a beam reorder."""

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        cache = super().new_cache(batch, max_len, dtype, device)
        select = cache.select
        cache.select = lambda index: select(torch.arange(len(index)) % cache.batch)
        return cache


def test_a_cache_that_reorders_wrongly_fails_the_beam_check_and_no_other():
    assert failures(WrongRows) == {"beams are reordered selected and repeated with their cache"}


class NoCrop(StandardAttention):
    """Its cache cannot go back."""

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        cache = super().new_cache(batch, max_len, dtype, device)
        cache.crop = lambda length: None
        return cache


def test_a_cache_that_does_not_crop_fails_the_crop_and_rollback_checks():
    assert failures(NoCrop) == {
        "a cropped cache equals recomputing",
        "rolling back equals never having gone on",
        "a long text can be gone back over by a few tokens",
    }


# A state of constant size


class AverageState:
    """A running average [B, d], and the snapshots that it can go back to."""

    bytes_per_token = 0

    def __init__(self, batch, d_model, dtype):
        self.length, self.state, self.kept = 0, torch.zeros(batch, d_model, dtype=dtype), {}

    @property
    def nbytes(self):
        return self.state.nbytes

    def advance(self, state, count):
        self.state, self.length = state, self.length + count

    def snapshot(self):
        self.kept[self.length] = self.state
        return self.length

    def rollback(self, point):
        self.crop(point)

    def crop(self, length):
        if length != self.length and length not in self.kept:
            raise InputError(f"crop({length}): only {sorted(self.kept)} are still held")
        self.state, self.length = self.kept.get(length, self.state), length

    def select(self, index):
        self.state, self.kept = self.state[index], {}

    reorder = select

    def repeat(self, n):
        self.select(torch.arange(len(self.state)).repeat_interleave(n))

    def reset(self):
        self.__init__(*self.state.shape, self.state.dtype)


class Average(nn.Module):
    """h ← 0.9 h + V x, out = U h: a recurrent mixer, causal and nothing else."""

    def __init__(self, d_model: int):
        super().__init__()
        self.inward, self.outward = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def new_cache(self, batch, max_len=None, dtype=None, device=None):
        return AverageState(batch, self.inward.in_features, dtype)

    def forward(self, x, causal=None, cache=None):
        if x.ndim != 3 or 0 in x.shape or x.shape[-1] != self.inward.in_features:
            raise InputError(f"x has shape {tuple(x.shape)}")
        if causal is False:
            raise InputError("causal=False: a running average knows no future")
        state = torch.zeros_like(x[:, 0]) if cache is None else cache.state
        if state.shape != x[:, 0].shape or state.dtype != x.dtype:
            raise InputError(f"the cache holds {tuple(state.shape)} {state.dtype}, x is {tuple(x.shape)} {x.dtype}")
        states = []
        for new in self.inward(x).unbind(1):
            state = 0.9 * state + new
            states.append(state)
        if cache is not None:
            cache.advance(state, x.shape[1])
        return self.outward(torch.stack(states, 1)), None


RECURRENT = Traits(causal=True, bidirectional=False, cache="recurrent")


def test_a_recurrent_mixer_passes_and_skips_what_only_growing_caches_promise():
    report = check(Average, kind="attn", traits=RECURRENT)
    assert report.ok, str(report)
    outcomes = {row.name: row.outcome for row in report.rows}
    assert outcomes["rolling back equals never having gone on"] == "passed"
    assert outcomes["beams are reordered selected and repeated with their cache"] == "passed"
    assert outcomes["a cropped cache equals recomputing"] == "skipped"
    assert outcomes["arguments beyond the traits are refused and not ignored"] == "passed"


def test_a_recurrent_mixer_whose_rollback_keeps_the_later_state_fails_the_rollback_checks():
    class Sticky(Average):
        def new_cache(self, batch, max_len=None, dtype=None, device=None):
            cache = super().new_cache(batch, max_len, dtype, device)
            cache.rollback = lambda point: setattr(cache, "length", point)
            return cache

    assert failures(Sticky, RECURRENT) == {
        "rolling back equals never having gone on",
        "a long text can be gone back over by a few tokens",
    }
