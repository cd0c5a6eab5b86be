"""The table of docs/hf.md: what the libraries around transformers do with every mixer, row by row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blockyard.moe import MoE
from tests.fixtures.hf_models import CHOICES, VOCABULARY, family_model, prompts

transformers = pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]


def adapted(model: Any, dropout: float = 0.0, **more: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    settings = {"task_type": "CAUSAL_LM", "target_modules": "all-linear", "r": 4, "lora_dropout": dropout, **more}
    return peft.get_peft_model(model, peft.LoraConfig(**settings))


def trained(model: Any, steps: int = 3) -> Any:
    """A few steps on one batch; every parameter that learns has had a gradient."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input_ids=prompts(), labels=prompts()).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] and all(p.grad is not None and p.grad.abs().sum() > 0 for p in learning)
    return model.eval()


@pytest.mark.parametrize("choice", CHOICES)
def test_lora_on_all_linear_maps_is_trained_stored_loaded_and_merged(choice: str, tmp_path: Path):
    peft = pytest.importorskip("peft")
    base, model = family_model(choice), adapted(family_model(choice))
    linear = [m for m in base.modules() if isinstance(m, nn.Linear)]
    # All but the output matrix.
    assert sum(hasattr(m, "lora_A") for m in model.modules()) == len(linear) - 1
    torch.testing.assert_close(model(prompts()).logits, base(prompts()).logits, atol=1e-5, rtol=1e-4)
    trained(model)
    out = model(prompts()).logits
    assert not torch.allclose(out, base(prompts()).logits, atol=1e-3)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(family_model(choice), tmp_path).eval()
    torch.testing.assert_close(again(prompts()).logits, out, atol=1e-5, rtol=1e-4)
    greedy = {"max_new_tokens": 5, "do_sample": False}
    text = model.generate(input_ids=prompts(), **greedy)
    assert torch.equal(text, model.generate(input_ids=prompts(), use_cache=False, **greedy))
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == base.state_dict().keys()
    torch.testing.assert_close(merged(prompts()).logits, out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("choice", CHOICES)
def test_dropout_of_adapters_works_or_is_refused_in_one_line(choice: str):
    """Where a matrix is multiplied with others before any token is, it cannot drop for every token anew."""
    model = adapted(family_model(choice), dropout=0.5).train()
    if choice in ("tva+vft", "tva+vft seed", "moe"):
        with pytest.raises(
            ValueError, match=r"drops elements with probability 0\.5 in training.*leave this module out"
        ):
            model(input_ids=prompts(), labels=prompts())
    else:
        model(input_ids=prompts(), labels=prompts()).loss.backward()


@pytest.mark.parametrize("choice", CHOICES)
def test_torchao_quantises_every_linear_map(choice: str):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    model, length = family_model(choice), 40
    ids = prompts(2, length)
    before = model(ids).logits
    count = sum(isinstance(m, nn.Linear) for m in model.modules())
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    assert sum(type(p) is not nn.Parameter for p in model.parameters()) == count
    after = model(ids).logits
    assert float((after - before).norm() / before.norm()) < 0.03
    greedy = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(ids, **greedy), model.generate(ids, use_cache=False, **greedy))


@pytest.mark.parametrize("mean", [True, False], ids=["mean", "drawn"])
@pytest.mark.parametrize("choice", CHOICES)
def test_the_vocabulary_grows_and_shrinks(choice: str, mean: bool, tmp_path: Path):
    model = family_model(choice)
    before = model(prompts()).logits
    model.resize_token_embeddings(VOCABULARY + 8, mean_resizing=mean)
    out = model(prompts()).logits
    assert out.shape[-1] == VOCABULARY + 8 and model.model.config.vocab_size == VOCABULARY + 8
    torch.testing.assert_close(out[..., :VOCABULARY], before, atol=1e-5, rtol=1e-4)
    model.generate(torch.full((1, 2), VOCABULARY + 7), max_new_tokens=2)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(prompts()).logits, out)
    model.resize_token_embeddings(VOCABULARY)
    torch.testing.assert_close(model(prompts()).logits, before, atol=1e-5, rtol=1e-4)


def rows(count: int = 16, length: int = 12) -> list[dict[str, torch.Tensor]]:
    found = torch.randint(1, VOCABULARY, (count, length), generator=torch.Generator().manual_seed(3))
    return [{"input_ids": row, "labels": row} for row in found]


def arguments(folder: Path, **more: Any) -> Any:
    pytest.importorskip("accelerate")
    return transformers.TrainingArguments(
        str(folder),
        max_steps=4,
        per_device_train_batch_size=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=10,
        **more,
    )


