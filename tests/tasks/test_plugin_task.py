"""Tasks by name: a plug-in's own task trains, resumes, loads, compares and is refused like the built-in ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toy_task  # registers the task `majority`
from blockyard.cli import main
from blockyard.compare import measure
from blockyard.errors import InputError
from blockyard.report import html, write
from blockyard.report import text as report_text
from blockyard.tasks.kind import TaskKind, register_task, task_kind, task_names
from blockyard.tasks.run import load_run, train
from blockyard.tasks.settings import as_groups, resolve
from tests.fixtures.cli import error_of
from tests.fixtures.folders import PLUGINS

yaml = pytest.importorskip("yaml")
TINY = {
    "model.d_model": 16,
    "model.n_layers": 1,
    "model.n_heads": 2,
    "train.batch_size": 8,
    "train.compile": "off",
    "train.device": "cpu",
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(measure, "ROUND_SECONDS", 0.005)
    monkeypatch.setattr(measure, "ROUNDS", 2)
    yield
    torch.set_num_threads(threads)


def words(verb: str, out: Path, **settings: Any) -> list[str]:
    flags = {**TINY, "out": out, **settings}
    return [verb, "majority", "--plugin", "toy_task", *(f"--{name}={value}" for name, value in flags.items())]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_plug_ins_task_trains_resumes_and_loads(tmp_path: Path) -> None:
    whole = {"train.steps": 6, "train.log_every": 1, "train.save_every": 2, "train.progress": "false"}
    assert main(words("train", tmp_path / "whole", **whole)) == 0
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["task"] == "majority"
    # The folder as a kill between two steps leaves it.
    out = tmp_path / "cut"
    groups = yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())
    from blockyard.tasks.run import make_task
    from blockyard.training.trainer import Trainer

    run = resolve(groups)
    trainer = Trainer(make_task(run), run.train, out, resolved=as_groups(run))
    trainer.advance(3)
    trainer.close()
    # The saved configuration names the plug-in and the task: nothing else need be said.
    assert main(["train", "majority", "--out", str(out), "--resume"]) == 0
    assert losses(out) == losses(tmp_path / "whole")
    model, assets, loaded = load_run(out)
    assert (type(model).__name__, assets, loaded.task) == ("MajorityModel", None, "majority")


def test_a_plug_ins_task_is_compared_by_its_own_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (write, html, report_text):
        monkeypatch.setattr(module, "charts_of", lambda found, parts: [])
    out = tmp_path / "out"
    terms = {"blocks": "standard,relu2", "seeds": 2, "budget.value": 8 * 8 * 12, "measure_memory": "false"}
    assert main(words("compare", out, evaluations=3, **terms)) == 0
    found = json.loads((out / "report.json").read_text())
    assert (found["task"], found["title"], found["input_unit"]) == ("majority", "majority voter", "digit")
    assert found["quality"]["better"] == "higher"
    for choice in found["choices"]:
        assert choice["cache_bytes_per_token"] is None and choice["speed"]["decode_wall"] is None
        for run in choice["runs"]:
            assert 0 <= run["final_quality"] <= run["best_quality"] <= 1
            assert run["quality"]["loss"][-1] == pytest.approx(run["final_quality"], abs=1e-4)
            assert 0 < run["figures"]["ones"] < 32
    means = [row["final"]["mean"] for row in found["ranking"]]
    assert means == sorted(means, reverse=True)
    page = (out / "report.html").read_text()
    assert "final accuracy" in page and "digits" in page and "token" not in page.split("Provenance")[0]


def test_peak_memory_is_measured_for_any_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PLUGINS))
    run = resolve({"task": "majority", "plugins": ["toy_task"], "model": {"d_model": 512, "n_layers": 2}})
    found = measure.peak_memory({"standard": run})["standard"]
    if found["peak_bytes"] is None and found["how"].startswith("not measured: this system"):
        pytest.skip(found["how"])
    # Two blocks of 12 * 512**2 weights with their gradients alone.
    assert found["peak_bytes"] > 2 * 12 * 512**2 * 4 * 2


def test_a_task_that_lacks_something_is_refused_before_its_folder_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Lacking(toy_task.MajorityTask):
        def __init__(self, run: Any, data: Any) -> None:
            super().__init__(run, data)
            del self.tokens_per_step, self.fingerprint

    monkeypatch.setattr(toy_task, "MajorityTask", Lacking)
    for verb, more in (("train", {"train.steps": 1}), ("compare", {"blocks": "standard", "budget.value": 640})):
        told = error_of(capsys, *words(verb, tmp_path / verb, **more))
        assert told.startswith("Lacking lacks tokens_per_step, fingerprint: a Task has model, tokens_per_step")
        assert not (tmp_path / verb / "config.yaml").exists()


def test_bounds_of_the_blocks_hold_for_a_configuration_that_forgets_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = error_of(capsys, *words("train", tmp_path / "out", **{"model.digits": 0}))
    assert told == "digits=0 should be at least 1"
    monkeypatch.setattr(toy_task.MajorityConfig, "__post_init__", lambda self: None)
    told = error_of(capsys, *words("train", tmp_path / "out", **{"model.n_layers": 0}))
    assert told == "n_layers=0 should be at least 1"


def test_a_mixture_trains_with_its_balance_and_the_ranking_figure_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words("train", tmp_path / "out", **{"train.steps": 2, "train.log_every": 1, "ffn.impl": "moe"})
    assert main(given) == 0
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["loss/balance"] > 0 and row["task_loss"] < row["loss"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("step 2: loss ") and f"val_accuracy {row['val_accuracy']:.4f}; " in last


def test_commands_of_a_task_say_what_it_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "majority", "--plugin", "toy_task", "--help"]) == 0
    assert "train the task 'majority': Which digit is in the majority.\n" in capsys.readouterr().out
    told = error_of(capsys, "compare", "majority", "--plugin", "toy_task", "--lengths", "8,16")
    assert told == "--lengths: models of the task 'majority' have one length (Majority defines no at_length)"
    told = error_of(capsys, "info", "majority", "--plugin", "toy_task")
    assert told == "'majority' is a task, not a block: `blockyard train majority --help` shows its options"


def test_a_task_of_another_command_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("task: majority\n")
    told = error_of(capsys, "train", "lm", "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "out"))
    assert told == f"{tmp_path / 'run.yaml'}: task='majority', but this command is of the task 'lm'"


def test_generate_refuses_a_run_of_another_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"task": "majority", "plugins": ["toy_task"], "model": {"d_model": 8, "n_layers": 1, "n_heads": 1}}
    train({**groups, "train": {"steps": 1, "compile": "off", "progress": False, "batch_size": 2}}, tmp_path / "run")
    told = error_of(capsys, "generate", str(tmp_path / "run"))
    assert told == f"{tmp_path / 'run'} holds a run of `train majority`; this takes one of `train lm`"


def test_an_unknown_task_is_told_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no task named 'ln'"):
        task_kind("ln")
    assert "no command named 'train ml'" in error_of(capsys, "train", "ml")


def test_a_taken_task_name_is_refused() -> None:
    with pytest.raises(InputError, match="task name 'lm' is already registered"):
        register_task(type("Other", (TaskKind,), {"name": "lm"}))
    with pytest.raises(InputError, match="should be one word"):
        register_task(type("Other", (TaskKind,), {"name": "two words"}))


def test_settings_without_a_task_are_of_a_language_model() -> None:
    run = resolve({"model": {"d_model": 16}})
    assert run.task == "lm"
    assert as_groups(run)["task"] == "lm"
    assert resolve(as_groups(run)) == run


def test_a_run_written_before_there_were_tasks_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the same old text " * 100)
    options = {"steps": 4, "save_every": 2, "batch_size": 2, "compile": "off", "progress": False, "eval_batches": 1}
    groups = {
        "model": {"d_model": 8, "n_layers": 1, "n_heads": 1, "context": 8},
        "data": {"path": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path / "cache")},
        "train": options,
    }
    out = train(groups, tmp_path / "run")
    written = yaml.safe_load((out / "config.yaml").read_text())
    written.pop("task")
    (out / "config.yaml").write_text(yaml.safe_dump(written))
    for state in out.glob("checkpoints/*/state.json"):
        content = json.loads(state.read_text())
        content["config"].pop("task")
        # As the first format had it: no checksum of itself, no word on the data.
        del content["sha256"], content["data"]
        state.write_text(json.dumps(content | {"format": 1}))
    assert train(groups, out, resume=True) == out
    assert load_run(out).run.task == "lm"


@pytest.mark.parametrize("name", task_names())
def test_every_built_in_kind_says_what_it_is(name: str) -> None:
    kind = task_kind(name)
    assert kind.title and kind.data_title and kind.unit
    assert set(kind.from_data) <= set(kind.model_config.__dataclass_fields__)
