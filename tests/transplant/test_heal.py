"""Healing: what was transplanted comes nearer to the original, nothing else moves, and a kill changes nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from blockyard.errors import InputError
from blockyard.nn.parity import evaluating
from blockyard.transplant import HealSettings, gather_moments, heal, token_losses, transplant
from blockyard.transplant.adapters import adapt, take_off
from blockyard.transplant.divergence import divergence
from blockyard.transplant.parts import training_only
from tests.kill.healing import healed
from tests.transplant.test_transplant import LENGTH, build, text

MLA = "mla[kv_rank=10,rope_dim=6]"


def put_in(blocks: str = MLA, layers=(1,), **options):
    """A tiny model, and the same with another mixer in some layers."""
    model = build(**options)
    return model, transplant(model, blocks, layers=layers, moments=gather_moments(model, text(6), ffns=True))


def short(steps: int, **options) -> HealSettings:
    return HealSettings(tokens=steps * LENGTH, length=LENGTH, **({"precision": "fp32"} | options))


@pytest.mark.filterwarnings("ignore:the FFNs of trained models")
@pytest.mark.parametrize("blocks", [MLA, "standard[head_dim=4,v_dim=4]", "vft[rank=24]"])
def test_predictions_come_nearer_and_other_weights_stay(blocks):
    model, new = put_in(blocks)
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    # The same two pieces again and again: what can be learnt of random text in a few steps.
    two = text(2).repeat(30, 1).flatten()
    done = heal(new, model, {"all": two}, settings=short(60, lr=3e-3))
    losses = done.divergences
    assert len(losses) == 60 and sum(losses[-10:]) < 0.8 * sum(losses[:10])
    part = "ffn" if blocks.startswith("vft") else "attn"
    moved = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved and all(name.startswith(f"layers.1.{part}.") for name in moved)
    assert done.parameters == sum(p.numel() for p in getattr(new.layers[1], part).parameters())
    assert all(p.grad is None for p in new.parameters())


def slow_divergence(found, wanted, head, cap=None) -> torch.Tensor:
    """Mean over tokens of Σ_v p_v (log p_v − log q_v), token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for x, y in zip(found, wanted):
        z, z_wanted = head @ x, head @ y
        if cap is not None:
            z, z_wanted = cap * torch.tanh(z / cap), cap * torch.tanh(z_wanted / cap)
        q, p = z.softmax(0), z_wanted.softmax(0)
        total = total + sum(p[v] * (p[v].log() - q[v].log()) for v in range(len(p)))
    return total / len(found)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_divergence_of_many_rows_and_its_slope_are_those_of_the_slow_definition(cap, monkeypatch):
    monkeypatch.setattr("blockyard.transplant.divergence.ROWS", 4)
    draw = torch.Generator().manual_seed(1)
    found, wanted = (torch.randn(11, 6, generator=draw) for _ in range(2))
    head = torch.randn(13, 6, generator=draw)

    def scores(x):
        z = x @ head.T
        return z if cap is None else cap * torch.tanh(z / cap)

    fast, slow = found.clone().requires_grad_(), found.double().requires_grad_()
    expected = slow_divergence(slow, wanted.double(), head.double(), cap)
    got = divergence(fast[None], wanted[None], scores, scores)
    (2 * got).backward()
    (2 * expected).backward()
    # Float32 against float64, terms of some units.
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.grad.double(), slow.grad, atol=1e-5, rtol=1e-5)
    (second,) = torch.autograd.grad(divergence(fast, wanted, scores, scores), fast, create_graph=True)
    assert second.requires_grad


def test_gradients_are_made_for_what_trains_alone():
    _, new = put_in()
    new.train()
    with training_only(new, [new.layers[1].attn]) as trained:
        assert not any(m.training for m in new.modules())
        new(text(1)).logits.square().mean().backward()
        given = [p for p in new.parameters() if p.grad is not None]
        assert {id(p) for p in given} == {id(p) for p in trained} == {id(p) for p in new.layers[1].attn.parameters()}
    assert all(p.grad is None for p in new.parameters()) and all(m.training for m in new.modules())


