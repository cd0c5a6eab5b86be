"""Choosing layers by a budget of loss: whole choices are measured, and what is returned was."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import choose_layers, difference, gather_moments, token_losses, transplant
from tests.transplant.test_transplant import build, text

BLOCKS = "standard[head_dim=4,v_dim=4]"


def setting():
    model, ids = build(n_layers=5), text(4)
    return model, ids, gather_moments(model, text(3))


def test_a_large_budget_takes_all_layers_and_measures_them_once():
    model, ids, moments = setting()
    found = choose_layers(model, BLOCKS, ids, most_loss=99.0, moments=moments)
    assert found.layers == (0, 1, 2, 3, 4) and len(found.together) == 1 and len(found.alone) == 5
    new = transplant(model, BLOCKS, moments=moments)
    assert found.cost == difference(token_losses(new, ids), token_losses(model, ids))


def test_what_is_taken_stays_within_the_budget_and_one_layer_more_does_not():
    model, ids, moments = setting()
    dear = choose_layers(model, BLOCKS, ids, most_loss=99.0, moments=moments)
    alone = [trial.cost.mean for trial in dear.alone]
    assert alone == sorted(alone)
    budget = (alone[0] + dear.cost.mean) / 2
    found = choose_layers(model, BLOCKS, ids, most_loss=budget, moments=moments)
    assert found.cost.mean <= budget and 1 <= len(found.layers) < 5
    # The choice is the cheapest layers together, as they were measured together.
    order = [trial.layers[0] for trial in found.alone]
    assert set(found.layers) == set(order[: len(found.layers)])
    new = transplant(model, BLOCKS, layers=found.layers, moments=moments)
    assert found.cost == difference(token_losses(new, ids), token_losses(model, ids))
    more = [trial for trial in found.together if len(trial.layers) == len(found.layers) + 1]
    assert more and more[0].cost.mean > budget


def test_a_budget_that_cannot_be_met_is_refused_with_what_the_cheapest_layer_costs():
    model, ids, moments = setting()
    with pytest.raises(
        InputError, match=r"most_loss=-5 cannot be met by standard.*: the cheapest layer, \d, alone costs"
    ):
        choose_layers(model, BLOCKS, ids, most_loss=-5.0, moments=moments)


def test_the_model_is_left_as_it_is():
    model, ids, moments = setting()
    before, layers = {n: t.clone() for n, t in model.state_dict().items()}, list(model.layers)
    choose_layers(model, BLOCKS, ids, most_loss=99.0, layers=[1, 3], moments=moments)
    assert list(model.layers) == layers
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
