"""The suite itself: each fault, put into an otherwise right block, fails exactly the checks that are meant for it."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal
from unittest import SkipTest

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from blockyard.conformance import check, ffn_checks, mixer_checks
from blockyard.errors import InputError
from blockyard.protocol.costs import Cost
from blockyard.protocol.mixer import check_input, default_positions
from blockyard.registry.register import Traits, implementation
from blockyard.standard.attention import StandardAttention
from blockyard.standard.gated import SwiGLU

FULL = implementation("attn", "standard").traits
# Nothing but mixing: so that a fault shows in the checks meant for it alone.
PLAIN = Traits(causal=True, bidirectional=True)

PAST = {
    "changing the future leaves the past as it was",
    "the jacobian of the past in the future is zero",
    "a longer input continues a shorter one",
}
DECODING = {
    "cached steps equal the full forward",
    "prefill in chunks equals the full forward",
    "a cache that grows keeps what it holds",
    "cached steps of padded rows equal the rows alone",
    "a static cache equals a growing one and refuses to overflow",
    "a cropped cache equals recomputing",
    "rolling back equals never having gone on",
    "a long text can be gone back over by a few tokens",
    "beams are reordered selected and repeated with their cache",
    "a reset cache is a new one",
}


def failures(cls, traits=FULL, **options):
    return set(check(cls, kind="attn", traits=traits, **options).failed)


class Simple(nn.Module):
    """Causal or full attention of one head without positions, cache or masks."""

    def __init__(self, d_model: int, causal: bool = False):
        super().__init__()
        self.causal = causal
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)

    def scores(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf)
        return scores, v

    def forward(self, x):
        if x.ndim != 3 or 0 in x.shape or x.shape[-1] != self.out.in_features:
            raise InputError(f"x has shape {tuple(x.shape)}")
        scores, v = self.scores(x)
        return self.out(scores.softmax(-1) @ v), None


def test_a_right_mixer_without_cache_or_masks_passes_and_skips_the_rest():
    report = check(Simple, kind="attn", traits=PLAIN)
    assert report.ok, str(report)
    skipped = {row.name: row.reason for row in report.rows if row.outcome == "skipped"}
    assert skipped["cached steps equal the full forward"] == "its traits do not claim cache"
    assert skipped["the cost formula counts the flops"].startswith("it has no cost formula")


# Leaks


class Leaky(Simple):
    def forward(self, x):
        return super().forward(x)[0] + 1e-3 * x.mean(1, keepdim=True), None


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


# Caches


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


# Masks


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
        (Batchwise, {"rows of a batch do not mix"}),
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


# FFNs


def test_an_ffn_that_mixes_positions_fails_that_check_and_no_other():
    class Mixing(SwiGLU):
        def forward(self, x):
            out = super().forward(x)
            return out + 1e-3 * out.mean(-2, keepdim=True)

    assert check(Mixing).failed == ["positions do not mix"]


def test_an_ffn_whose_with_aux_differs_fails_that_check_and_no_other():
    class TwoFaced(SwiGLU):
        def with_aux(self, x):
            return 2 * self(x), {"losses": {}, "stats": {}}

    assert check(TwoFaced).failed == ["with aux agrees with a plain call"]


def test_an_ffn_whose_formula_lies_fails_that_check_and_no_other():
    class Liar(SwiGLU):
        def cost(self, tokens):
            return super().cost(tokens) + Cost(flops=1)

    assert check(Liar).failed == ["the formula counts parameters and flops"]


def test_a_plain_torch_ffn_can_be_checked():
    class Foreign(nn.Module):
        def __init__(self, d_model):
            super().__init__()
            self.up, self.down = nn.Linear(d_model, 8), nn.Linear(8, d_model)

        def forward(self, x):
            return self.down(self.up(x).tanh())

    report = check(Foreign)
    assert report.ok, str(report)
    assert report.counts()["passed"] > 8


# Foreign mixers, the report, the interface


class ForeignMixer(nn.Module):
    """As the vein document's registration example has it: no types, a mask, keywords swallowed."""

    def __init__(self, d_model, n_heads, **kwargs):
        super().__init__()
        self.attend = nn.MultiheadAttention(d_model, n_heads, batch_first=True)

    def forward(self, x, attn_mask=None, **kwargs):
        return self.attend(x, x, x, attn_mask=attn_mask, need_weights=False)[0], None


def test_a_foreign_class_with_only_a_mask_is_checked_for_what_it_claims():
    report = check(ForeignMixer)
    outcomes = {row.name: row.outcome for row in report.rows}
    assert outcomes["changing the future leaves the past as it was"] == "passed"
    assert outcomes["a row padded on the left gives what it gives alone"] == "skipped"
    assert outcomes["an empty batch or length is refused"] == "skipped"
    # torch's own module reads True as "ignore", and gives NaN to a query that sees nothing.
    assert set(report.failed) == {
        "a boolean mask hides exactly what it says",
        "an additive mask of minus infinity equals the boolean one",
        "masks broadcast over batch and heads",
        "a query that may see nothing gives zero and no nan",
    }


def test_the_report_prints_one_line_per_check_and_becomes_json():
    report = check(Leaky, kind="attn", traits=PLAIN)
    text = str(report)
    assert text.splitlines()[0].endswith("test_conformance_suite:Leaky")
    assert "failed   the jacobian of the past in the future is zero" in text
    assert f"{len(PAST)} failed" in text.splitlines()[-1]
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is False
    assert data["failed"] == len(PAST)
    assert len(data["rows"]) == len(report.rows)


def test_rows_are_reported_as_they_come():
    seen = []
    report = check(SwiGLU, on_row=seen.append)
    assert tuple(seen) == report.rows


def test_cases_are_named_after_class_options_and_check():
    names = [str(case) for case in ffn_checks(SwiGLU, {"d_ff": 8})]
    assert "SwiGLU[d_ff=8]: positions do not mix" in names


def test_a_check_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    check(SwiGLU)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("wrong", [3, dict, nn.Module, StandardAttention(32, 2)], ids=lambda w: type(w).__name__)
def test_what_is_no_module_class_is_refused(wrong):
    with pytest.raises(InputError, match="not a torch module class"):
        check(wrong)


def test_an_unknown_option_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match=r"did you mean 'window'\?"):
        check(StandardAttention, windw=3)
