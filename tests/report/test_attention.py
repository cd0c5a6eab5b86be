"""What a report shows of attention and of longer rows: reaches, maps, loss by position, memory over length."""

from __future__ import annotations

import pytest
import torch

from blockyard.models.inside import attention_of
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.report.charts.attention import maps_of
from blockyard.report.charts.positions import position_losses
from blockyard.report.html import render_html
from blockyard.report.render import charts_of, render_png, render_svg
from blockyard.report.verdict import analyse
from blockyard.tasks.kind import task_kind
from blockyard.tasks.lm.report import LMParts
from blockyard.tasks.settings import resolve
from tests.fixtures.reports import synthetic_report

CONTEXT = 24


def model(blocks: str) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(LMConfig(vocab_size=50, blocks=blocks, d_model=32, n_layers=2, n_heads=2, context=40)).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 50, (3, CONTEXT), generator=torch.Generator().manual_seed(1))


def test_a_head_reaches_as_far_as_its_weights_say(ids):
    net = model("standard")
    found = attention_of(net, ids)
    assert found is not None and [entry["layer"] for entry in found] == [0, 1]
    # The first layer's input is the embedding: its weights by hand.
    x = net.layers[0].ln1(net.token_embeddings(ids))
    with torch.no_grad():
        _, weights = net.layers[0].attn(x, return_weights=True)
    for head in range(2):
        reach = sum(
            float(weights[b, head, q, k]) * (q - k) for b in range(3) for q in range(CONTEXT) for k in range(q + 1)
        ) / (3 * CONTEXT)
        assert found[0]["distance"][head] == pytest.approx(reach, rel=1e-3)
    assert torch.allclose(maps_of(found[0]), weights[0].sqrt(), atol=1 / 255)


@pytest.mark.parametrize("blocks", ["tva+vft", "mla", "standard[window=4]", "tva+swiglu"])
def test_every_mixer_that_can_give_its_weights_has_a_picture(ids, blocks):
    found = attention_of(model(blocks), ids)
    assert found is not None and len(found) == 2
    for entry in found:
        maps = maps_of(entry)
        assert maps.shape == (2, CONTEXT, CONTEXT) and not maps.triu(1).any()
        assert all(0 <= distance < CONTEXT for distance in entry["distance"])
        assert "window" not in blocks or max(entry["distance"]) < 4


def test_layers_without_weights_have_none(ids):
    found = attention_of(model("spectral[window=16]/standard"), ids)
    assert found is not None and [entry["layer"] for entry in found] == [1]
    assert attention_of(model("spectral[window=16]"), ids) is None


def test_the_loss_by_position_averages_to_the_validation_loss(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the yard of blocks and veins " * 120)
    options = {"d_model": 32, "n_layers": 1, "n_heads": 2, "context": 24}
    train = {"batch_size": 4, "eval_batches": 3, "device": "cpu"}
    run = resolve({"model": options, "data": {"path": str(text), "cache_dir": str(tmp_path)}, "train": train}, "lm")
    kind = task_kind("lm")
    data = kind.load_data(run.data, run.model)
    run = resolve({"model": options, "data": {"path": str(text), "cache_dir": str(tmp_path)}, "train": train}, "lm")
    from dataclasses import replace

    run = replace(run, model=kind.fit(run.model, data.assets))
    task = kind.make_task(run, data)
    with torch.no_grad():
        figures = kind.figures(run, data, task.model.eval())
        wanted = task.evaluate(task.model)["val_loss"]
    assert figures["positions"] == [1, 2, 4, 8, 16, 24]
    sizes = [1, 1, 2, 4, 8, 8]
    mean = sum(size * loss for size, loss in zip(sizes, figures["position_loss"])) / 24
    assert mean == pytest.approx(wanted, abs=1e-4)


@pytest.fixture
def report(ids):
    found = synthetic_report()
    for choice, blocks in zip(found["choices"], ("standard", "tva+vft")):
        choice["attention"] = attention_of(model(blocks), ids)
        choice["scaling"] = {"lengths": [8, 16], "tokens_per_second": [90.0, 70.0], "peak_bytes": [2 << 20, 3 << 20]}
        for seed, run in enumerate(choice["runs"]):
            run["figures"] = {"positions": [1, 2, 4], "position_loss": [3.0 + seed, 2.0, 1.0]}
    return analyse(found)


def test_losses_by_position_are_means_over_the_seeds(report):
    assert position_losses(report["choices"][0]) == {1: 4.0, 2: 2.0, 4: 1.0}


def test_the_report_draws_them_and_stays_self_contained_and_small(report):
    names = {chart.name: chart for chart in charts_of(report, LMParts())}
    wanted = {"attention-reach", "attention-0", "attention-1", "loss-position", "memory-length", "speed-length"}
    assert names.keys() >= wanted
    for name in wanted:
        assert len(render_svg(names[name], report)) < 60_000
        assert render_png(names[name], report).startswith(b"\x89PNG")
    page = render_html(report, LMParts())
    assert "What attention looks at" in page and "http" not in page.replace("http-equiv", "")


def test_memory_that_could_not_be_measured_is_not_drawn(report):
    report["choices"][0]["scaling"]["peak_bytes"][1] = None
    chart = next(chart for chart in charts_of(report, LMParts()) if chart.name == "memory-length")
    assert render_svg(chart, report)
    for choice in report["choices"]:
        del choice["scaling"]["peak_bytes"]
    assert "memory-length" not in {chart.name for chart in charts_of(report, LMParts())}
