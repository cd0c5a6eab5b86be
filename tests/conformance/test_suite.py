"""The suite itself: a right block passes, a foreign one is checked for what it claims, and the report says so."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from blockyard.conformance import check, ffn_checks
from blockyard.errors import InputError
from blockyard.standard.attention import StandardAttention
from blockyard.standard.gated import SwiGLU
from tests.fixtures.faults import PAST, PLAIN, Leaky, Simple


def test_a_right_mixer_without_cache_or_masks_passes_and_skips_the_rest():
    report = check(Simple, kind="attn", traits=PLAIN)
    assert report.ok, str(report)
    skipped = {row.name: row.reason for row in report.rows if row.outcome == "skipped"}
    assert skipped["cached steps equal the full forward"] == "its traits do not claim cache"
    assert skipped["the cost formula counts the flops"].startswith("it has no cost formula")


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
    assert text.splitlines()[0].endswith("tests.fixtures.faults:Leaky")
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
