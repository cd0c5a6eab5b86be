"""Schedules, freezing, parameter groups and metrics of models that hold veins."""

import pytest
import torch

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.vein.ffn import Guide, VFTFeedForward
from blockyard.vein.guide import attach_guides, drop_guides, guide_share, set_guide_share
from blockyard.vein.training import (
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


@pytest.mark.parametrize(
    "choice", ["tva+vft", "tva+vft[gated=false,tied=false,stabilizer=diag]", "standard+vft[gated=true]"]
)
def test_guides_change_nothing_when_they_come_and_nothing_when_they_go_at_share_0(choice):
    lm = model(choice).double()
    before, parameters = lm(IDS).logits, sum(p.numel() for p in lm.parameters())
    added = attach_guides(lm)
    assert sum(p.numel() for p in lm.parameters()) == parameters + added
    torch.testing.assert_close(lm(IDS).logits, before)
    with torch.no_grad():
        for module in lm.modules():
            if isinstance(module, Guide):
                for parameter in module.parameters():
                    parameter.add_(0.1)
    assert not torch.allclose(lm(IDS).logits, before)
    set_guide_share(lm, 0.0)
    torch.testing.assert_close(lm(IDS).logits, before)
    drop_guides(lm)
    assert sum(p.numel() for p in lm.parameters()) == parameters


def test_a_guided_ffn_mixes_every_matrix_with_its_dense_one():
    torch.manual_seed(0)
    ffn = VFTFeedForward(8, 2, 5, gated=True, stabilizer="none").double()
    ffn.guide = guide = Guide(ffn)
    with torch.no_grad():
        for parameter in (guide.up, guide.gate, guide.down, ffn.w1.bias, ffn.w2.bias, ffn.w3.bias):
            parameter.add_(torch.randn_like(parameter))
        guide.share.fill_(0.3)
    x = torch.randn(4, 8, dtype=torch.float64)
    v, u = ffn.vein.matrices()
    up, gate, down = (
        0.3 * dense + 0.7 * low
        for dense, low in (
            (guide.up, ffn.w1.weight @ v),
            (guide.gate, ffn.w3.weight @ v),
            (guide.down, u @ ffn.w2.weight),
        )
    )
    hidden = torch.nn.functional.silu(x @ up.T + ffn.w1.bias) * (x @ gate.T + ffn.w3.bias)
    torch.testing.assert_close(ffn(x), hidden @ down.T + u @ ffn.w2.bias)


def test_the_guides_share_falls_from_1_to_0():
    shares = [guide_share(step / 8) for step in range(9)]
    assert shares[0] == 1 and shares[-1] == pytest.approx(0) and shares == sorted(shares, reverse=True)


def test_a_model_without_vein_ffns_has_nothing_to_guide():
    with pytest.raises(InputError, match="no vein FFN"):
        attach_guides(model("standard"))
