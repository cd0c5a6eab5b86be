"""compat.price_transformer: the document's forecaster, its embedding and presets."""

import pytest
import torch

from blockyard.compat.price_transformer import (
    FinancialEmbeddingLayer,
    PricePredictionConfig,
    PricePredictionConfigs,
    PriceTransformer,
    precompute_freqs_cis,
)
from blockyard.errors import InputError

PRESETS = {"tiny": (256, 4, 4, 128), "small": (512, 6, 8, 256), "base": (512, 8, 8, 256), "large": (1024, 12, 16, 512)}


def small(**fields):
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 4, "kv_lora_rank": 12, "intermediate_size": 48, "dropout": 0.0}
    return PricePredictionConfig(**shape | fields)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_authors_sizes_and_the_documents_defaults(name):
    config = getattr(PricePredictionConfigs, name)()
    assert (config.d_model, config.n_layers, config.n_heads, config.kv_lora_rank) == PRESETS[name]
    defaults = (config.learning_rate, config.weight_decay, config.dropout, config.rope_theta, config.max_seq_len)
    assert (*defaults, config.intermediate_size) == (1e-4, 0.01, 0.1, 10_000.0, 512, 2048)
    config.d_model = 7
    assert getattr(PricePredictionConfigs, name)().d_model == PRESETS[name][0]
    with torch.device("meta"):
        model = PriceTransformer(getattr(PricePredictionConfigs, name)())
    width, layers, _, rank = PRESETS[name]
    block = 2 * width * width + width * rank + rank + 2 * rank * width + 3 * width * 2048 + 2 * width
    rest = 20 * width / 4  # the groups' projections: about a quarter of the width for each of their five features
    counted = sum(p.numel() for p in model.parameters())
    assert counted == pytest.approx(layers * block + rest + 12 * width, rel=1e-3)


def test_the_bases_forward_gives_ten_prices_and_a_vector():
    """The document's own call, on one layer of the eight: the shapes do not depend on depth."""
    config = PricePredictionConfigs.base()
    config.n_layers = 1
    model = PriceTransformer(config).eval()
    x = torch.randn(4, 180, 20)
    outputs = model(x, return_features=True, return_dict=True)
    assert outputs["price_predictions"].shape == (4, 10) and outputs["strategy_features"].shape == (4, 512)
    assert torch.equal(model(x), outputs["price_predictions"])
    pair = model(x, return_features=True)
    assert torch.equal(pair[1], outputs["strategy_features"])
    assert set(model(x, return_dict=True)) == {"price_predictions"}


def test_the_model_keeps_a_copy_of_its_configuration():
    config = small()
    model = PriceTransformer(config)
    config.max_seq_len = 3
    config.layer_overrides[0] = {"d_model": 1}
    assert model(torch.randn(2, 8, 20)).shape == (2, 10)


def test_the_prediction_reads_the_last_step_and_causality_hides_later_ones():
    model, x = PriceTransformer(small()).eval(), torch.randn(1, 12, 20)
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(model(x), model(changed))
    short, whole = model(x[:, :9], is_causal=True, return_features=True)[1], x.clone()
    assert short.shape == (1, 32)
    hidden = torch.ones(12, 12, dtype=torch.bool).tril()
    torch.testing.assert_close(model(whole, attn_mask=hidden), model(whole, is_causal=True), rtol=1e-4, atol=1e-5)


def test_batch_norm_never_looks_at_the_windows_own_time_axis():
    embedding = FinancialEmbeddingLayer(small()).eval()
    x = torch.randn(3, 10, 20)
    later = x.clone()
    later[:, 6:] = 100.0
    assert torch.equal(embedding(x)[:, :6], embedding(later)[:, :6])
    alone = torch.cat([embedding(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(embedding(x), alone)


def test_feature_groups_are_named_in_the_configuration():
    config = small(feature_groups={"a": (0, 2), "b": (1,)}, horizons=(1, 5))
    assert PriceTransformer(config)(torch.randn(2, 6, 3)).shape == (2, 2)
    with pytest.raises(InputError, match="every feature exactly once"):
        FinancialEmbeddingLayer(small(feature_groups={"a": (0, 2)}))


def test_rotation_factors_survive_a_change_of_type_and_are_not_saved():
    model = PriceTransformer(small())
    assert not {"cos", "sin"} & set(model.state_dict())
    torch.testing.assert_close(model.freqs_cis, precompute_freqs_cis(8, 512))
    half = PriceTransformer(small()).to(torch.bfloat16).eval()
    assert half.freqs_cis.is_complex() and half(torch.randn(2, 6, 20, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert model.double()(torch.randn(2, 6, 20, dtype=torch.float64)).dtype == torch.float64


def test_a_step_of_training_changes_every_parameter():
    torch.manual_seed(0)
    model = PriceTransformer(small())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    model(torch.randn(8, 12, 20)).square().mean().backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.randn(2, 513, 20), "513 steps, more than max_seq_len=512"),
        (torch.randn(2, 5, 19), r"expected \[batch, length, 20\]"),
        (torch.randn(5, 20), r"expected \[batch, length, 20\]"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(x, words):
    with pytest.raises(InputError, match=words):
        PriceTransformer(small())(x)
