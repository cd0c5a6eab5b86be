"""Exported graphs: one for every batch and length, of operators that others have, with the numbers of eager code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blockyard.errors import InputError
from blockyard.export.formats import PT2, load_onnx, load_pt2, save_onnx, save_pt2
from blockyard.export.graph import Scorer, trace
from blockyard.models.lm import LMConfig, TransformerLM, build_lm
from blockyard.nn.exporting import ConstantHolder
from blockyard.registry import register as registry
from blockyard.registry.register import register_attn
from blockyard.tasks.classify.model import EncoderConfig, TextClassifier

SMALL: dict[str, Any] = {
    "vocab_size": 31, "d_model": 16, "n_heads": 4, "n_layers": 1, "context": 32, "zero_init_outputs": False,
}  # fmt: skip
# Longer than every window and chunk of kernels below, and shorter; one token; one row.
SHAPES = ((1, 1), (3, 1), (2, 5), (1, 47))
# Float32 sums in other orders; measured: 5e-7 of the largest logit.
TOLERANCE = 5e-6

EVERY = "spectral[window=12,chunk=4]/mla[kv_rank=8,rope_dim=2]+moe[n_experts=4]/tva+vft/standard[window=6,sinks=2]"
# Models by what they show: blocks, or a whole configuration.
QUICK: dict[str, dict[str, Any]] = {
    "grouped heads": {"blocks": "standard[n_kv_heads=2,bias=true]+relu2"},
    "latents": {"blocks": "mla[kv_rank=8,rope_dim=2]+swiglu"},
    "veins": {"blocks": "tva+vft"},
    "mixture": {"blocks": "standard+moe[n_experts=4,n_shared=1,balance=bias,scoring=sigmoid]"},
    "spectral beside attention": {"blocks": "spectral[window=12,chunk=4]/standard", "n_layers": 2},
}
MORE: dict[str, dict[str, Any]] = {
    "veins of the document": {"blocks": "tva+vft[preset=seed]"},
    "window": {"blocks": "standard[window=6]"},
    "window with sinks": {"blocks": "standard[window=6,sinks=2,n_kv_heads=2]"},
    "absorbed latents": {"blocks": "mla[kv_rank=2,rope_dim=2,decode=absorbed]"},
    "whole keys turned": {"blocks": "mla[kv_rank=8,rope=full]"},
    "mixture of veins": {"blocks": "standard+moe[n_experts=4,expert=vft,vein_rank=4,n_gated=1]"},
    "mixture of separate experts": {"blocks": "standard+moe[n_experts=4,expert=vft]"},
    "kernel per token": {"blocks": "spectral[window=12,gate=token]"},
    "chunks of one token": {"blocks": "spectral[window=5,chunk=1]"},
    "odd chunks": {"blocks": "spectral[window=20,chunk=7,use_toeplitz=true,interpolation=cubic]"},
    "learned positions": {"blocks": "standard[rope=none]+standard", "positions": "learned", "context": 47},
    "frequencies by length": {"blocks": "standard", "rope_scaling": "dynamic[factor=2,original=9]"},
    "llama": {"blocks": "standard+swiglu", "rope_scaling": "llama3[factor=8,original=16]", "tied": True},
    "parallel": {"blocks": "standard[qk_norm=whole]+glu", "parallel": True, "logit_softcap": 3.0},
}
EVERYTHING = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


def made(**settings: Any) -> TransformerLM:
    return noisy(build_lm(LMConfig(**{**SMALL, **settings}), seed=1))


def noisy(model: Any) -> Any:
    """The model with noise in all weights, so that gains, biases and gates act."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def differs(scorer: Scorer, run: Any, shapes: tuple[tuple[int, int], ...] = SHAPES) -> float:
    """The largest difference of logits, of the largest logit."""
    found = []
    for seed, (rows, length) in enumerate(shapes):
        inputs = scorer.example(rows, length, seed)
        with torch.no_grad():
            expected, actual = scorer(*inputs), run(inputs)
        assert expected.abs().max() > 0.1
        found.append(float((actual - expected).abs().max() / expected.abs().max()))
    return max(found)


@pytest.fixture(scope="module")
def everything() -> tuple[TransformerLM, torch.export.ExportedProgram]:
    """Every mixer in one model, and its graph, which takes a while."""
    model = made(blocks=EVERY, n_layers=4)
    return model, trace(model)


@pytest.mark.parametrize("name", EVERYTHING)
def test_one_graph_is_of_every_batch_and_length(name: str, tmp_path: Path) -> None:
    model = made(**{**QUICK, **MORE}[name])
    save_pt2(trace(model), Scorer(model), tmp_path, {})
    assert differs(Scorer(model), load_pt2(tmp_path)) < TOLERANCE


def test_onnxruntime_gives_the_same_logits(
    everything: tuple[TransformerLM, torch.export.ExportedProgram], tmp_path: Path
) -> None:
    model, program = everything
    check_onnx(model, program, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *MORE])
def test_onnxruntime_gives_the_same_logits_of_each(name: str, tmp_path: Path) -> None:
    model = made(**{**QUICK, **MORE}[name])
    check_onnx(model, trace(model), tmp_path)


