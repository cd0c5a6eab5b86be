"""The language model: architecture options, loss, caches, refusals."""

import math

import pytest
import torch

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.nn.roles import roles


def model(**options) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(
        LMConfig(**{"vocab_size": 17, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 12} | options)
    )


def ids(batch: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(0, 17, (batch, length), generator=torch.Generator().manual_seed(1))


def test_a_new_model_predicts_every_token_alike():
    assert model()(ids(), targets=ids()).loss.item() == pytest.approx(math.log(17), abs=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"tied": True}, {"norm": "layer"}, {"norm_position": "post"}, {"logit_softcap": 5.0}, {"zero_init_outputs": False},
     {"dropout": 0.1}, {"rope_theta": 1e6}, {"blocks": "standard*1/tva"}],
    ids=lambda o: next(iter(o)),
)  # fmt: skip
def test_every_architecture_option_learns(options):
    net = model(**options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = net(ids(), targets=ids().roll(-1, 1)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_softcap_bounds_the_logits():
    net = model(logit_softcap=0.5, zero_init_outputs=False)
    assert net(ids()).logits.abs().max() <= 0.5


def test_ignored_targets_do_not_count():
    net, targets = model(zero_init_outputs=False), ids().roll(-1, 1)
    half = targets.clone()
    half[:, 5:] = -100
    logits = net(ids()).logits[:, :5].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, targets[:, :5].flatten())
    torch.testing.assert_close(net(ids(), targets=half).loss, expected)


@pytest.mark.parametrize("tied", [False, True])
def test_cost_formula_counts_parameters_once(tied):
    net = model(tied=tied)
    assert net.cost(9).parameters == sum(p.numel() for p in net.parameters())
    assert net.cost(9).cache_bytes_per_token == net.new_cache(1).bytes_per_token


def test_tied_matrix_has_one_role():
    kinds = {name: role.kind for name, role in roles(model(tied=True)).items()}
    assert kinds["token_embeddings.weight"] == "embedding" and "lm_head.weight" not in kinds


def test_activation_checkpointing_changes_no_gradient():
    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        net = model(zero_init_outputs=False)
        net.checkpoint_activations = checkpointed
        net(ids(), targets=ids()).loss.backward()
        return [p.grad for p in net.parameters()]

    for plain, recomputed in zip(gradients(False), gradients(True)):
        torch.testing.assert_close(plain, recomputed)


def test_generation_with_a_cache_continues_where_it_stopped():
    net = model(zero_init_outputs=False, blocks="standard[n_kv_heads=1]/standard[window=3]").eval()
    cache = net.new_cache(2)
    with torch.no_grad():
        whole = net(ids()).logits
        parts = [net(ids()[:, a:b], cache=cache).logits for a, b in ((0, 4), (4, 5), (5, 9))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(ids()[0]), "expected \\[batch, length\\]"),
        (lambda net: net(ids()[:, :0]), "both at least 1"),
        (lambda net: net(ids().float()), "expected integers"),
        (lambda net: net(ids() + 17), "outside a vocabulary of 17"),
        (lambda net: net(-ids() - 1), "outside a vocabulary of 17"),
        (lambda net: net(ids(), targets=ids(2, 5)), "targets has shape"),
        (lambda net: net(ids(), cache=net.new_cache(3)), "batch 3"),
    ],
    ids=["one axis", "empty", "floats", "too large", "negative", "targets", "cache"],
)
def test_wrong_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call(model())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 3}, "n_heads=3 does not divide d_model=16; use 1, 2, 4, 8, 16"),
        ({"d_model": 0}, "d_model=0 should be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"blocks": ""}, "should be MIXER"),
        ({"blocks": "standard*3"}, "names 3 layers, but n_layers=2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_architecture_is_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message):
        model(**options)
