"""The vein FFN: its costs, its options, and what FFNs that share a vein add up to."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blockyard.vein.ffn import VFTFeedForward
from blockyard.vein.projector import VeinProjector
from tests.fixtures.vein_blocks import D, R, sample


@pytest.mark.parametrize("stabilizer", ["none", "diag", "lowrank", "full"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu"])
@pytest.mark.parametrize("tied", [False, True])
def test_ffn_cost_counts_what_torch_counts_and_every_option_trains(stabilizer, gated, activation, tied):
    ffn = VFTFeedForward(D, R, activation=activation, gated=gated, stabilizer=stabilizer, tied=tied)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        ffn(sample())
    assert ffn.cost(12).flops == counter.get_total_flops()
    assert ffn.cost(12).parameters == sum(p.numel() for p in ffn.parameters())
    ffn(sample()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ffn.parameters())


def test_ffns_that_share_a_vein_add_up_inside_it():
    vein = VeinProjector(D, R, tied=True)
    experts = [VFTFeedForward(D, vein_projector=vein, stabilizer="none", gated=gated) for gated in (False, True)]
    x = sample()
    rebuilt = vein.reconstruct(sum(expert.core(vein.project(x)) for expert in experts))
    torch.testing.assert_close(rebuilt, experts[0](x) + experts[1](x))
    parts = [expert.core_cost(12) + vein.cost(12) for expert in experts]
    assert parts == [expert.cost(12) for expert in experts]
