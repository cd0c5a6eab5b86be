"""FFNs that mix positions, say two things or lie about their costs fail that check; a plain one of torch passes."""

from __future__ import annotations

from torch import nn

from blockyard.conformance import check
from blockyard.protocol.costs import Cost
from blockyard.standard.gated import SwiGLU


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
