"""Mixers that ignore padding or masks, or count padding as positions, fail the checks of masks and no other."""

from __future__ import annotations

import dataclasses

import torch

from blockyard.protocol.mixer import check_input
from blockyard.standard.attention import StandardAttention
from tests.fixtures.faults import FULL, PLAIN, Simple, failures


class IgnoresPadding(StandardAttention):
    def forward(self, x, *, padding_mask=None, **arguments):
        return super().forward(x, **arguments)


def test_a_mixer_that_ignores_padding_fails_the_padding_checks_and_no_other():
    assert failures(IgnoresPadding) == {
        "context of another length is attended to",
        "a row padded on the left gives what it gives alone",
        "a row padded on the right gives what it gives alone",
        "padding has no influence and no gradient",
        "padding and attention mask act together",
        "cached steps of padded rows equal the rows alone",
        "a padding mask of the wrong shape is refused",
    }


class UnshiftedPositions(StandardAttention):
    """Honours the mask but counts positions from the first column, padding or not, in absolute terms."""

    def forward(self, x, *, positions=None, cache=None, **arguments):
        check_input(x, self.d_model)
        if positions is None:
            past = cache.length if cache is not None else 0
            positions = torch.arange(x.shape[1]) + past
        counted = positions.to(x.dtype)[..., None]
        shifted = x + 0.1 * torch.sin(counted / torch.arange(1, x.shape[-1] + 1))
        return super().forward(shifted, positions=positions, cache=cache, **arguments)


def test_positions_that_count_the_padding_fail_the_left_padding_checks_and_no_other():
    assert failures(UnshiftedPositions, dataclasses.replace(FULL, cross=False)) == {
        "a row padded on the left gives what it gives alone",
        "padding and attention mask act together",
        "cached steps of padded rows equal the rows alone",
    }


class IgnoresMask(StandardAttention):
    def forward(self, x, *, attn_mask=None, **arguments):
        return super().forward(x, **arguments)


def test_a_mixer_that_ignores_attn_mask_fails_the_mask_checks_and_no_other():
    assert failures(IgnoresMask) == {
        "weights follow an additive mask as a softmax does",
        "a boolean mask hides exactly what it says",
        "an additive mask of minus infinity equals the boolean one",
        "a query that may see nothing gives zero and no nan",
        "an attention mask of the wrong shape is refused",
    }


class NanOnBlindRows(Simple):
    """Softmax over nothing."""

    def forward(self, x, attn_mask=None):
        if attn_mask is None:
            return super().forward(x)
        scores, v = self.scores(x)
        bias = torch.zeros_like(scores)
        bias = bias.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else bias + attn_mask
        return self.out((scores + bias).softmax(-1) @ v), None


def test_a_softmax_over_nothing_fails_the_check_of_blind_queries():
    masked = dataclasses.replace(PLAIN, attn_mask=True)
    assert failures(NanOnBlindRows, masked) == {
        "a query that may see nothing gives zero and no nan",
        "masks broadcast over batch and heads",  # [B, 1, T, S] does not broadcast to its [B, T, S]
        "an attention mask of the wrong shape is refused",
    }


def test_an_argument_that_is_taken_but_ignored_fails_when_the_traits_do_not_claim_it():
    class Ignores(Simple):
        def forward(self, x, padding_mask=None, return_weights=False):
            return super().forward(x)

    assert failures(Ignores, PLAIN) == {"arguments beyond the traits are refused and not ignored"}