def test_layers_below_the_lowest_transplanted_one_are_shared():
    model, new = put_in(layers=[1, 2], n_layers=3)
    calls = []
    new.layers[0].register_forward_hook(lambda *given: calls.append(0))
    done = heal(new, model, {"all": text(1).flatten()}, settings=short(1))
    assert not calls
    _, again = put_in(layers=[1, 2], n_layers=3)
    with evaluating(model, again):
        logs, wanted = (m(text(1)).logits.double().log_softmax(-1) for m in (again, model))
    expected = float((wanted.exp() * (wanted - logs)).sum(-1).mean())
    assert done.divergences[0] == pytest.approx(expected, rel=1e-4)


def test_kinds_of_text_come_in_turns_and_every_piece_begins_alike():
    model, new = put_in()
    seen = []
    model.token_embeddings.register_forward_hook(lambda module, given, out: seen.append(given[0][0]))
    texts = {"low": torch.arange(LENGTH * 6) % 10, "high": 20 + torch.arange(LENGTH * 6) % 10}
    heal(new, model, texts, settings=short(6, batch=2), first=60)
    assert [int(piece[1]) < 20 for piece in seen] == [True, False] * 3
    assert all(int(piece[0]) == 60 and len(piece) == LENGTH for piece in seen)
    assert len({tuple(piece.tolist()) for piece in seen}) == 6


def test_low_rank_additions_are_merged_and_the_tied_matrix_stays():
    model, new = put_in(n_layers=2)
    names, before = set(new.state_dict()), {n: t.clone() for n, t in new.state_dict().items()}
    done = heal(new, model, {"all": text(20).flatten()}, settings=short(20, lr=1e-3, lora=2))
    after = new.state_dict()
    moved = {name for name in names if not torch.equal(after[name], before[name])}
    assert set(after) == names and new.lm_head.weight is new.token_embeddings.weight
    rest = {name for name in names if name.startswith("layers.") and ".ln" not in name}
    assert moved == rest
    adapted = [name for name in rest if not name.startswith("layers.1.attn")]
    ranks = [torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) for name in adapted]
    assert all(int(rank) <= 2 for rank in ranks)
    own = sum(p.numel() for p in new.layers[1].attn.parameters())
    assert done.parameters == own + sum(2 * sum(before[name].shape) for name in adapted)


