"""Healing: the transplanted mixers come nearer to the original, and nothing else moves."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import gather_moments, heal, transplant
from tests.transplant.test_transplant import build, text


@pytest.mark.parametrize("blocks", ["mla[kv_rank=10,rope_dim=6]", "standard[head_dim=4,v_dim=4]"])
def test_predictions_come_nearer_and_other_weights_stay(blocks):
    model, ids = build(), text(60)
    new = transplant(model, blocks, layers=[1], moments=gather_moments(model, ids[:6]))
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    # The same two pieces again and again: what can be learnt of random text in a few steps.
    losses = heal(new, model, ids[:2].repeat(30, 1), lr=3e-3)
    assert len(losses) == 60 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    moved = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith("layers.1.attn.") for name in moved)
    assert all(p.grad is None for p in new.parameters())


def test_every_parameter_wants_gradients_as_before_whatever_happens():
    model, ids = build(), text(4)
    new = transplant(model, "standard[head_dim=4]", moments=gather_moments(model, ids))
    new.lm_head.requires_grad_(False)
    wishes = [p.requires_grad for p in new.parameters()]

    def ended(step: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(new, model, ids, progress=ended)
    assert [p.requires_grad for p in new.parameters()] == wishes


def test_a_model_in_which_nothing_was_transplanted_is_refused():
    model = build()
    with pytest.raises(InputError, match="nothing was transplanted"):
        heal(model, build(), text(1))
    with pytest.raises(InputError, match="other vocabularies or depths"):
        heal(model, build(n_layers=3), text(1))
