"""Runs of ours as models of the family, and back; classifiers of the family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from blockyard import InputError
from blockyard.tasks import load_run, train
from tests.fixtures.hf_models import VOCABULARY, family_model, prompts

transformers = pytest.importorskip("transformers")

from blockyard.hf import BlockyardForSequenceClassification, from_run, to_run  # noqa: E402

TRAIN = {"steps": 2, "batch_size": 4, "compile": "off", "threads": 1, "progress": False, "device": "cpu"}
SIZES = {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16}


@pytest.fixture(scope="module")
def lm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "text.txt").write_text("the yard has many blocks and one gate. " * 60)
    groups: dict[str, Any] = {
        "model": SIZES,
        "attn": {"impl": "tva"},
        "ffn": {"impl": "vft"},
        "data": {"path": str(folder / "text.txt"), "cache_dir": str(folder / "cache")},
        "train": TRAIN,
    }
    return train(groups, folder / "run", task="lm")


@pytest.fixture(scope="module")
def classify_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classify")
    rows = "".join(f"sound {i % 7} of {word},{word}\n" for i in range(20) for word in ("cat", "dog", "cow"))
    (folder / "rows.csv").write_text("text,label\n" + rows)
    groups = {"model": SIZES, "data": {"path": str(folder / "rows.csv")}, "train": TRAIN}
    return train(groups, folder / "run", task="classify")


def test_a_run_becomes_a_model_that_ends_where_its_documents_do(lm_run: Path, tmp_path: Path):
    trained, model = load_run(lm_run), from_run(lm_run)
    ids = torch.tensor([trained.assets.encode("the yard")])
    assert torch.equal(model(ids).logits, trained.model(ids).logits) and not model.training
    assert model.config.eos_token_id == trained.assets.separator_id
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, trained.model(ids).logits)
    assert again.generation_config.eos_token_id == trained.assets.separator_id


def test_what_was_trained_further_becomes_a_run_that_commands_read(lm_run: Path, tmp_path: Path, run: Any):
    model = from_run(lm_run)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    out = to_run(model, tmp_path / "further", like=lm_run)
    ids = torch.tensor([list(b"the yard")])
    assert torch.equal(load_run(out).model(ids).logits, model(ids).logits)
    done = run("generate", str(out), "--prompt", "the", "--tokens", "4", "--temperature", "0")
    assert done.status == 0 and done.out
    with pytest.raises(InputError, match="already holds a run"):
        to_run(model, out, like=lm_run)
    with pytest.raises(InputError, match="another architecture than"):
        to_run(family_model("standard"), tmp_path / "other", like=lm_run)
    assert not (tmp_path / "other").exists()


def test_adapters_are_merged_before_a_run_is_written(lm_run: Path, tmp_path: Path):
    peft = pytest.importorskip("peft")
    model = from_run(lm_run)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2))
    with pytest.raises(InputError, match="merge adapters"):
        to_run(adapted, tmp_path / "a", like=lm_run)
    with pytest.raises(InputError, match=r"is no weight of lm models; merge adapters \(merge_and_unload\) first"):
        to_run(model, tmp_path / "a", like=lm_run)
    to_run(adapted.merge_and_unload(), tmp_path / "a", like=lm_run)
    ids = torch.tensor([list(b"the yard")])
    assert torch.equal(load_run(tmp_path / "a").model(ids).logits, from_run(lm_run)(ids).logits)


def test_a_classifier_run_has_its_labels(classify_run: Path, tmp_path: Path):
    trained, model = load_run(classify_run), from_run(classify_run)
    assert isinstance(model, BlockyardForSequenceClassification)
    assert tuple(model.config.id2label.values()) == tuple(trained.assets.labels)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([list(b"sound 1 of cat"), list(b"sound 1 of dog")])
    mask = torch.ones_like(ids)
    mask[0, 10:] = 0
    expected = trained.model(ids, padding_mask=mask).logits
    assert torch.equal(again(ids, attention_mask=mask).logits, expected)
    labels = torch.tensor([0, 2])
    torch.testing.assert_close(
        again(ids, attention_mask=mask, labels=labels).loss, torch.nn.functional.cross_entropy(expected, labels)
    )
    out = to_run(again, tmp_path / "run", like=classify_run)
    assert torch.equal(load_run(out).model(ids, padding_mask=mask).logits, expected)


@pytest.mark.parametrize("choice", ["spectral", "mla", "moe", "tva+vft"])
def test_a_language_model_becomes_a_classifier_with_a_new_head(choice: str, tmp_path: Path):
    lm = family_model(choice)
    lm.save_pretrained(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5)
    assert model(prompts()).logits.shape == (2, 5)
    name = next(name for name, _ in lm.named_parameters() if name.startswith("model.layers"))
    assert torch.equal(model.get_parameter(name), lm.get_parameter(name))
    model.train()
    loss = model(prompts(), labels=torch.tensor([1, 4])).loss
    loss.backward()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.step()
    assert float(model(prompts(), labels=torch.tensor([1, 4])).loss.detach()) < float(loss.detach())


def test_regression_and_several_labels_follow_the_problem_type(tmp_path: Path):
    family_model("standard").save_pretrained(tmp_path)
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    one = load(tmp_path, num_labels=1, problem_type="regression")
    expected = one(prompts()).logits[:, 0].square().mean()
    torch.testing.assert_close(one(prompts(), labels=torch.zeros(2)).loss, expected)
    many = load(tmp_path, num_labels=3, problem_type="multi_label_classification")
    assert many(prompts(), labels=torch.ones(2, 3)).loss.ndim == 0


def test_a_language_model_with_learned_positions_is_no_classifier():
    from blockyard.hf import BlockyardConfig

    config = BlockyardConfig(architecture={"vocab_size": VOCABULARY, "positions": "learned", "n_layers": 1})
    with pytest.raises(InputError, match="has no learned positions"):
        BlockyardForSequenceClassification(config)
