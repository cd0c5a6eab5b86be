"""`train_lm` end to end: what its run folder holds, resumes and loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig, TransformerLM
from blockyard.tasks.lm.task import LMTask, build_lm
from blockyard.tasks.run import load_run, train_lm
from blockyard.text import TextDataConfig, load_text
from blockyard.training.config import TrainConfig


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(97 + (i * i + i // 7) % 26) for i in range(6000)))
    return path


def tiny(text: Path, **train: Any) -> dict[str, Any]:
    return {
        "model": {"d_model": 16, "n_layers": 2, "n_heads": 2, "context": 16},
        "data": {"path": str(text), "cache_dir": str(text.parent / "cache")},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "eval_every": 3,
            "eval_batches": 2,
            "log_every": 1,
            "compile": "off",
            "threads": 1,
            "progress": False,
            **train,
        },
    }


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_holds_all_that_using_the_model_takes(tmp_path: Path, text: Path) -> None:
    out = train_lm(tiny(text), tmp_path / "run")
    model, tokenizer, run = load_run(out)
    assert not model.training and run.train.steps == 6
    assert tokenizer.decode(tokenizer.encode("vein")) == "vein"
    data = load_text(run.data, run.model.context)
    with torch.no_grad():
        losses = [
            float(model(b["input_ids"], targets=b["targets"]).loss)
            for b in data.val_batches(run.train.batch_size, limit=run.train.eval_batches)
        ]
    assert sum(losses) / len(losses) == pytest.approx(rows(out)[-1]["val_loss"], abs=2e-2)
    environment = json.loads((out / "environment.json").read_text())
    assert environment["data"]["sha256"] == data.fingerprint["sha256"]
    assert environment["packages"]["torch"] == torch.__version__


def test_the_written_configuration_runs_again_to_the_same_numbers(tmp_path: Path, text: Path) -> None:
    first = train_lm(tiny(text), tmp_path / "first")
    again = train_lm(yaml.safe_load((first / "config.yaml").read_text()), tmp_path / "again")
    assert [r["loss"] for r in rows(first)] == [r["loss"] for r in rows(again)]


def test_losses_of_word_pieces_are_also_given_per_byte(tmp_path: Path, text: Path) -> None:
    groups = tiny(text)
    groups["data"] |= {"tokenizer": "bpe", "vocab_size": 300}
    last = rows(train_lm(groups, tmp_path / "run"))[-1]
    assert 0 < last["val_loss_per_byte"] < last["val_loss"]


def test_checkpointed_activations_change_no_number(tmp_path: Path, text: Path) -> None:
    options = {"precision": "fp32"}
    plain, recomputed = tiny(text, **options), tiny(text, checkpoint_activations=True, **options)
    for groups in (plain, recomputed):
        groups["model"]["dropout"] = 0.2
    a, b = rows(train_lm(plain, tmp_path / "a")), rows(train_lm(recomputed, tmp_path / "b"))
    assert [r["loss"] for r in a] == pytest.approx([r["loss"] for r in b], rel=1e-6)


def test_the_best_checkpoint_can_be_asked_for(tmp_path: Path, text: Path) -> None:
    out = train_lm(tiny(text, save_every=2, keep=1), tmp_path / "run")
    best = min((r for r in rows(out) if "val_loss" in r), key=lambda r: r["val_loss"])
    assert load_run(out, which="best")[2].train.steps == 6
    assert (out / "checkpoints" / f"step-{best['step']:08d}").is_dir()


def test_what_the_configuration_of_an_older_run_lacks_is_said_once(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = train_lm(tiny(text), tmp_path / "run")
    now = load_run(out)
    assert "note:" not in capsys.readouterr().err
    config = yaml.safe_load((out / "config.yaml").read_text())
    del config["task"], config["train"]["schedule"], config["model"]["dropout"]
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    then = load_run(out)
    told = capsys.readouterr().err
    assert "does not say task, model.dropout, train.schedule (an older version wrote it)" in told
    assert told.count("\n") == 1
    assert then.run == now.run
    load_run(out)
    assert capsys.readouterr().err == ""


def test_loading_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path)


def test_loading_a_run_without_a_checkpoint_is_refused(tmp_path: Path, text: Path) -> None:
    out = train_lm(tiny(text), tmp_path / "run")
    for folder in (out / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_run(out)


def test_an_unreadable_configuration_is_refused(tmp_path: Path, text: Path) -> None:
    out = train_lm(tiny(text), tmp_path / "run")
    (out / "config.yaml").write_text("model: [unclosed")
    with pytest.raises(InputError, match=r"config\.yaml', line 1: expected"):
        load_run(out)


def test_a_lost_tokenizer_is_written_again_on_resume(tmp_path: Path, text: Path) -> None:
    groups = tiny(text)
    groups["data"] |= {"tokenizer": "bpe", "vocab_size": 300}
    out = train_lm(groups, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (out / "tokenizer").iterdir()}
    shutil.rmtree(out / "tokenizer")
    train_lm(groups, out, resume=True)
    assert {path.name: path.read_bytes() for path in (out / "tokenizer").iterdir()} == before


def test_changed_text_is_refused_on_resume(tmp_path: Path, text: Path) -> None:
    out = train_lm(tiny(text), tmp_path / "run")
    text.write_text(text.read_text().upper())
    with pytest.raises(InputError, match="--resume with other data"):
        train_lm(tiny(text), out, resume=True)


def test_initial_weights_follow_the_seed_and_leave_the_random_state_alone() -> None:
    config = LMConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=2)
    before = torch.get_rng_state()
    a, b, c = build_lm(config, 1), build_lm(config, 1), build_lm(config, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.token_embeddings.weight, b.token_embeddings.weight)
    assert not torch.equal(a.token_embeddings.weight, c.token_embeddings.weight)


class RoutedLM(TransformerLM):
    """A model with an auxiliary loss."""

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        output = super().forward(*arguments, **keywords)
        output.aux = {"losses": {"balance": torch.tensor(2.0)}}
        return output


def test_auxiliary_losses_are_weighted_and_logged(text: Path) -> None:
    data = load_text(TextDataConfig(path=str(text), cache_dir=str(text.parent / "cache")), 16)
    model_config = LMConfig(vocab_size=256, d_model=8, n_layers=1, n_heads=2, context=16)
    task = LMTask(model_config, data, TrainConfig(batch_size=2, aux_loss_weight=0.5))
    loss, stats = task.loss(RoutedLM(model_config), task.batch(0, slice(None)))
    assert float(loss.detach()) == pytest.approx(float(stats["lm_loss"]) + 1.0)
    assert float(stats["loss/balance"]) == 2.0


def test_resuming_with_another_tokenizer_is_refused(tmp_path: Path, text: Path) -> None:
    groups = tiny(text)
    mine = tmp_path / "mine"
    for number, vocabulary in enumerate("ab"):
        other = text.with_name(f"{vocabulary}.txt")
        other.write_text(f"{vocabulary * 3} " * 50)
        found = load_text(
            TextDataConfig(path=str(other), tokenizer="bpe", vocab_size=258, cache_dir=str(tmp_path / "cache")), 8
        )
        found.tokenizer.save(mine)
        groups["data"]["tokenizer"] = str(mine)
        if number == 0:
            train_lm(groups, tmp_path / "run")
    with pytest.raises(InputError, match="--resume with other data: the tokenizer of "):
        train_lm(groups, tmp_path / "run", resume=True)


def test_what_blocks_report_is_logged_for_every_layer(tmp_path: Path, text: Path) -> None:
    groups = tiny(text)
    groups |= {"attn": {"impl": "tva"}, "ffn": {"impl": "vft"}, "vft": {"metrics": True}}
    last = rows(train_lm(groups, tmp_path / "run"))[-1]
    assert all(0 <= last[f"layers.{i}/eps_mean"] <= last[f"layers.{i}/eps_max"] for i in range(2))
