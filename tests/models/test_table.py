"""A model in a notebook: layers that are alike share a row, and the figures are those of the formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.models.table import MOST_KINDS
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier
from blockyard.tasks.run import Trained, resolve

SMALL = {"d_model": 16, "n_heads": 2, "vocab_size": 32, "context": 8}


def language_model(blocks: str = "tva*2/standard", n_layers: int = 5, **options) -> TransformerLM:
    return TransformerLM(LMConfig(blocks=blocks, n_layers=n_layers, **SMALL, **options))


def test_layers_that_are_alike_share_a_row():
    html = language_model()._repr_html_()
    assert ">layers 0–1, 3–4<" in html and ">layer 2<" in html
    assert html.index("token_embeddings") < html.index("layers 0–1") < html.index("lm_head")


def test_its_figures_are_the_formulas():
    model = language_model(n_layers=2, blocks="standard")
    cost = model.cost(8)
    assert f">{cost.cache_bytes_per_token} B<" in model._repr_html_()
    assert f">{cost.parameters:,}<" in model._repr_html_()


def test_a_tied_matrix_and_frozen_ones_are_told():
    model = language_model(tied=True)
    model.token_embeddings.requires_grad_(False)
    html = model._repr_html_()
    assert "counted once in the whole" in html and "512 parameters do not learn" in html


def test_many_kinds_of_layers_do_not_flood():
    blocks = "/".join(f"standard+swiglu[d_ff={8 * i}]" for i in range(1, 31))
    html = language_model(blocks, 30)._repr_html_()
    assert html.count("<tr>") <= MOST_KINDS + 7
    assert f"{30 - MOST_KINDS} more kinds of layers" in html
    alternating = language_model("standard/tva", 30)._repr_html_()
    assert "… (15 in all)" in alternating


def test_a_mixer_without_a_formula_is_not_run():
    class Foreign(nn.Module):
        def forward(self, x, **arguments):
            raise AssertionError("a glance runs no pass")

    model = language_model(n_layers=1, blocks="standard")
    model.layers[0].attn = Foreign()
    assert ">–<" in model._repr_html_()


def test_an_encoder_has_no_column_for_the_cache():
    model = TextClassifier(EncoderConfig(vocab_size=32, n_classes=2, d_model=16, n_heads=2, n_layers=1))
    assert "cache" not in model._repr_html_()


def test_a_model_without_memory_can_be_shown():
    with torch.device("meta"):
        model = language_model()
    assert "float32 on meta" in model._repr_html_()


@pytest.mark.parametrize(
    "model", [language_model(n_layers=1, blocks="standard"), nn.Linear(1, 1)], ids=["trunk", "foreign"]
)
def test_a_run_tells_what_was_trained(model):
    run = resolve({"train": {"steps": 3000}, "data": {"path": "<texts>"}})
    html = Trained(model, None, run)._repr_html_()
    assert "A run of train lm" in html and "3,000 steps" in html and "&lt;texts&gt;" in html
    assert ("whole model" in html) == (not isinstance(model, nn.Linear))