# A hybrid has the state of several.
@pytest.mark.parametrize(
    "choice", [c if c in ("standard", "hybrid", "moe") else pytest.param(c, marks=pytest.mark.slow) for c in CHOICES]
)
def test_transformers_trainer_goes_on_exactly_where_it_was(choice: str, tmp_path: Path):
    more = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    model, again = family_model(choice), family_model(choice, seed=4)
    transformers.Trainer(model, arguments(tmp_path, **more), train_dataset=rows()).train()
    assert model.gradient_checkpointing
    trainer = transformers.Trainer(again, arguments(tmp_path, **more), train_dataset=rows())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    assert "eval_loss" in transformers.Trainer(model, arguments(tmp_path), eval_dataset=rows(4)).evaluate()


def test_a_router_balanced_by_its_bias_is_told_every_step(tmp_path: Path):
    from blockyard import LMConfig, TransformerLM
    from blockyard.hf import StepHooks, wrap

    torch.manual_seed(0)
    choice = "standard+moe[n_experts=4,k=2,balance=bias,bias_rate=0.01]"
    model = wrap(TransformerLM(LMConfig(VOCABULARY, context=64, d_model=32, n_layers=2, n_heads=4, blocks=choice)))
    routers = [m.router for m in model.modules() if isinstance(m, MoE)]
    hooks = StepHooks(model)
    trainer = transformers.Trainer(model, arguments(tmp_path), train_dataset=rows(), callbacks=[hooks])
    trainer.train()
    # Four steps of 0.01, and half as much again for the mean that is kept at 0.
    assert all(0 < float(router.bias.abs().max()) <= 0.06 + 1e-6 for router in routers)


def test_accelerate_prepares_a_model_and_puts_it_on_devices(tmp_path: Path):
    accelerate = pytest.importorskip("accelerate")
    model = family_model("hybrid")
    before = model(prompts()).logits
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    accelerator.backward(prepared(prompts(), labels=prompts()).loss)
    optimizer.step()
    assert not torch.equal(model(prompts()).logits, before)
    model.save_pretrained(tmp_path)
    placed = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(placed(prompts()).logits, model(prompts()).logits)


@pytest.mark.parametrize("choice", [c for c in CHOICES if c not in ("spectral", "hybrid")])
def test_weights_that_lie_elsewhere_between_calls_give_the_same_text(choice: str):
    """Modules fetch theirs when they are called, so a weight that is read without a call has to be asked for."""
    accelerate = pytest.importorskip("accelerate")
    model = family_model(choice)
    before = model(prompts()).logits
    with torch.no_grad():
        moved = accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=False)
        torch.testing.assert_close(moved(prompts()).logits, before, atol=1e-5, rtol=1e-4)


TASK = """
task: yard_words
dataset_path: json
dataset_kwargs:
  data_files: {data}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["standard", "mla", "tva+vft", "spectral", "hybrid", "moe"])
def test_lm_eval_scores_a_local_task(choice: str, tmp_path: Path):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    import json

    import tokenizers

    words = {"<pad>": 0, **{f"w{i}": i for i in range(1, VOCABULARY)}}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<pad>", model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(tmp_path / "model")
    family_model(choice).save_pretrained(tmp_path / "model")
    documents = [
        {"question": f"w{i} w{i + 1} w{i + 2}", "choices": [f"w{i + 3}", f"w{i + 9}"], "answer": i % 2}
        for i in range(1, 11)
    ]
    data, tasks = tmp_path / "data.jsonl", tmp_path / "tasks"
    data.write_text("\n".join(map(json.dumps, documents)))
    tasks.mkdir()
    (tasks / "yard.yaml").write_text(TASK.format(data=data))
    code = (
        "import blockyard.hf, lm_eval, json, sys\n"
        "from lm_eval.tasks import TaskManager\n"
        f"manager = TaskManager(include_path={str(tasks)!r}, include_defaults=False)\n"
        f"found = lm_eval.simple_evaluate('hf', model_args='pretrained={tmp_path / 'model'}', tasks=['yard_words'],\n"
        "    device='cpu', batch_size=4, task_manager=manager)\n"
        "print(json.dumps(found['results']['yard_words']['acc,none']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    model, right = family_model(choice), 0
    with torch.no_grad():
        for document in documents:
            ids = torch.tensor([[words[w] for w in document["question"].split()]])
            scores = model(ids).logits[0, -1]
            right += int(scores[[words[c] for c in document["choices"]]].argmax()) == document["answer"]
    assert float(done.stdout.strip().splitlines()[-1]) == pytest.approx(right / len(documents))
