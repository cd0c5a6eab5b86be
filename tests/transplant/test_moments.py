"""Moments of layers' inputs: what they are by definition, and that what was read once is kept."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import gather_moments, token_losses, transplant
from blockyard.transplant.measure import Difference, difference, recall_losses
from blockyard.transplant.moments import EVERY
from tests.transplant.test_transplant import build, text


def test_they_are_what_their_definition_says():
    model, ids = build(), text(3, 9)
    found = gather_moments(model, ids)
    assert found.tokens == 27 and set(found.layers) == {0, 1}
    uniform = received = mixed = torch.zeros(32, 32, dtype=torch.float64)
    distances = torch.zeros(4, 9, dtype=torch.float64)
    for piece in ids:
        x = model.layers[0].ln1(model.token_embeddings(piece[None]))
        weights = model.layers[0].attn(x, return_weights=True)[1][0].double()
        x = x[0].double()
        for t in range(9):
            uniform = uniform + torch.outer(x[t], x[t]) / 27
            for h in range(4):
                mean = sum(weights[h, t, s] * x[s] for s in range(t + 1))
                mixed = mixed + torch.outer(mean, mean) / 27 / 4
                for s in range(t + 1):
                    received = received + weights[h, t, s] * torch.outer(x[s], x[s]) / 27 / 4
                    distances[h, t - s] += weights[h, t, s] / 27
    layer = found.of(0)
    for got, expected in zip((layer.uniform, layer.received, layer.mixed), (uniform, received, mixed)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.distances, distances, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.distances.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_a_file_is_gone_on_with_where_reading_was_ended(tmp_path):
    model, ids, path = build(), text(2 * EVERY + 1), tmp_path / "moments.safetensors"
    whole = gather_moments(model, ids)

    def ended(done: int, total: int) -> None:
        if done == EVERY + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_moments(model, ids, path=path, progress=ended)
    read = []
    again = gather_moments(model, ids, path=path, progress=lambda done, total: read.append(done))
    assert read == list(range(EVERY + 1, 2 * EVERY + 2)), "pieces that were kept are not read again"
    for i, layer in whole.layers.items():
        for name in ("uniform", "received", "mixed", "distances"):
            assert torch.equal(getattr(layer, name), getattr(again.of(i), name))
    read.clear()
    gather_moments(model, ids, path=path, progress=lambda done, total: read.append(done))
    assert not read, "a whole file is read, and no text"


def test_a_file_of_another_model_or_text_or_none_is_refused(tmp_path):
    model, ids, path = build(), text(2), tmp_path / "moments.safetensors"
    gather_moments(model, ids, path=path)
    with pytest.raises(InputError, match="of another model or text"):
        gather_moments(model, text(3), path=path)
    with pytest.raises(InputError, match="of another model or text"):
        gather_moments(transplant(model, "standard[window=8]"), ids, path=path)
    with pytest.raises(InputError, match="of another model or text"):
        gather_moments(build(rope_theta=50.0), ids, path=path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(InputError, match="is damaged"):
        gather_moments(model, ids, path=path)


def test_layers_without_standard_attention_are_left_out_and_alone_refused():
    assert set(gather_moments(build("mla/standard[qk_norm=false]"), text(1)).layers) == {1}
    with pytest.raises(InputError, match="no layer of this model has standard attention"):
        gather_moments(build("mla"), text(1))
    with pytest.raises(InputError, match=r"layer 0 has no moments: gathered are those of \[1\]"):
        gather_moments(build("mla/standard[qk_norm=false]"), text(1)).of(0)


def test_reading_leaves_no_hook_behind_and_the_mode_as_it_was():
    model = build().train()
    gather_moments(model, text(1))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_difference_has_the_interval_of_paired_means():
    old, new = torch.zeros(4, 10), torch.tensor([0.1, 0.2, 0.3, 0.4]).unsqueeze(1).expand(4, 10)
    found = difference(new, old)
    # 3.182 is the 97.5 % quantile of t with 3 degrees of freedom; the expansion gives it to a few thousandths.
    assert isinstance(found, Difference) and found.tokens == 40
    assert found.mean == pytest.approx(0.25) and found.half == pytest.approx(3.182 * 0.1291 / 2, rel=0.02)


def test_the_copy_test_scores_both_copies():
    model, ids = build(), text(1, 20)[0]
    first, second = recall_losses(model, ids[:8], ids[8:])
    whole = torch.cat([ids[:8], ids[8:], ids[:8]])
    losses = token_losses(model, whole[None])[0]
    assert torch.equal(first, losses[:7]) and torch.equal(second, losses[-7:])
