"""The search: measured as defined, within its budget, or refused with what came nearest."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import Budget, choose_layers, difference, gather_moments, token_losses, transplant
from blockyard.transplant.caches import cache_bytes, spec_bytes
from blockyard.transplant.choices import shape_of
from blockyard.transplant.search import upper
from blockyard.transplant.trials import lone_costs, over_kinds, share_weights
from tests.transplant.test_transplant import build, text

BLOCKS, WINDOW = "standard[head_dim=4,v_dim=4]", "standard[window=4,sinks=1]"


def setting():
    model, ids = build(n_layers=5), text(9)
    return model, ids, gather_moments(model, text(3))


def test_a_layer_alone_costs_what_a_model_with_it_costs():
    model, ids, moments = setting()
    fitted = transplant(model, BLOCKS, moments=moments)
    found = lone_costs(model, {i: fitted.layers[i] for i in (0, 3, 4)}, ids[0])
    assert list(found) == [0, 3, 4]
    with torch.no_grad():
        before = model(ids[:1, :-1]).logits[0].double().log_softmax(-1)
        for layer, (kl, above) in found.items():
            after = transplant(model, BLOCKS, layers=[layer], moments=moments)(ids[:1, :-1]).logits[0].double()
            after = after.log_softmax(-1)
            assert kl == pytest.approx(float((before.exp() * (before - after)).sum(-1).mean()), rel=1e-3)
            picked = (before - after).gather(1, ids[0, 1:, None]).mean()
            assert above == pytest.approx(float(picked), abs=1e-5)


def test_costs_over_kinds_are_means_with_the_interval_within_kinds():
    cost = over_kinds([1.0, 11.0, 1.2, 11.2], [0, 1, 0, 1], 10)
    assert cost.mean == pytest.approx(6.1) and cost.half < 1.0 and cost.tokens == 40


def test_bytes_are_those_that_a_cache_holds_once_it_was_filled():
    model, _, moments = setting()
    model = transplant(model, WINDOW, layers=[1])
    model = transplant(model, "mla[kv_rank=8,rope_dim=4]", layers=[2], moments=moments)
    model = transplant(model, BLOCKS, layers=[3], moments=moments)
    for context in (3, 200):
        cache = model.new_cache(1)
        with torch.no_grad():
            model(torch.zeros(1, context, dtype=torch.int64), cache=cache, last=1)
        assert cache_bytes(model, context) == tuple(layer.nbytes for layer in cache)


@pytest.mark.parametrize("form", [WINDOW, BLOCKS, "mla[kv_rank=8,rope_dim=4]", "standard[n_kv_heads=1,head_dim=12]",
                                  "mla[kv_rank=8,method=palu]", "standard[n_kv_heads=1,method=mean_pool]"])  # fmt: skip
def test_bytes_of_a_form_are_known_before_it_is_fitted(form):
    model, _, moments = setting()
    made = transplant(model, form, layers=[1], moments=moments)
    assert spec_bytes(model, shape_of(form, model, 1), 100) == cache_bytes(made, 100)[1]


def test_a_window_on_latents_that_are_there_is_searched_and_counted():
    model, ids, moments = setting()
    model = transplant(model, "mla[kv_rank=12,rope_dim=4]", moments=moments)
    found = choose_layers(model, "mla[window=4,sinks=1]", ids, budget=Budget(cache=0.7, context=300))
    made = transplant(model, found.form, layers=found.layers)
    assert 0 < sum(cache_bytes(made, 300)) <= 0.7 * sum(cache_bytes(model, 300))
    assert spec_bytes(model, shape_of(found.form, model, 1), 300) == cache_bytes(made, 300)[found.layers[0]]


def test_a_large_budget_takes_all_layers_after_measuring_them_once():
    model, ids, moments = setting()
    found = choose_layers(model, BLOCKS, ids, budget=Budget(loss=99.0), moments=moments)
    assert found.layers == (0, 1, 2, 3, 4) and len(found.trials) == 1 and set(found.alone) == set(range(5))
    new = transplant(model, BLOCKS, moments=moments)
    # The first third of the pieces is spent on the order.
    same = difference(token_losses(new, ids[3:]), token_losses(model, ids[3:]))
    assert found.cost.mean == pytest.approx(same.mean, abs=1e-6)
    assert found.cost.half == pytest.approx(same.half, abs=1e-6)


def test_what_is_taken_is_within_the_budget_by_its_upper_end_and_one_layer_more_is_not():
    model, ids, moments = setting()
    dear = choose_layers(model, BLOCKS, ids, budget=Budget(loss=99.0), moments=moments)
    budget = upper(dear.cost) * 0.7
    found = choose_layers(model, BLOCKS, ids, budget=Budget(loss=budget), moments=moments)
    assert upper(found.cost) <= budget and 1 <= len(found.layers) < 5
    more = [trial for trial in found.trials if len(trial.layers) == len(found.layers) + 1]
    assert more and upper(more[0].cost) > budget


def test_a_budget_of_cache_is_kept_with_the_least_loss_that_was_measured():
    model, ids, moments = setting()
    found = choose_layers(model, "mla", ids, budget=Budget(cache=0.6, context=64), moments=moments)
    made = transplant(model, found.form, layers=found.layers, moments=moments)
    assert sum(cache_bytes(made, 64)) <= 0.6 * sum(cache_bytes(model, 64))
    assert found.cost.mean == min(trial.cost.mean for trial in found.trials) and len(found.trials) > 1
    assert {trial.cache_bytes for trial in found.trials} >= {sum(cache_bytes(made, 64))}


def test_open_widths_in_given_layers_become_the_narrowest_that_fit():
    model, ids, moments = setting()
    wide = choose_layers(model, "mla", ids, budget=Budget(loss=99.0), layers=[1, 3], moments=moments)
    assert wide.layers == (1, 3) and wide.form.startswith("mla[kv_rank=5")
    tight = sorted(upper(trial.cost) for trial in wide.trials)
    found = choose_layers(model, "mla", ids, budget=Budget(loss=tight[-1] * 0.9), layers=[1, 3], moments=moments)
    assert upper(found.cost) <= tight[-1] * 0.9 and not found.alone


@pytest.mark.parametrize(
    "budget, reason",
    [
        (Budget(loss=1e-9), r"budget\.loss=1e-09 cannot be met by standard.*: the nearest that was measured is .*@\d"),
        (Budget(cache=0.05, context=64), r"budget\.cache=0\.05 cannot be met by .* still holds 0\.50 of the original"),
        (Budget(), "nothing decides"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused_with_what_came_nearest(budget, reason):
    model, ids, moments = setting()
    with pytest.raises(InputError, match=reason):
        choose_layers(model, BLOCKS, ids, budget=budget, moments=moments)


def test_layers_that_cannot_be_taken_are_left_out_by_name():
    model = build("standard[n_kv_heads=2,qk_norm=false]/standard[n_kv_heads=2]", n_layers=4)
    ids = text(9)
    found = choose_layers(model, BLOCKS, ids, budget=Budget(loss=99.0), moments=gather_moments(model, text(3)))
    assert found.layers == (0, 2) and "layers 1,3" in found.notes[0] and "qk_norm" in found.notes[0]


def test_a_search_without_text_for_wholes_is_refused():
    model, ids, moments = setting()
    with pytest.raises(InputError, match="has 1 piece of 1 kinds"):
        choose_layers(model, BLOCKS, ids[:1], budget=Budget(loss=1.0), moments=moments)


def test_the_model_is_left_as_it_is():
    model, ids, moments = setting()
    before, layers = {n: t.clone() for n, t in model.state_dict().items()}, list(model.layers)
    choose_layers(model, BLOCKS, ids, budget=Budget(loss=99.0), moments=moments)
    assert list(model.layers) == layers
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_shared_weights_change_no_output():
    model, ids, moments = setting()
    made = transplant(model, BLOCKS, layers=[2], moments=moments)
    with torch.no_grad():
        before = made(ids[:2]).logits
        share_weights(made, model)
        assert torch.equal(made(ids[:2]).logits, before)
    assert made.layers[0].ffn.w1.weight is model.layers[0].ffn.w1.weight
    assert made.layers[2].attn.q_proj.weight is not model.layers[2].attn.q_proj.weight


def test_a_vein_saves_nothing_of_a_cache_whatever_mixer_stands_beside_it():
    model = build("standard[qk_norm=false]/spectral")
    moments = gather_moments(model, text(3), ffns=True)
    with pytest.warns(UserWarning), pytest.raises(InputError, match=r"vft.* still holds 1\.00 of the original's cache"):
        choose_layers(model, "vft[rank=8]", text(9), budget=Budget(cache=0.5), moments=moments)
