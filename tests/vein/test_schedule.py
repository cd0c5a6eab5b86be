"""Schedules of threshold and rank: what a rank in use computes, and that training with them is exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.moe.mixture import MoE
from blockyard.tasks.run import load_run, make_task, train_lm
from blockyard.tasks.settings import as_groups, resolve
from blockyard.training.checkpoint import list_checkpoints
from blockyard.training.compilation import compiler_missing
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer
from blockyard.vein.block import VFTBlock
from blockyard.vein.ffn import VFTFeedForward
from blockyard.vein.training import VeinSchedule, ffn_veins, match_ranks, trim_veins, use_rank, value_at

IDS = torch.arange(20).view(2, 10) % 11
STEPS = 6


def lm(blocks: str) -> TransformerLM:
    torch.manual_seed(0)
    config = LMConfig(vocab_size=11, blocks=blocks, d_model=16, n_layers=2, n_heads=2, zero_init_outputs=False)
    return TransformerLM(config).double()


FORMS = [
    "tva[rank=4]+vft[ffn_rank={},r_hidden=12,tau=0.7]",
    "tva[rank=4]+vft[ffn_rank={},r_hidden=12,tau=0.7,tied=false,implementation=parameter]",
    "tva[rank=4]+vft[preset=seed,ffn_rank={},r_hidden=12,tau=3.9]",
    "standard+vft[rank={},r_hidden=12,gated=true,stabilizer=lowrank]",
    "standard+vft[rank={},r_hidden=12,tied=true,stabilizer=diag]",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_rank_in_use_computes_what_a_block_of_that_rank_computes(form, rank):
    large, small = lm(form.format(8)), lm(form.format(rank))
    whole = large(IDS).logits
    use_rank(large, rank)
    found = large(IDS).logits
    assert (rank == 8) == torch.allclose(found, whole)
    small.load_state_dict(trim_veins(large).state_dict())
    # The parameters that are left are those of the small model, and so are its numbers.
    torch.testing.assert_close(small(IDS).logits, found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(large(IDS).logits, found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_only_the_directions_in_use_learn_and_as_they_would_alone(form):
    large, small = lm(form.format(8)), lm(form.format(3))
    use_rank(large, 3)
    cut = trim_veins(lm_with(large, form)).state_dict()
    small.load_state_dict(cut)
    for model in (large, small):
        model(IDS, targets=IDS).loss.backward()
    of_small = {name: p.grad for name, p in small.named_parameters()}
    for name, p in large.named_parameters():
        used = p.grad[tuple(slice(0, n) for n in of_small[name].shape)]
        torch.testing.assert_close(used, of_small[name], rtol=1e-9, atol=1e-12)
        assert p.grad.abs().sum() == pytest.approx(float(used.abs().sum()), rel=1e-12)


def lm_with(model: TransformerLM, form: str) -> TransformerLM:
    """A copy, the rank in use with it."""
    twin = lm(form.format(8))
    match_ranks(twin, model.state_dict())
    twin.load_state_dict(model.state_dict())
    return twin


def test_errors_and_metrics_are_those_of_the_rank_in_use():
    torch.manual_seed(0)
    block = VFTBlock(16, 2, 4, ffn_rank=8, r_hidden=12).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    use_rank(block, 3)
    _, metrics = block(x, return_metrics=True)
    v = block.vein.matrices()[0][:3]
    h = block.ln2(block.attn.add_to(x, block.ln1))
    errors = (h - h @ v.T @ v).norm(dim=-1) / h.norm(dim=-1)
    torch.testing.assert_close(metrics["eps_mean"], errors.mean())
    assert int(metrics["rank"]) == 3 and 1 <= float(metrics["effective_rank"]) <= 3
    use_rank(block, None)
    assert block(x, return_metrics=True)[1]["rank"] == 8


def test_a_rank_can_grow_and_shrink_in_a_mixture_of_experts_that_shares_a_vein():
    torch.manual_seed(0)
    moe = MoE(16, n_experts=4, k=2, expert="vft", vein_rank=6, expert_options={"stabilizer": "none"}).double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    whole = moe(x)
    use_rank(moe, 2)
    few = moe(x)
    with torch.no_grad():
        for weight in moe.vein.stored():
            (weight[2:] if weight.shape[0] == 6 else weight[:, 2:]).add_(1.0)
    torch.testing.assert_close(moe(x), few)
    assert not torch.allclose(few, whole)
    with pytest.raises(InputError, match="mixture of experts"):
        trim_veins(moe)


def test_ranks_out_of_range_and_models_without_a_vein_are_refused():
    model = lm(FORMS[0].format(8))
    with pytest.raises(InputError, match=r"rank 9 should be .* at most 8, the rank of layers\.0\.ffn\.vein"):
        use_rank(model, 9)
    with pytest.raises(InputError, match="rank 0 should be"):
        VeinSchedule(model, 10, ranks=(4, 0))
    with pytest.raises(InputError, match="no vein FFN"):
        use_rank(lm("tva[rank=4]+standard"), 2)
    with pytest.raises(InputError, match="rank=9 in use should be"):
        VFTFeedForward(16, 8).vein.use_rank(9)
    with pytest.raises(InputError, match="every direction of every vein is in use"):
        trim_veins(model)
    with pytest.raises(InputError, match=r"progress=1\.5"):
        value_at(1.5, (1, 2))


def test_an_epoch_schedule_sets_threshold_and_rank():
    model = lm(FORMS[0].format(8))
    schedule = VeinSchedule(model, 4, taus=(0.5, 0.25), ranks=(8, 2), frozen_epochs=0)
    seen = []
    for epoch in range(4):
        schedule.start_epoch(epoch)
        block = model.layers[1]
        seen.append((float(block.normals.tau), int(block.vein.rank_in_use)))
    assert seen == [(0.5, 8)] * 2 + [(0.25, 2)] * 2


# In training.

BLOCKS = "tva[rank=4]+vft[ffn_rank=8,r_hidden=12,metrics=true]"
SCHEDULE = {"vein_taus": (0.9, 0.8, 0.7), "vein_ranks": (2, 4, 8)}


def groups(text: Path, blocks: str = BLOCKS, **train: Any) -> dict[str, Any]:
    model = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16, "pattern": blocks}
    fixed = {"steps": STEPS, "batch_size": 2, "eval_batches": 1, "save_every": 1, "keep": STEPS, "progress": False}
    fixed |= {"precision": "fp32", "compile": "off", "log_every": 1, "threads": 1}
    return {"data": {"path": str(text)}, "model": model, "train": fixed | train}


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("the vein grows under the yard; " * 120)
    return path


def stored(out: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(dict(list_checkpoints(out / "checkpoints"))[step] / "model.safetensors")


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_follows_the_schedule_and_reports_it(text, tmp_path):
    out = train_lm(groups(text, **SCHEDULE), tmp_path / "run")
    found = [(row["vein_tau"], row["vein_rank"], row["layers.1/rank"]) for row in rows(out)]
    assert found == [(pytest.approx(tau), rank, rank) for tau, rank in ((0.9, 2), (0.8, 4), (0.7, 8)) for _ in "12"]
    first, last = stored(out, 2), stored(out, STEPS)
    name = "layers.0.ffn.vein.active"
    assert int(first[name].sum()) == 2 and int(last[name].sum()) == 8
    model, _, run = load_run(out)
    assert all(int(vein.rank_in_use) == 8 for vein in ffn_veins(model).values())
    assert run.train.vein_ranks == (2, 4, 8)


@pytest.mark.parametrize("stop", [1, 2, 5])
@pytest.mark.parametrize("ranks", [(2, 4, 8), (8, 5, 3)])
def test_a_scheduled_run_that_was_stopped_ends_with_the_same_numbers(text, tmp_path, stop, ranks):
    asked = groups(text, **(SCHEDULE | {"vein_ranks": ranks}))
    whole = train_lm(asked, tmp_path / "whole")
    run = resolve(asked)
    first = Trainer(make_task(run), run.train, tmp_path / "parts", resolved=as_groups(run))
    first.advance(stop)
    first.close()
    early = load_run(tmp_path / "parts")[0]
    assert all(int(vein.rank_in_use) == ranks[(stop - 1) // 2] for vein in ffn_veins(early).values())
    parts = train_lm(asked, tmp_path / "parts", resume=True)
    a, b = stored(whole, STEPS), stored(parts, STEPS)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert [row["loss"] for row in rows(whole)] == [row["loss"] for row in rows(parts)]


def test_directions_wait_untouched_until_their_rank_is_in_use(text, tmp_path):
    asked = groups(text, vein_ranks=(2, 8), weight_decay=0.0)
    run = resolve(asked)
    task = make_task(run)
    start = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    out = train_lm(asked, tmp_path / "run")
    middle, end = stored(out, STEPS // 2), stored(out, STEPS)
    name = "layers.0.ffn.vein.V.weight"
    assert torch.equal(middle[name][2:], start[name][2:]) and not torch.equal(middle[name][:2], start[name][:2])
    assert not torch.equal(end[name][2:], start[name][2:])


@pytest.mark.skipif(compiler_missing() is not None, reason=str(compiler_missing()))
def test_a_compiled_block_follows_the_schedule_without_being_compiled_again():
    from torch._dynamo.testing import CompileCounter

    torch.manual_seed(0)
    block, x = VFTBlock(16, 2, 4, ffn_rank=8, r_hidden=12), torch.randn(2, 5, 16)
    use_rank(block, 2)
    counter = CompileCounter()
    compiled = torch.compile(block, backend=counter)
    for rank in (2, 5, 8):
        use_rank(block, rank)
        torch.testing.assert_close(compiled(x)[0], block(x)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("blocks", "train", "message"),
    [
        ("standard", {"vein_taus": (0.2,)}, "train.vein_taus: TransformerLM holds no VFTBlock"),
        ("tva+vft[s=0]", {"vein_taus": (0.2,)}, "train.vein_taus: no block corrects"),
        ("tva+standard", {"vein_ranks": (2,)}, "train.vein_ranks: TransformerLM holds no vein FFN"),
        ("tva+vft[ffn_rank=8]", {"vein_ranks": (4, 9)}, "train.vein_ranks: rank 9 should be at least 1 and at most 8"),
        ("standard", {"vein_freeze_steps": 3}, "train.vein_freeze_steps: TransformerLM holds no VeinProjector"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(text, tmp_path, blocks, train, message):
    with pytest.raises(InputError, match=message):
        train_lm(groups(text, blocks, **train), tmp_path / "run")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"vein_taus": ()}, "train.vein_taus=nothing must be numbers of at least 0"),
        ({"vein_taus": (0.2, -0.1)}, r"train.vein_taus=0.2,-0.1 must be"),
        ({"vein_taus": (float("nan"),)}, "train.vein_taus=nan must be"),
        ({"vein_ranks": (4, 0)}, "train.vein_ranks=4,0 must be numbers of at least 1"),
    ],
)
def test_values_that_make_no_schedule_are_refused(train, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**train)
