"""The experts of a mixture: shared, gated, acting in a vein, or any registered FFN."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.errors import InputError
from blockyard.moe.grouped import Rows, grouped_linear
from blockyard.nn.roles import roles
from blockyard.registry.register import register_ffn
from tests.fixtures.mixtures import E, build, expert_functions, inputs
from tests.moe import twin


def test_shared_experts_are_added_for_every_token():
    moe, x = build(n_shared=2), inputs()
    plain = build(n_shared=2)
    plain.shared = nn.ModuleList()
    assert torch.allclose(moe(x), plain(x) + moe.shared[0](x) + moe.shared[1](x), atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gated_experts_are_added_for_every_token_times_one_gate(dtype):
    kind = {"expert": "toy_complex_ffn"} if dtype.is_complex else {}
    moe, x = build(dtype, n_gated=2, n_shared=1, **kind), inputs(dtype)
    plain = build(dtype, n_gated=2, n_shared=1, **kind)
    plain.gated = None
    gate = (1 / (1 + torch.exp(-(x.abs() if dtype.is_complex else x) @ moe.gated.gate))).unsqueeze(-1)
    expected = plain(x) + gate * (moe.gated[0](x) + moe.gated[1](x))
    assert (moe(x) - expected).abs().max() <= 1e-12
    assert roles(moe)["gated.gate"].kind == "vector"


# Veins.


def test_vein_experts_share_one_vein_and_their_cores_add_up_in_it():
    moe, x = build(expert="vft", vein_rank=4, expert_options={"gated": True, "stabilizer": "diag"}), inputs()
    names = [name for name, _ in moe.named_parameters()]
    assert sum("vein" in name for name in names) == 2 and moe.router.linear.weight.shape == (E, 4)
    z = moe.vein.project(x)
    cores = moe.experts.each()
    experts = [lambda v, e=e: cores[e](v[None], None)[0] for e in range(E)]
    mixed = twin.mixture(z, moe.router.linear.weight, experts, k=2, scoring="softmax", renormalise=True)
    assert torch.allclose(moe(x), moe.vein.reconstruct(mixed) + moe.stabilizer(x), atol=1e-12)


def test_any_expert_can_act_in_a_vein():
    moe, x = build(expert="swiglu", vein_rank=4), inputs()
    mixed = twin.mixture(
        moe.vein.project(x), moe.router.linear.weight, expert_functions(moe), k=2, scoring="softmax", renormalise=True
    )
    assert torch.allclose(moe(x), moe.vein.reconstruct(mixed), atol=1e-12)


def test_any_registered_ffn_can_be_the_expert_even_one_of_another_house():
    @register_ffn("toy_batch_ffn")
    class Foreign(nn.Module):
        def __init__(self, d_model: int, gain: float = 1.0) -> None:
            super().__init__()
            self.map, self.gain = nn.Linear(d_model, d_model), gain

        def forward(self, x):
            return torch.tanh(self.map(x)) * self.gain

    moe, x = build(expert="toy_batch_ffn", expert_options={"gain": 2.0}), inputs()
    experts = [lambda v, e=e: moe.experts[e](v[None])[0] for e in range(E)]
    expected = twin.mixture(x, moe.router.linear.weight, experts, k=2, scoring="softmax", renormalise=True)
    assert torch.allclose(moe(x), expected, atol=1e-12)
    moe(x[:1, :1]).sum().backward()
    assert all(p.grad is not None for p in moe.experts.parameters()), "an idle expert has no gradient at all"
    with pytest.raises(InputError, match="impl='padded' computes experts made of Linear layers"):
        build(expert="toy_batch_ffn", impl="padded")
    with pytest.raises(InputError, match=r"no option 'gian' \(did you mean 'gain'\?\)"):
        build(expert="toy_batch_ffn", expert_options={"gian": 2.0})


def test_long_segments_of_uneven_sizes_equal_their_products_in_float64():
    """Long enough for the products that are taken whole rows at a time; and what is too much is overwritten."""
    torch.manual_seed(0)
    sizes, weight = (70, 0, 95, 33), torch.randn(4, 160, 192, dtype=torch.float64)
    # Two rows belong to nobody.
    x = torch.randn(sum(sizes) + 2, 192, dtype=torch.float64)
    slopes = torch.randn(len(x), 160, dtype=torch.float64)
    found = []
    for dtype in (torch.float64, torch.float32):
        rows, matrices = (t.to(dtype, copy=True).requires_grad_() for t in (x, weight))
        ends = torch.tensor(sizes).cumsum(0)
        out = grouped_linear(rows, matrices, Rows("segment", ends, sizes, whole=False))
        out.backward(slopes.to(dtype))
        found.append((out, rows.grad, matrices.grad))
    exact = torch.cat([part @ w.mT for part, w in zip(x.split([*sizes, 2]), weight)] + [x.new_zeros(2, 160)])
    torch.testing.assert_close(found[0][0], exact)
    for wide, narrow in zip(*found):
        # Sums of 192 products, rounded 24 bits deep.
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-4, atol=1e-4)
