"""The router: losses and load as defined, what padding counts for, and the bias that balances."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.fixtures.mixtures import D, E, T, build, expert_functions, inputs
from tests.moe import twin


def test_k_can_be_another_one_in_a_call():
    moe, x = build(k=2), inputs()
    other = build(k=4)
    other.load_state_dict(moe.state_dict())
    assert torch.allclose(moe(x, k=4), other(x), atol=1e-13)
    everything = twin.mixture(
        x, moe.router.linear.weight, expert_functions(moe), k=E, scoring="softmax", renormalise=True
    )
    assert torch.allclose(moe(x, k=E), everything, atol=1e-12)
    assert torch.isfinite(moe.eval()(x, k=1)).all()


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_losses_and_load_are_those_of_the_definition(scoring):
    moe, x = build(scoring=scoring), inputs()
    _, aux = moe.with_aux(x)
    logits = (x @ moe.router.linear.weight.T).view(-1, E)
    chosen = [twin.gates(row, 2, scoring, True)[0] for row in logits]
    assert torch.allclose(aux["losses"]["balance"], twin.switch_loss(logits, chosen, scoring))
    assert torch.allclose(aux["losses"]["z"], torch.stack([row.exp().sum().log() ** 2 for row in logits]).mean())
    counted = [sum(e in experts for experts in chosen) for e in range(E)]
    assert aux["stats"]["load"].tolist() == counted


def test_the_balance_loss_is_one_when_the_mean_probabilities_are_uniform():
    moe, x = build(), inputs()
    with torch.no_grad():
        moe.router.linear.weight.zero_()
    assert moe.with_aux(x)[1]["losses"]["balance"].item() == pytest.approx(1.0)


def test_padding_passes_no_expert_and_counts_nowhere():
    moe, x = build(capacity=1.0, n_shared=1), inputs()
    mask = torch.ones(2, T, dtype=torch.long)
    mask[0, :5] = 0
    garbage = x.clone()
    garbage[0, :5] = float("nan")
    y, aux = moe.with_aux(garbage, padding_mask=mask)
    # Each row alone, without its padding: it has as many places as its own tokens give it.
    parts = [moe.with_aux(x[:1, 5:]), moe.with_aux(x[1:])]
    # The same sums over other numbers of rows.
    assert torch.allclose(y[:1, 5:], parts[0][0], atol=1e-12) and torch.allclose(y[1:], parts[1][0], atol=1e-12)
    dropped = [part[1]["stats"]["dropped"] for part in parts]
    assert min(dropped) > 0 and torch.allclose(aux["stats"]["dropped"], (8 * dropped[0] + 13 * dropped[1]) / 21)
    load = sum(part[1]["stats"]["load"] for part in parts)
    assert torch.equal(aux["stats"]["load"], load) and load.sum() == 2 * (2 * T - 5)
    z = (8 * parts[0][1]["losses"]["z"] + 13 * parts[1][1]["losses"]["z"]) / 21
    assert torch.allclose(aux["losses"]["z"], z)
    loss = y[mask.bool()].sum() + aux["losses"]["z"] + aux["losses"]["balance"]
    gradients = torch.autograd.grad(loss, list(moe.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("left", [True, False], ids=["padding in front", "padding behind"])
@pytest.mark.parametrize("capacity", [0.3, 0.7, 1.0, 1.25])
def test_padding_takes_no_places_from_a_sequence_and_gives_it_none(capacity, left):
    moe, lengths = build(capacity=capacity, k=3, balance="bias"), (1, 4, 9, 11, T)
    mask = torch.zeros(len(lengths), T)
    for row, length in enumerate(lengths):
        mask[row, T - length :] = 1
    mask = mask if left else mask.flip(1)
    x = inputs(shape=mask.shape)
    y = moe(x, padding_mask=mask)
    for row, keep in enumerate(mask.bool()):
        # The same sums over another number of rows.
        torch.testing.assert_close(y[row, keep], moe(x[row : row + 1, keep])[0], rtol=1e-12, atol=1e-12)


def test_a_batch_of_nothing_but_padding_drops_nothing_and_moves_no_bias():
    moe = build(capacity=0.5, balance="bias", bias_rate=0.1)
    before = moe.router.bias.clone()
    y, aux = moe.with_aux(inputs(), padding_mask=torch.zeros(2, T))
    moe.after_step(aux["stats"])
    assert aux["stats"]["dropped"] == 0 and not aux["stats"]["load"].any() and not y.any()
    assert aux["losses"]["z"] == 0 and torch.equal(moe.router.bias, before)


def test_losses_are_returned_and_not_counted_twice_by_checkpointing():
    moe, x = build(balance="bias"), inputs()
    plain = moe.with_aux(x)
    total = plain[0].sum() + plain[1]["losses"]["z"]
    expected = torch.autograd.grad(total, list(moe.parameters()))
    y, aux = checkpoint(moe.with_aux, x, use_reentrant=False)
    found = torch.autograd.grad(y.sum() + aux["losses"]["z"], list(moe.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    assert torch.equal(aux["stats"]["load"], plain[1]["stats"]["load"])
    assert not any(isinstance(value, torch.Tensor) for module in moe.modules() for value in vars(module).values())


def test_the_bias_moves_towards_idle_experts_and_stays_centred():
    moe = build(balance="bias", bias_rate=0.1, n_experts=4)
    moe.router.bias.zero_()
    moe.after_step({"load": torch.tensor([10.0, 0.0, 2.0, 0.0])})
    assert moe.router.bias.tolist() == pytest.approx([-0.15, 0.05, 0.05, 0.05])
    before = moe.router.bias.clone()
    x = inputs()
    gates = moe.router(x.view(-1, D), 4).gates.sort().values
    moe.router.bias += torch.tensor([3.0, 0.0, 0.0, -3.0])
    # Weights never see the bias: with all experts chosen nothing changes.
    assert torch.allclose(moe.router(x.view(-1, D), 4).gates.sort().values, gates)
    assert (moe.router(x.view(-1, D), 1).experts == 0).all()
    moe.router.bias.copy_(before)
    moe.after_step({"load": torch.zeros(4)})
    assert torch.equal(moe.router.bias, before), "a step without tokens moved the bias"