def check_onnx(model: Any, program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="the extra onnx is not installed")
    save_onnx(program, Scorer(model), tmp_path, {"made_by": "a test"})
    run = load_onnx(tmp_path)
    assert run is not None
    assert differs(Scorer(model), run) < TOLERANCE


@pytest.mark.parametrize(
    "choice",
    ["standard+swiglu", *(pytest.param(c, marks=pytest.mark.slow) for c in ("mla", "tva+vft", "standard+moe"))],
)
@pytest.mark.parametrize("pooling", ["mean", *(pytest.param(p, marks=pytest.mark.slow) for p in ("cls", "last"))])
def test_a_classifier_takes_rows_with_their_padding(choice: str, pooling: Any, tmp_path: Path) -> None:
    config = EncoderConfig(
        vocab_size=31, n_classes=3, d_model=16, n_heads=4, n_layers=1, context=32, blocks=choice, pooling=pooling,
        zero_init_outputs=False,
    )  # fmt: skip
    torch.manual_seed(3)
    model = noisy(TextClassifier(config))
    save_pt2(trace(model), Scorer(model), tmp_path, {})
    run = load_pt2(tmp_path)
    assert differs(Scorer(model), run) < TOLERANCE
    # Padding changes nothing, there either.
    ids, mask = Scorer(model).example(1, 9)
    ids[mask == 0] = 7
    with torch.no_grad():
        torch.testing.assert_close(run((ids, mask)), model(ids[:, mask[0] == 1]).logits, atol=1e-5, rtol=0)


def test_torch_alone_reads_the_file(
    everything: tuple[TransformerLM, torch.export.ExportedProgram], tmp_path: Path
) -> None:
    model, program = everything
    save_pt2(program, Scorer(model), tmp_path, {"task": "lm"})
    assert differs(Scorer(model), load_pt2(tmp_path)) < TOLERANCE
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    code = (
        "import sys; sys.modules['blockyard'] = None\n"
        "import torch\n"
        "about = {'about.json': ''}\n"
        f"module = torch.export.load({str(tmp_path / PT2)!r}, extra_files=about).module()\n"
        f"with torch.no_grad(): print(about, module(torch.tensor({ids.tolist()}))[0, -1].tolist(), sep='\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    about, logits = done.stdout.strip().splitlines()[-2:]
    assert '"task": "lm"' in about
    with torch.no_grad():
        expected = model(ids).logits[0, -1]
    torch.testing.assert_close(torch.tensor(json.loads(logits)), expected, atol=1e-5, rtol=1e-5)


def test_a_graph_holds_what_the_weights_are_now_and_the_model_keeps_nothing() -> None:
    model = made(blocks="tva+vft")
    ids = Scorer(model).example(2, 9)
    with torch.no_grad():
        model(*ids)
        for weight in model.parameters():
            # Behind autograd's back: nothing counts this change.
            weight.data.mul_(1.3)
    program = trace(model)
    assert differs(Scorer(model), lambda inputs: program.module()(*inputs), ((2, 5),)) < TOLERANCE
    assert all(module.held is None for module in model.modules() if isinstance(module, ConstantHolder))
    # The Cholesky factor of the vein is no part of it: no other runtime has one.
    assert not [node for node in program.graph.nodes if "cholesky" in str(node.target)]


@pytest.mark.parametrize("choice", ["spectral[window=8,chunk=4]", "spectral[window=8,gate=token]"])
def test_eager_code_computes_afterwards_what_it_did_before(choice: str) -> None:
    model = made(blocks=choice)
    (ids,) = Scorer(model).example(2, 21)
    with torch.no_grad():
        before = model(ids).logits
        trace(model)
        # The same bits: whatever is kept between calls was left alone.
        assert torch.equal(model(ids).logits, before)


def test_no_line_of_a_traced_program_is_in_it() -> None:
    program = trace(made(blocks="standard"))
    assert not [node for node in program.graph.nodes if "stack_trace" in node.meta]


def test_a_model_in_training_is_refused() -> None:
    with pytest.raises(InputError, match=r"call eval\(\) first"):
        trace(made(blocks="standard").train())


def test_spectral_mixing_both_ways_is_refused_by_its_name() -> None:
    config = EncoderConfig(vocab_size=31, n_classes=3, d_model=16, n_heads=4, n_layers=1, context=32, blocks="spectral")
    with pytest.raises(InputError, match="spectral mixing is exported where it hides the future"):
        trace(TextClassifier(config).eval())


@pytest.mark.parametrize("kind", ["value", "length"])
def test_a_mixer_that_decides_by_what_it_sees_is_refused_in_one_line(kind: str) -> None:
    @register_attn("halves")
    class Halves(nn.Module):
        def __init__(self, d_model: int, n_heads: int, causal: bool = False) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            return x if (x[0, 0, 0] > 0 if kind == "value" else x.shape[1] > 10) else 2 * x

    try:
        with pytest.raises(InputError, match=r"halves.* is no graph of every batch and length") as caught:
            trace(made(blocks="halves"))
    finally:
        registry._register.entries.pop(("attn", "halves"), None)
    said = str(caught.value)
    assert "\n" not in said
    assert ("in Halves" in said) == (kind == "value"), said
