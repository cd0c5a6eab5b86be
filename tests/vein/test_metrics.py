"""Metrics and calibration of vein blocks: what they count, and that they change nothing."""

import pytest
import torch

from tests.fixtures.vein_blocks import D, R, block, sample


@pytest.mark.parametrize("preset", ["fast", "seed"])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_metrics_come_on_request_and_change_nothing(preset, norm_position):
    made, x = block(preset=preset, norm_position=norm_position), sample()
    out, none = made(x)
    same, metrics = made(x, return_metrics=True)
    # Without metrics the norm stands inside the product: other operations.
    torch.testing.assert_close(out, same)
    assert none is None
    assert {"eps_mean", "eps_max", "eps_frac_over_tau", "rank"} <= metrics.keys()
    assert not any(v.requires_grad for v in metrics.values() if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 1.0])
def test_calibration_corrects_the_fraction_asked_for(fraction):
    made, x = block(), sample(20)
    made.calibrate_tau(x, fraction)
    assert float(made(x, return_metrics=True)[1]["eps_frac_over_tau"]) == pytest.approx(fraction)


def test_a_larger_tau_corrects_fewer_tokens():
    made, x = block(), sample(20)
    shares = []
    for tau in (0.0, 0.9, 1.0):
        made.normals.set_tau(tau)
        shares.append(float(made(x, return_metrics=True)[1]["eps_frac_over_tau"]))
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 and shares[-1] == 0


def test_a_diagnosis_adds_entropy_and_effective_rank_within_their_bounds():
    made, x = block(causal=True), sample(9)
    found = made.diagnose(x)
    assert 0 < float(found["attention_entropy"]) < torch.log(torch.tensor(9.0))
    assert 1 <= float(found["effective_rank"]) <= R
    torch.testing.assert_close(found["eps_mean"], made.reconstruction_error(x).mean())


def test_tokens_along_one_direction_have_effective_rank_one():
    made = block(norm="rms")
    made.attn.zero_init_output()
    x = torch.randn(2, 6, 1) * torch.randn(D)
    assert float(made.diagnose(x)["effective_rank"]) == pytest.approx(1, abs=1e-3)


def test_padding_is_left_out_of_a_diagnosis():
    made, x = block(causal=True, rope="none"), sample(6)
    padded = torch.cat([torch.randn(2, 3, D), x], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6] * 2)
    for name in ("attention_entropy", "effective_rank"):
        alone, beside = made.diagnose(x)[name], made.diagnose(padded, padding_mask=mask)[name]
        torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cached", [0, 2])
def test_metrics_leave_padding_out(cached):
    made, x = block(tau=0.9, causal=True), sample(6)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        cache = made.new_cache(2) if cached else None
        if cached:
            made(x[:, :cached], cache=cache, padding_mask=mask[:, :cached])
        found = made(x[:, cached:], cache=cache, padding_mask=mask, return_metrics=True)[1]
        eps = made.reconstruction_error(x, padding_mask=mask)[:, cached:][mask[:, cached:].bool()]
    torch.testing.assert_close(found["eps_mean"], eps.mean())
    torch.testing.assert_close(found["eps_max"], eps.max())
    torch.testing.assert_close(found["eps_frac_over_tau"], (eps > 0.9).float().mean())
