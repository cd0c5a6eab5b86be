"""The text classifier: padding and chunks change nothing, pooling, costs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockyard.errors import InputError
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier, pool


def model(**options: Any) -> TextClassifier:
    torch.manual_seed(0)
    config = {"vocab_size": 64, "n_classes": 3, "d_model": 16, "n_layers": 2, "n_heads": 2, "context": 8}
    built = TextClassifier(EncoderConfig(**{**config, "zero_init_outputs": False, **options}))
    return built.double().eval()


@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_padding_does_not_change_the_classes(pooling: str) -> None:
    classifier = model(pooling=pooling)
    ids = torch.randint(64, (2, 5), generator=torch.Generator().manual_seed(1))
    padded = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = torch.arange(8).expand(2, 8) < 5
    assert torch.allclose(classifier(ids).logits, classifier(padded, padding_mask=mask).logits, atol=1e-12)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_document_in_chunks_is_the_mean_of_what_each_chunk_gives(pooling: str) -> None:
    classifier = model(pooling=pooling, chunks=3)
    ids = torch.randint(64, (2, 3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 3, 8, dtype=torch.bool)
    mask[1, 1, 4:] = mask[1, 2] = False
    found = classifier(ids, padding_mask=mask).logits
    for row in range(2):
        vectors, weights = [], []
        for chunk in range(3):
            kept = int(mask[row, chunk].sum())
            if kept:
                vectors.append(classifier._encode(ids[row, chunk, :kept][None], None)[0])
                weights.append(kept if pooling == "mean" else 1)
        mean = sum(v * w for v, w in zip(vectors, weights)) / sum(weights)
        assert torch.allclose(classifier.head(mean)[0], found[row], atol=1e-12)


def test_pooling_takes_complex_numbers_and_rows_that_keep_nothing() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.complex128)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert torch.allclose(pool(x, mask, "mean"), torch.stack([x[0, :2].mean(0), torch.zeros_like(x[0, 0])]))
    assert torch.allclose(pool(x, mask, "last"), torch.stack([x[0, 1], torch.zeros_like(x[0, 0])]))


def test_a_mixer_that_sees_only_the_past_needs_causal() -> None:
    with pytest.raises(InputError, match="pooling=cls with causal=True"):
        EncoderConfig(vocab_size=4, n_classes=2, causal=True, pooling="cls")
    assert model(causal=True, pooling="last")(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 3)


def test_the_cost_formula_counts_parameters_and_products() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    classifier = model(pooling="cls").float()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        classifier(torch.zeros(1, 8, dtype=torch.long))
    cost = classifier.cost(classifier.config.length)
    assert cost.parameters == sum(p.numel() for p in classifier.parameters())
    assert cost.flops == counter.get_total_flops()
