"""Schedules, freezing, parameter groups and metrics of models that hold veins."""

import pytest
import torch

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.vein_training import (
    VeinSchedule,
    calibrate_tau,
    freeze_veins,
    log_vein_metrics,
    param_groups,
    tau_at,
    vein_blocks,
    vein_metrics,
)


def model(blocks: str = "tva+vft", **config) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(
        LMConfig(vocab_size=11, blocks=blocks, d_model=32, n_layers=2, n_heads=2, zero_init_outputs=False, **config)
    )


IDS = torch.arange(20).view(2, 10) % 11


def test_the_threshold_falls_in_thirds_as_the_document_says():
    assert [tau_at(p) for p in (0.0, 0.3, 0.34, 0.66, 0.67, 1.0)] == [0.25, 0.25, 0.18, 0.18, 0.10, 0.10]


def test_the_schedule_freezes_the_veins_for_five_epochs():
    lm = model()
    schedule = VeinSchedule(lm, epochs=10)
    trained = []
    for epoch in range(10):
        schedule.start_epoch(epoch)
        trained.append(all(p.requires_grad for p in lm.layers[0].vein.parameters()))
    assert trained == [False] * 5 + [True] * 5
    assert float(lm.layers[1].normals.tau) == pytest.approx(0.10)


def test_frozen_veins_do_not_move_and_the_rest_does():
    lm = model()
    freeze_veins(lm)
    before = {name: p.detach().clone() for name, p in lm.named_parameters()}
    optimizer = torch.optim.AdamW(param_groups(lm))
    lm(IDS, targets=IDS).loss.backward()
    optimizer.step()
    moved = {name for name, p in lm.named_parameters() if not torch.equal(p, before[name])}
    assert not any(".vein." in name for name in moved) and "layers.0.attn.q_proj.weight" in moved


def test_parameter_groups_hold_every_parameter_once_and_veins_learn_slower():
    lm = model("tva[rank=4]+vft[preset=seed]")
    groups = param_groups(lm)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in lm.parameters())
    assert {g["lr"] for g in groups if g["name"].startswith("vein")} == {1e-4}
    assert {g["lr"] for g in groups if g["name"].startswith("main")} == {5e-4}


def test_metrics_are_measured_on_each_blocks_own_input(capsys):
    lm = model()
    own = []
    for layer in lm.layers:
        layer.register_forward_pre_hook(lambda block, arguments: own.append(arguments[0]))
    found = log_vein_metrics(lm, IDS)
    assert list(found) == ["layers.0", "layers.1"]
    for layer, x, metrics in zip(lm.layers, own, found.values()):
        torch.testing.assert_close(layer.reconstruction_error(x).mean(), metrics["eps_mean"])
    assert "layers.1: eps_mean=" in capsys.readouterr().out
    assert not any(layer.metrics for layer in lm.layers)


def test_calibrating_a_model_gives_every_block_its_own_threshold():
    lm = model()
    taus = calibrate_tau(lm, IDS, fraction=0.25)
    assert len(set(taus.values())) == 2
    for metrics in vein_metrics(lm, IDS).values():
        assert float(metrics["eps_frac_over_tau"]) == pytest.approx(0.25, abs=0.051)


def test_a_model_without_veins_is_refused():
    with pytest.raises(InputError, match="holds no VFTBlock"):
        vein_blocks(model("standard"))
    with pytest.raises(InputError, match="holds no VeinProjector"):
        freeze_veins(model("standard"))
