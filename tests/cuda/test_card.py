"""What holds on a card: every mixer and FFN conforms, every model gives what it gives on a CPU, kernels agree.

`make gpu` runs them. The numbers of two devices differ by rounding: float64 is compared to six digits, since a gate may
be float32, float32 by what products of a few hundred terms lose (TF32 is off), bfloat16 by its eight bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockyard.conformance import check
from blockyard.generation.beam import beam_search
from blockyard.generation.sampling import SamplingConfig
from blockyard.generation.speculative import SpeculativeDecoder
from blockyard.generation.stream import generate_batch
from blockyard.moe.mixture import MoE
from blockyard.nn.attention import attend
from blockyard.registry.register import create, entries
from blockyard.tasks.run import train_lm
from tests.cuda.on_fake import DECODED
from tests.fixtures.every_model import MODELS, figure, outputs_of
from tests.fixtures.generation import build
from tests.fixtures.toy_training import toy_config, toy_trainer
from tests.nn.test_attention_flex import places_of

CARD = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

REGISTERED = [(kind, entry.name) for kind in ("attn", "ffn") for entry in entries(kind)]
CLOSE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.bfloat16: 2e-2}


def near(found: Tensor, expected: Tensor, dtype: torch.dtype, factor: float = 1.0) -> None:
    """Equal up to so many digits of the largest number."""
    found, expected = (t.detach().cpu() for t in (found, expected))
    found, expected = (t if t.is_complex() else t.double() for t in (found, expected))
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() <= factor * CLOSE[dtype] * (1 + expected.abs().max())


@pytest.mark.parametrize(("kind", "name"), REGISTERED, ids=lambda part: part)
def test_everything_registered_conforms(kind: str, name: str) -> None:
    cls = next(entry.cls for entry in entries(kind) if entry.name == name)
    report = check(cls, kind=kind, device=CARD)
    assert report.ok, [f"{row.name}: {row.reason}" for row in report.rows if row.outcome == "failed"]


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_gives_outputs_and_gradients_of_a_cpu(name: str, padded: bool) -> None:
    case = MODELS[name](torch.float64, padded)

    def run(device: str) -> list[Tensor]:
        model = case.model.to(device)
        model.zero_grad(set_to_none=True)
        given = {key: value.to(device) for key, value in case.given.items()}
        outputs = outputs_of(model(*(x.to(device) for x in case.inputs), **given))
        made = {key: out.cpu() for key, out in outputs.items()}
        figure(made).backward()
        return [*made.values(), *(p.grad.cpu() for p in model.parameters() if p.grad is not None)]

    expected = run("cpu")
    for found, other in zip(run(CARD), expected, strict=True):
        near(found, other, torch.float64)


LENGTHS = {torch.float32: (3, 63, 700), torch.bfloat16: (63, 1024)}
HIDDEN: dict[str, dict[str, Any]] = {
    "causal": {},
    "padding": {"padding_mask": True},
    "window": {"window": 100},
    "window, sinks, padding": {"window": 100, "sinks": 3, "padding_mask": True},
    "both ways": {"causal": False, "window": 60},
    "documents": {"documents": True},
    "documents, window, sinks": {"documents": True, "window": 40, "sinks": 2},
}


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "flex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("hidden", HIDDEN)
def test_attention_by_every_kernel_is_the_explicit_one_in_float64(hidden: str, dtype: torch.dtype, kernel: str) -> None:
    for length in LENGTHS[dtype]:
        given = {"causal": True, **HIDDEN[hidden]}
        if "padding_mask" in given:
            given["padding_mask"] = (torch.arange(length) >= torch.tensor([[0], [length // 3]])).to(CARD)
        if "documents" in given:
            given["documents"] = places_of(2, length, 0.02, 1).to(CARD)
        sizes = ((2, 4, length, 64), (2, 2, length, 64), (2, 2, length, 32))
        leaves = [torch.randn(size).to(CARD, dtype) for size in sizes]

        def run(wide: list[Tensor], kernel: str, given: dict[str, Any] = given) -> list[Tensor]:
            inputs = [t.detach().requires_grad_() for t in wide]
            out = attend(*inputs, kernel=kernel, **given)[0]
            return [out, *torch.autograd.grad(out.double().square().sum(), inputs)]

        expected = run([t.double() for t in leaves], "matmul")
        for found, other in zip(run(leaves, kernel), expected, strict=True):
            # Gradients are of a sum of squares: what is rounded enters twice.
            near(found, other, dtype, 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"capacity": 0.7}, {"n_shared": 1, "balance": "bias"}], ids=str)
def test_grouped_experts_give_what_segments_give(options: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 150, 64).to(CARD, dtype)
    found: dict[str, list[Tensor]] = {}
    for impl in ("segment", "grouped", "padded", "auto"):
        torch.manual_seed(1)
        mixture = MoE(64, n_experts=8, k=2, impl=impl, **options).to(CARD, dtype).train()
        inside = x.clone().requires_grad_()
        y, _ = mixture.with_aux(inside)
        named = dict(mixture.experts.named_parameters())
        found[impl] = [y, *torch.autograd.grad(y.float().square().mean(), [inside, *named.values()])]
    for impl in ("grouped", "padded", "auto"):
        for one, other in zip(found[impl], found["segment"], strict=True):
            near(one, other, dtype)


def decoded(mixer: Any, x: Tensor) -> Tensor:
    """What a prompt and single tokens behind its cache give."""
    cache = mixer.new_cache(x.shape[0])
    with torch.no_grad():
        return torch.cat([mixer(part, cache=cache)[0] for part in x.split([20, *[1] * (x.shape[1] - 20)], 1)], 1)


@pytest.mark.parametrize("options", [{}, {"window": 9}, {"window": 9, "sinks": 2}, {"cache": "mixed"}], ids=str)
def test_absorbed_latents_decode_to_what_expanded_ones_give(options: dict[str, Any]) -> None:
    made = {"d_model": 64, "n_heads": 4, "kv_rank": 32, "rope_dim": 16, "causal": True, **options}
    absorbed, naive = (create("attn", "mla", {**made, "decode": how}).to(CARD).eval() for how in ("absorbed", "naive"))
    naive.load_state_dict(absorbed.state_dict())
    x = torch.randn(2, 40, 64, device=CARD)
    near(decoded(absorbed, x), naive(x)[0], torch.float32)
    near(decoded(naive, x), naive(x)[0], torch.float32)


@pytest.mark.parametrize("blocks", DECODED)
def test_texts_are_those_of_a_cpu(blocks: str) -> None:
    # float64: no rounding decides between two tokens.
    model = build(blocks=blocks, context=48).double()
    prompts = [[3, 141, 59, 26, 5], [7, 7], [*range(1, 30)]]
    for sampling in (SamplingConfig(temperature=0), SamplingConfig(temperature=0.8, top_p=0.9, seed=5)):
        options = {"max_new_tokens": 30, "sampling": sampling, "batch_size": 2}
        expected = generate_batch(model.to("cpu"), prompts, **options)
        assert generate_batch(model.to(CARD), prompts, **options) == expected


def test_beams_and_drafts_give_texts_of_a_cpu() -> None:
    model, draft = build(blocks="standard[window=9,sinks=1]", context=48).double(), build(context=48, seed=1).double()
    prompts, sampling = [[3, 141, 59, 26, 5], [7, 7]], SamplingConfig(temperature=0.9, seed=3)

    def written(device: str) -> list[Any]:
        found = beam_search(model.to(device), prompts, max_new_tokens=12, beams=4, n_best=2, end_tokens=[17, 40])
        decoder = SpeculativeDecoder(model, prompts[:1], sampling, draft=draft.to(device))
        return [[[each.tokens for each in best] for best in found], [decoder.step()[0] for _ in range(20)]]

    assert written(CARD) == written("cpu")


def trained(out: Path, text: Path, blocks: str, **options: Any) -> list[float]:
    """Losses of a small run."""
    model = {"d_model": 64, "n_layers": 2, "n_heads": 2, "context": 640, "pattern": blocks}
    train: dict[str, Any] = {
        "steps": 6,
        "batch_size": 2,
        "eval_every": 3,
        "eval_batches": 1,
        "log_every": 1,
        "compile": "off",
    }
    data = {"path": str(text), "cache_dir": str(text.parent / "cache")}
    train |= {"device": CARD, "progress": False, **options}
    train_lm({"model": model, "data": data, "train": train}, out)
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(30_000)))
    return path


CHOICES = ("standard", "standard[window=64,sinks=2]", "mla", "tva+vft", "spectral", "standard+moe[n_experts=4]")


@pytest.mark.parametrize("blocks", CHOICES)
def test_training_in_bf16_stays_near_float32(blocks: str, tmp_path: Path, text: Path) -> None:
    wide = trained(tmp_path / "wide", text, blocks, precision="fp32")
    half = trained(tmp_path / "half", text, blocks, precision="bf16")
    # Six steps of a model that begins near ln 256: bfloat16 moves the loss in the third digit.
    assert half == pytest.approx(wide, rel=0.02)
    assert wide[-1] < wide[0]


@pytest.mark.parametrize("blocks", CHOICES[:2])
def test_compiled_blocks_train_as_eager_ones(blocks: str, tmp_path: Path, text: Path) -> None:
    eager = trained(tmp_path / "eager", text, blocks, precision="fp32")
    assert trained(tmp_path / "compiled", text, blocks, precision="fp32", compile="on") == pytest.approx(
        eager, rel=1e-3
    )


def test_a_run_that_is_resumed_ends_as_one_that_is_not(tmp_path: Path) -> None:
    def losses(out: Path, *stops: int) -> list[float]:
        for resume, stop in enumerate(stops):
            trainer = toy_trainer(out, toy_config(device=CARD, precision="bf16"), resume=bool(resume))
            trainer.advance(stop)
            trainer.close()
        return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]

    whole = losses(tmp_path / "whole", 12)
    # Sums of gradients by atomic additions have no order: not bit for bit, as on a CPU.
    assert losses(tmp_path / "parts", 5, 12) == pytest.approx(whole, rel=1e-3)
