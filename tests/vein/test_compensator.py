"""Normal compensation: gathered or dense, it corrects the same."""

import pytest
import torch

from blockyard.vein.compensator import NormalCompensator
from tests.fixtures.vein_blocks import D, sample


@pytest.mark.parametrize("gate_norm", [False, True])
@pytest.mark.parametrize("s", [1, 3])
def test_gathered_correction_equals_dense_correction(s, gate_norm):
    torch.manual_seed(0)
    dense = NormalCompensator(D, s, tau=0.5, gate_norm=gate_norm, form="dense").double()
    gather = NormalCompensator(D, s, tau=0.5, gate_norm=gate_norm, form="gather").double()
    gather.load_state_dict(dense.state_dict())
    x, eps = sample().double(), torch.rand(2, 6)
    torch.testing.assert_close(gather(x, eps), dense(x, eps))
    assert torch.equal(dense(x, eps)[eps <= 0.5], x[eps <= 0.5])
    assert (dense(x, eps)[eps > 0.5] != x[eps > 0.5]).any()


def test_no_directions_mean_no_parameters_and_no_change():
    none, x = NormalCompensator(D, s=0), sample()
    assert list(none.parameters()) == [] and none(x, torch.ones(2, 6)) is x