def test_routers_are_not_adapted():
    model = build("standard[n_kv_heads=2,qk_norm=false]+moe[n_experts=4,k=2]")
    new = transplant(model, "standard[window=8]", layers=[1])
    before = {n: t.clone() for n, t in new.state_dict().items()}
    heal(new, model, {"all": text(4).flatten()}, settings=short(4, lr=1e-3, lora=2))
    moved = {name for name, tensor in new.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "layers.0.attn.q_proj.weight" in moved and not [name for name in moved if ".ffn." in name]


def test_a_merged_model_gives_the_logits_of_the_adapted_one():
    model, ids = build(), text(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for merge in (False, True):
        adapted = adapt(model.layers.named_modules(), 3, 0)
        for _, added in adapted.values():
            torch.nn.init.normal_(added.up, std=0.05, generator=torch.Generator().manual_seed(1))
        with evaluating(model):
            wanted = model(ids).logits
            take_off(adapted.values(), merge=merge)
            got = model(ids).logits
        # The same matrices, by the fused ways that adapted ones do not take.
        assert torch.allclose(got, wanted, atol=1e-4) == merge
        assert merge or all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_a_model_that_shares_its_weights_with_the_original_leaves_them_to_it():
    model, new = put_in()
    for mine, its in zip(new.layers, model.layers):
        mine.ffn.w1.weight = its.ffn.w1.weight
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    heal(new, model, {"all": text(3).flatten()}, settings=short(3, lr=1e-2, lora=2))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(new.layers[0].ffn.w1.weight, model.layers[0].ffn.w1.weight)


def test_every_parameter_wants_gradients_as_before_whatever_happens():
    model, new = put_in("standard[head_dim=4]")
    new.lm_head.requires_grad_(False)
    wishes, names = [p.requires_grad for p in new.parameters()], set(new.state_dict())

    def ended(step: int, steps: int, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal(new, model, {"all": text(4).flatten()}, settings=short(4, lora=2), progress=ended)
    assert [p.requires_grad for p in new.parameters()] == wishes and set(new.state_dict()) == names


def test_the_curve_tells_of_other_text_from_before_the_first_step_to_the_end(tmp_path):
    model, new = put_in()
    select = {"a": text(2, 30), "b": text(3, 20)}
    start = {kind: float(token_losses(new, ids).mean()) for kind, ids in select.items()}
    texts, settings = {"all": text(10).flatten()}, short(10, points=2)
    done = heal(new, model, texts, settings=settings, folder=tmp_path / "heal", select=select)
    assert [point.tokens for point in done.curve] == [0, 5 * LENGTH, 10 * LENGTH]
    end = {kind: float(token_losses(new, ids).mean()) for kind, ids in select.items()}
    assert done.curve[0].loss == pytest.approx(start) and done.curve[-1].loss == pytest.approx(end)
    # A healing that was finished is read, whatever model it is asked for again.
    _, again = put_in()
    assert heal(again, model, texts, settings=settings, folder=tmp_path / "heal", select=select) == done
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in new.state_dict().items())


@pytest.mark.slow  # whole transplants that are killed stand for it
def test_killed_and_gone_on_with_ends_with_the_same_weights(tmp_path):
    # With additions to the rest: they are random at first and live beside the model.
    lora = 2
    command = [sys.executable, "-m", "tests.kill.healing", str(tmp_path), str(lora)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    ends = json.loads(ran.stdout)
    # Ended as asked (128 + 15) and killed (−9), with something kept, or not far enough for that; then to its end.
    assert [code for code, _ in ends] == [143, -9, -9, -9, 0], ran.stderr
    assert 3 <= ends[0][1] <= ends[1][1] <= ends[3][1] < ends[4][1] == 30
    expected = healed(tmp_path / "at once", lora)
    got = torch.load(tmp_path / "healed.pt")
    assert all(torch.equal(tensor, got[name]) for name, tensor in expected.items())


def test_another_text_or_model_is_not_gone_on_with(tmp_path):
    model, new = put_in()
    texts = {"all": text(4).flatten()}
    heal(new, model, texts, settings=short(4), folder=tmp_path / "heal")
    with pytest.raises(InputError, match="other data: the models"):
        heal(new, model, texts, settings=short(4), folder=tmp_path / "heal")
    _, new = put_in()
    with pytest.raises(InputError, match="other data: the data"):
        heal(new, model, {"all": text(5)[1:].flatten()}, settings=short(4), folder=tmp_path / "heal")
    turned, turned_new = build(rope_theta=50.0), put_in(rope_theta=50.0)[1]
    with pytest.raises(InputError, match="other data: the models"):
        heal(turned_new, turned, texts, settings=short(4), folder=tmp_path / "heal")
    with pytest.raises(InputError, match=r"train\.lr"):
        heal(new, model, texts, settings=short(4, lr=1e-2), folder=tmp_path / "heal")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lr": 0.0}, "heal.lr=0.0 should be a number above 0"),
        ({"lr": float("nan")}, "heal.lr=nan"),
        ({"tokens": 100}, "heal.tokens=100 is less than one step reads, 1 x 512 tokens"),
        ({"batch": 0}, "heal.batch=0 should be at least 1"),
        ({"lora": -1}, "heal.lora=-1 should be at least 0"),
        ({"points": 0}, "heal.points=0"),
        ({"precision": "fp16"}, "heal.precision='fp16' should be auto, fp32 or bf16"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, said):
    with pytest.raises(InputError, match=said):
        HealSettings(**wrong)


def test_what_cannot_be_healed_is_refused_in_a_line():
    model, new = put_in()
    texts = {"prose": text(4).flatten(), "code": text(1).flatten()}
    for call, said in (
        (lambda: heal(build(), build(), texts, settings=short(1)), "nothing was transplanted"),
        (lambda: heal(new, build(n_layers=3), texts, settings=short(1)), "other vocabularies or depths"),
        (lambda: heal(new, model, texts, settings=short(5)), "the code text has 40 tokens; heal.tokens=200 of 2 kinds"),
        (lambda: heal(new, model, {}, settings=short(1)), "no text to train on"),
        (lambda: heal(new, model, {"all": text(2)}, settings=short(1)), "has shape"),
        (lambda: heal(new, model, {"all": 61 + text(1).flatten()}, settings=short(1)), "outside a vocabulary"),
        (lambda: heal(new, model, texts, settings=short(1, lora=17)), "lora=17 should be at most 16"),
        (lambda: heal(new.bfloat16(), model, texts, settings=short(1)), "the weights are bfloat16"),
    ):
        with pytest.raises(InputError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
