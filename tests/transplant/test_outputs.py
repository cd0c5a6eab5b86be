"""Mixers that share nothing with attention, trained on their blocks' outputs."""

from __future__ import annotations

import pytest
import torch

from blockyard.errors import InputError
from blockyard.transplant import HealSettings, OutputSettings, fit_by_output, heal
from blockyard.transplant.outputs import RESEARCH
from tests.transplant.test_transplant import LENGTH, VOCABULARY, build, text

SPECTRAL = f"spectral[window={LENGTH},d_gate=16]"
pytestmark = pytest.mark.filterwarnings("ignore:research")


def short(steps: int, **options) -> OutputSettings:
    return OutputSettings(tokens=steps * LENGTH, length=LENGTH, **({"precision": "fp32"} | options))


def test_errors_fall_and_only_the_chosen_mixers_are_others():
    model, texts = build(n_layers=3), {"all": text(2).repeat(30, 1).flatten()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fit = fit_by_output(model, SPECTRAL, texts, layers=[0, 2], settings=short(60, lr=3e-3))
    assert set(fit.errors) == set(fit.curve) == {0, 2} and fit.tokens == 60 * LENGTH
    assert all(fit.errors[i] < 0.8 * fit.curve[i][0] for i in (0, 2))
    assert [spec.attn for spec in fit.model.config.layers] == ["spectral", "standard", "spectral"]
    for name, tensor in fit.model.state_dict().items():
        assert name.startswith(("layers.0.attn.", "layers.2.attn.")) or torch.equal(tensor, before[name])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in fit.model.parameters())
    # What is left can be healed.
    healing = heal(fit.model, model, texts, settings=HealSettings(tokens=40 * LENGTH, length=LENGTH, lr=3e-3))
    assert sum(healing.divergences[-5:]) < sum(healing.divergences[:5])


def test_the_future_is_not_seen():
    fit = fit_by_output(build(), SPECTRAL, {"all": text(3).flatten()}, settings=short(3))
    ids = text(1)
    changed = ids.clone()
    changed[0, 25:] = (changed[0, 25:] + 1) % VOCABULARY
    with torch.no_grad():
        one, other = (fit.model(each).logits[0, :25] for each in (ids, changed))
    # Transforms of whole rows round by what stands behind, too.
    assert torch.allclose(one, other, atol=1e-4)


def test_value_and_output_maps_start_as_copies():
    model = build()
    # So small a rate that nothing moves.
    fit = fit_by_output(model, SPECTRAL, {"all": text(1).flatten()}, settings=short(1, lr=1e-30))
    old, new = model.layers[0].attn, fit.model.layers[0].attn
    assert torch.equal(new.output_proj.weight, old.output_proj.weight)
    values = old.v_proj.weight.view(2, 8, 32)
    assert torch.equal(new.v_proj.weight, torch.stack([values[0], values[0], values[1], values[1]]).flatten(0, 1))
    # Two key heads serve four heads, and the first token counts in no error.
    x = {}
    model.layers[0].register_forward_hook(lambda m, given, out: x.update(old=(given[0], out[0])))
    with torch.no_grad():
        model(text(1))
        read, wanted = x["old"]
        gap = (fit.model.layers[0](read)[0] - wanted)[:, 1:]
    expected = float(gap.square().sum() / (wanted - read)[:, 1:].square().sum())
    assert fit.curve[0][0] == pytest.approx(expected, rel=1e-4)


def test_ended_and_gone_on_with_ends_with_the_same_weights(tmp_path):
    model, texts, settings = build(), {"a": text(6).flatten(), "b": text(6).flatten()}, short(12, save_every=2)

    def fit(folder, progress=None):
        return fit_by_output(model, SPECTRAL, texts, settings=settings, folder=folder, progress=progress)

    def ended(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "ended", ended)
    went_on, at_once = fit(tmp_path / "ended"), fit(tmp_path / "whole")
    assert went_on.curve == at_once.curve
    for name, tensor in at_once.model.state_dict().items():
        assert torch.equal(tensor, went_on.model.state_dict()[name])


def test_it_is_said_to_be_research():
    with pytest.warns(UserWarning, match="research: a mixer that shares nothing") as told:
        fit_by_output(build(), SPECTRAL, {"all": text(1).flatten()}, settings=short(1))
    assert str(told[0].message) == RESEARCH and told[0].filename == __file__


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ("mla[kv_rank=8,rope_dim=4]", "mla is fitted to the trained weights: use transplant"),
        ("spectral+vft[rank=4]", "should be one mixer"),
        ("spectral/standard", "should be one mixer"),
        ("complex", "complex mixers read complex streams"),
        ("spectral[n_fft=64]", "n_fft"),
        ("spectral[memory_size=2]", "memory_size"),
    ],
)
def test_what_cannot_be_put_in_is_refused(blocks, said):
    with pytest.raises(InputError, match=said):
        fit_by_output(build(), blocks, {"all": text(1).flatten()}, settings=short(1))


def test_layers_and_texts_are_checked():
    model, texts = build(), {"all": text(1).flatten()}
    with pytest.raises(InputError, match="layers=2: name some of 0 to 1"):
        fit_by_output(model, SPECTRAL, texts, layers=[2], settings=short(1))
    with pytest.raises(InputError, match=r"outputs\.tokens=80 of 1 kinds takes 80"):
        fit_by_output(model, SPECTRAL, texts, settings=short(2))
    fit = fit_by_output(model, SPECTRAL, texts, layers=[1], settings=short(1))
    with pytest.raises(InputError, match="layer 1 has spectral"):
        fit_by_output(fit.model, SPECTRAL, texts, settings=short(1))
