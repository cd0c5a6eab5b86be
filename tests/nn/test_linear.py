"""One root: our linear maps and embeddings are torch's, and weights read outside `forward` are what calls use."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from blockyard import InputError, LMConfig, TransformerLM
from blockyard.nn.linear import Embedding, Linear, StackedLinear, cut, plain, weight_of


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


class Adapter(nn.Module):
    """As LoRA stands around a linear map: the old one and a low-rank product beside it."""

    def __init__(self, base: nn.Linear, dropout: float = 0.0) -> None:
        super().__init__()
        self.base_layer, self.dropout = base, nn.Dropout(dropout)
        self.down, self.up = nn.Linear(base.in_features, 2, bias=False), nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        return self.base_layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.up(self.down(self.dropout(x)))


def test_they_are_torchs_own_with_their_own_start_and_form():
    linear, table = Linear(5, 3), Embedding(7, 4)
    assert isinstance(linear, nn.Linear) and isinstance(table, nn.Embedding)
    assert (linear.in_features, linear.out_features, linear.bias) == (5, 3, None)
    assert list(linear.state_dict()) == ["weight"] and list(Linear(5, 3, bias=True).state_dict()) == ["weight", "bias"]
    assert repr(linear) == "Linear(5 -> 3)" and repr(table) == "Embedding(7 x 4)"
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (7, 4, None)
    std = (2 / 8) ** 0.5
    assert float(linear.weight.detach().abs().max()) <= 3 * std


def test_a_bias_can_still_be_given_to_one_without():
    linear = Linear(5, 3)
    linear.bias = nn.Parameter(torch.ones(3))
    assert "bias" in dict(linear.named_parameters()) and not plain(linear)


TOUCHED = {
    "plain": lambda m: m,
    "bias": lambda m: m,
    "parametrised": lambda m: (parametrize.register_parametrization(m, "weight", Doubled()), m)[1],
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "hooked": lambda m: (m.register_forward_hook(lambda module, given, out: 3 * out), m)[1],
    "adapter": Adapter,
}


@pytest.mark.parametrize("how", TOUCHED)
def test_the_weight_of_a_map_is_what_its_calls_multiply_by(how: str):
    torch.manual_seed(0)
    module = TOUCHED[how](Linear(6, 4, bias=how in ("bias", "adapter")).double()).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    zero = module(torch.zeros(1, 6, dtype=torch.float64))
    torch.testing.assert_close(x @ weight_of(module).mT, module(x) - zero, atol=1e-12, rtol=0)
    assert plain(module) == (how == "plain")


@pytest.mark.parametrize("how", ["parametrised", "pruned", "adapter"])
def test_the_weight_of_a_map_has_the_gradients_of_its_calls(how: str):
    torch.manual_seed(0)
    module = TOUCHED[how](Linear(6, 4).double()).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    found = []
    for out in (lambda: x @ weight_of(module).mT, lambda: module(x)):
        module.zero_grad()
        out().square().sum().backward()
        found.append([p.grad.clone() for p in module.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


def test_a_pruned_weight_is_made_anew_after_a_step():
    module = prune.l1_unstructured(Linear(6, 4), "weight", 0.5)
    with torch.no_grad():
        module.weight_orig += 1
    assert torch.equal(weight_of(module), module.weight_orig * module.weight_mask)


def test_dropout_in_an_adapter_is_refused_where_its_matrix_is_read_in_training():
    module = Adapter(Linear(6, 4), dropout=0.5)
    with pytest.raises(InputError, match=r"Adapter drops elements with probability 0\.5 in training.*leave this"):
        weight_of(module)
    weight_of(module.eval())


def test_what_has_no_matrix_is_refused():
    with pytest.raises(InputError, match="Sequential stands for a linear map here, but has no matrix"):
        weight_of(nn.Sequential(Linear(6, 4)))


def test_one_that_is_cut_says_its_new_widths_and_a_touched_one_is_refused():
    module = Linear(6, 4, bias=True)
    cut(module, slice(0, 3), inputs=False)
    cut(module, slice(0, 5), inputs=True)
    assert (module.in_features, module.out_features) == (5, 3) and module.bias.shape == (3,)
    assert module(torch.randn(2, 5)).shape == (2, 3)
    with pytest.raises(InputError, match="Adapter cannot be cut; merge"):
        cut(Adapter(Linear(6, 4)), slice(0, 3), inputs=True)


CHOICES = ["standard", "mla", "tva+vft", "spectral[window=8,chunk=4]", "spectral[window=8,chunk=4]/standard"]
CHOICES += ["moe[n_experts=4,k=2]", "tva+vft[preset=seed]"]


def model_of(choice: str) -> TransformerLM:
    torch.manual_seed(0)
    config = LMConfig(40, context=32, d_model=16, n_layers=2, n_heads=2, blocks=choice, zero_init_outputs=False)
    return TransformerLM(config).eval()


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("length", [8, 32], ids=["short", "long"])
def test_a_model_computes_with_parametrised_weights(choice: str, length: int):
    """Long rows take the ways that read weights without calling modules."""
    model, doubled = model_of(choice), model_of(choice)
    for module, twin in zip(list(model.modules()), list(doubled.modules())):
        if isinstance(module, nn.Linear):
            parametrize.register_parametrization(module, "weight", Doubled())
            with torch.no_grad():
                twin.weight.mul_(2)
    ids = torch.randint(40, (2, length))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, doubled(ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_linear_map_of_a_model_can_be_pruned_and_trained_on(choice: str):
    model = model_of(choice).train()
    pruned = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for module in pruned:
        prune.l1_unstructured(module, "weight", 0.5)
    ids = torch.randint(40, (2, 33))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        # A second pass would meet a graph that is gone, were a weight not made anew.
        optimizer.zero_grad()
        model(ids[:, :-1], targets=ids[:, 1:]).loss.backward()
        optimizer.step()
    for module in pruned:
        assert (module.weight_orig.grad[module.weight_mask == 0] == 0).all()
    with torch.no_grad():
        before = model(ids).logits
        for module in pruned:
            prune.remove(module, "weight")
        torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_cache_notices_that_a_weight_was_parametrised(choice: str):
    model = model_of(choice)
    ids = torch.randint(40, (1, 12))
    with torch.no_grad():
        cache = model.new_cache(1)
        model(ids[:, :10], cache=cache)
        model(ids[:, 10:11], cache=cache)
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                parametrize.register_parametrization(module, "weight", nn.Identity())
        step = model(ids[:, 11:], cache=cache).logits
        torch.testing.assert_close(step[:, -1], model(ids).logits[:, -1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_model_made_nowhere_is_filled_by_a_state_dict(choice: str):
    with torch.device("meta"):
        empty = model_of(choice)
    assert all(t.is_meta for t in [*empty.parameters(), *empty.buffers()])
    model = model_of(choice)
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*empty.parameters(), *empty.buffers()]:
            # What memory may hold.
            tensor.fill_(77)
    empty.load_state_dict(model.state_dict())
    ids = torch.randint(40, (2, 20))
    assert torch.equal(empty(ids).logits, model(ids).logits)


def test_constants_made_while_the_default_device_is_another_are_real():
    from blockyard.spectral.basis import bin_matrix, kernel_basis

    with torch.device("meta"):
        for made in (kernel_basis, bin_matrix):
            assert not made(5, 13, "linear", "log", torch.float32, torch.device("cpu")).is_meta


def test_stacked_maps_are_not_plain():
    assert not plain(StackedLinear(4, (2, 2)))
