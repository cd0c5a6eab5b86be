"""The report's figures of what filtering layers learnt."""

import pytest
import torch

from blockyard.models.inside import kernels_of
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.report.charts.kernels import learnt_kernels
from blockyard.report.html import render_html
from blockyard.report.verdict import analyse
from blockyard.tasks.lm.report import LMParts
from tests.fixtures.reports import synthetic_report


def model(blocks):
    torch.manual_seed(0)
    return TransformerLM(LMConfig(32, blocks=blocks, d_model=32, n_layers=3, n_heads=2, context=16))


def test_only_filtering_layers_have_kernels():
    assert kernels_of(model("standard")) is None
    found = kernels_of(model("spectral[window=64]*2/standard"))
    assert [layer["layer"] for layer in found] == [0, 1]


def test_the_figures_are_those_of_the_kernels():
    lm = model("spectral[window=64]")
    mixer = lm.layers[0].attn
    with torch.no_grad():
        # All kernels the same: a copy from three tokens before, times 0.5.
        frequencies = torch.linspace(0, torch.pi, mixer.gate.buckets)
        anchors = 0.5 * torch.polar(torch.ones_like(frequencies), -3 * frequencies)
        mixer.gate.out_weight.zero_()
        mixer.gate.base.copy_(torch.stack([anchors.real, anchors.imag]).expand_as(mixer.gate.base))
    layer = kernels_of(lm)[0]
    response = dict(zip(layer["lags"], layer["response"]))
    assert response[3.0] == [1, 1, 1] and all(q[2] < 0.5 for lag, q in response.items() if lag != 3)
    assert layer["span"][0] >= 3
    assert layer["frequencies"][0] == 0 and layer["frequencies"][-1] == pytest.approx(0.5, abs=0.05)
    assert all(q[0] > 0.3 for q in layer["gate"])


def test_the_page_draws_them_for_the_choices_that_have_them():
    report = synthetic_report(("standard", "spectral*3/standard"))
    report["choices"][1]["kernels"] = kernels_of(model("spectral[window=64]"))
    done = analyse(report)
    charts = learnt_kernels(done)
    assert [chart.name for chart in charts] == ["kernels-1", "gates-1"]
    page = render_html(done, LMParts())
    for words in ("What the filters learnt", "cycles per token", "Lag that holds 95 % of the energy"):
        assert words in page
    assert "What the filters learnt" not in render_html(analyse(synthetic_report()), LMParts())
