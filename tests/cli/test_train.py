"""`train lm` from the command line: what it writes, how it resumes, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from blockyard.cli import main
from blockyard.tasks.run import train_lm
from blockyard.training.checkpoint import STATE_SUM, state_digest
from tests.fixtures.cli import TEXT, error_of, words

yaml = pytest.importorskip("yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and a finished run of it."""
    folder = tmp_path_factory.mktemp("cli_train")
    (folder / "text.txt").write_text(TEXT)
    assert main([*words(folder), "--out", str(folder / "run")]) == 0
    return folder


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def snapshot(run: Path) -> dict[str, bytes]:
    """Every file of a run but its lock."""
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != "lock"}


def test_run_folder_holds_settings_metrics_and_checkpoints(folder: Path) -> None:
    run = folder / "run"
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"]["d_model"] == 16
    assert settings["attn"]["impl"] == "standard"
    assert settings["train"]["steps"] == 2
    rows = metrics(run)
    assert {"step", "loss", "tokens", "seconds"} <= set(rows[0])
    assert any("val_loss" in row for row in rows)
    assert list((run / "checkpoints").glob("step-*"))


def test_run_repeats_from_its_own_settings_file(folder: Path) -> None:
    again = folder / "again"
    assert main(["train", "lm", "--config", str(folder / "run" / "config.yaml"), "--out", str(again)]) == 0
    assert [row["loss"] for row in metrics(again)] == [row["loss"] for row in metrics(folder / "run")]


def test_finished_run_resumes_with_nothing_but_its_folder(folder: Path) -> None:
    before = [row["loss"] for row in metrics(folder / "run")]
    assert main(["train", "lm", "--out", str(folder / "run"), "--resume"]) == 0
    assert [row["loss"] for row in metrics(folder / "run")] == before


def test_the_document_s_command_line_trains(folder: Path) -> None:
    out = folder / "vein"
    command = words(folder, **{"attn.impl": "tva", "ffn.impl": "vft", "vft.rank": 4})
    assert main([*command, "--out", str(out)]) == 0
    assert yaml.safe_load((out / "config.yaml").read_text())["vft"]["rank"] == 4


def test_norm_of_the_model_reaches_a_paired_block(folder: Path) -> None:
    from blockyard.tasks.run import load_run

    out = folder / "post"
    command = words(folder, **{"attn.impl": "tva", "ffn.impl": "vft", "model.norm_position": "post"})
    assert main([*command, "--out", str(out)]) == 0
    _, _, run = load_run(out)
    assert run.model.norm_position == "post"
    assert "norm_position" not in yaml.safe_load((out / "config.yaml").read_text())["vft"]


def test_pattern_of_layers_trains(folder: Path) -> None:
    out = folder / "pattern"
    command = words(folder, **{"model.pattern": "standard[window=8]+relu2/standard", "model.n_layers": 2})
    assert main([*command, "--out", str(out)]) == 0
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert "window=8" in saved["model"]["pattern"]
    assert "impl" not in saved.get("attn", {})


def test_run_of_a_pattern_resumes_with_nothing_but_its_folder(folder: Path) -> None:
    out = folder / "pattern-again"
    command = words(folder, **{"model.pattern": "standard[window=8]+relu2/standard", "model.n_layers": 2})
    assert main([*command, "--out", str(out)]) == 0
    assert main(["train", "lm", "--out", str(out), "--resume"]) == 0


def test_run_without_a_folder_takes_the_next_free_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "runs" / "lm-001").mkdir(parents=True)
    assert main(words(folder)) == 0
    assert (folder / "runs" / "lm-002" / "config.yaml").exists()


@pytest.mark.parametrize("agreed", [["--plugin", "cli_plugin_trained"], ["--trust"]], ids=["named", "trusted"])
def test_plugin_named_in_a_settings_file_brings_its_options_once_agreed_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], agreed: list[str]
) -> None:
    from blockyard.registry import register as registry

    (folder / "cli_plugin_trained.py").write_text(
        "from torch import nn\n"
        "from blockyard.registry.register import register_ffn\n"
        "@register_ffn('cli_trained')\n"
        "class Trained(nn.Module):\n"
        "    '''One matrix.\n\n    Args:\n        factor: multiplies.\n    '''\n"
        "    def __init__(self, d_model: int, *, factor: float = 1.0):\n"
        "        super().__init__()\n"
        "        self.factor, self.mix = factor, nn.Linear(d_model, d_model)\n"
        "    def forward(self, x): return self.factor * self.mix(x)\n"
    )
    monkeypatch.syspath_prepend(folder)
    settings = folder / "plugin.yaml"
    settings.write_text("plugins: [cli_plugin_trained]\nffn: {impl: cli_trained}\ncli_trained: {factor: 0.5}\n")
    out = folder / f"plugin{len(agreed)}"
    try:
        assert main([*words(folder), "--config", str(settings), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert "plugin.yaml wants the plug-in cli_plugin_trained, whose code would run" in told
        assert "--plugin cli_plugin_trained" in told
        assert "--trust" in told
        assert not out.exists()
        assert main([*words(folder), "--config", str(settings), "--out", str(out), *agreed]) == 0
    finally:
        sys.modules.pop("cli_plugin_trained", None)
        registry._register.entries.pop(("ffn", "cli_trained"), None)
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["plugins"] == ["cli_plugin_trained"]
    assert saved["cli_trained"]["factor"] == 0.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model.d_modle": 16}, "--model.d_modle: no option 'd_modle' (did you mean 'd_model'?)"),
        ({"vft.rnak": 4}, "(did you mean 'rank'?)"),
        ({"vft.rank": 4}, "--vft.rank: 'rank' is an option of: tva, vft"),
        ({"attn.impl": "standart"}, "no attention named 'standart'. Did you mean 'standard'?"),
        ({"model.d_model": "wide"}, "--model.d_model='wide' should be int"),
        ({"train.optimizer": "sgd"}, "--train.optimizer='sgd' should be muon | adamw"),
        ({"train.steps": 0}, "train.steps=0"),
        ({"train.lr": "nan"}, "train.lr=nan"),
        ({"model.n_layers": 0}, "n_layers=0"),
        ({"model.n_heads": 3}, "n_heads=3 does not divide d_model=16"),
        ({"model.context": 100_000}, "context"),
        ({"data.path": "FOLDER/none.txt"}, "none.txt"),
        ({"data.path": "FOLDER/empty.txt"}, "empty.txt"),
        ({"data.path": "FOLDER/binary.txt"}, "binary.txt"),
        ({"data.path": "FOLDER/latin1.txt"}, "UTF-8"),
        ({"data.path": "FOLDER/short.txt"}, "context"),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_bad_input_is_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], told: str
) -> None:
    (folder / "empty.txt").write_bytes(b"")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (folder / "latin1.txt").write_bytes("çà et là\n".encode("latin-1") * 100)
    (folder / "short.txt").write_text("short")
    given = {k: v.replace("FOLDER", str(folder)) if isinstance(v, str) else v for k, v in settings.items()}
    out = folder / "refused"
    assert told in error_of(capsys, *words(folder, **given), "--out", str(out))
    assert not (out / "checkpoints").exists()


def test_resume_with_another_setting_is_refused_and_nothing_is_lost(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder / "run")
    told = error_of(capsys, "train", "lm", "--out", str(folder / "run"), "--resume", "--model.d_model", "32")
    assert "model.d_model" in told
    assert snapshot(folder / "run") == before


def test_resume_of_nothing_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to resume" in error_of(capsys, *words(folder), "--out", str(folder / "none"), "--resume")


def test_resume_without_a_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, *words(folder), "--resume") == "--resume needs the run to go on with: --out DIR"


def test_folder_that_holds_a_run_is_refused_and_nothing_is_lost(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(folder / "run")
    assert "already holds a run" in error_of(capsys, *words(folder), "--out", str(folder / "run"))
    assert snapshot(folder / "run") == before


def test_folder_in_use_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from blockyard.training.folder import RunFolder

    held = RunFolder(folder / "run", resume=True)
    try:
        assert "in use" in error_of(capsys, "train", "lm", "--out", str(folder / "run"), "--resume")
    finally:
        held.close()


def test_out_that_is_a_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "text.txt" in error_of(capsys, *words(folder), "--out", str(folder / "text.txt"))
    assert (folder / "text.txt").read_text() == TEXT


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_truncated_checkpoint_is_refused_and_named(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run = folder / f"truncated-{name}"
    shutil.copytree(folder / "run", run)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1] / name
    newest.write_bytes(newest.read_bytes()[:50])
    assert str(newest) in error_of(capsys, "train", "lm", "--out", str(run), "--resume")


def test_edited_settings_of_a_run_are_refused_with_their_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "edited"
    shutil.copytree(folder / "run", run)
    (run / "config.yaml").write_text("model:\n  d_model: 16\n   n_layers: 1\n")
    told = error_of(capsys, "train", "lm", "--out", str(run), "--resume")
    assert told.startswith(f"settings file {str(run / 'config.yaml')!r}, line 3: ")


def test_several_processes_must_name_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert error_of(capsys, *words(folder)) == "several processes train one run: name its folder with --out DIR"


def test_resuming_with_more_steps_and_nothing_else_extends_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "longer"
    shutil.copytree(folder / "run", out)
    assert main(["train", "lm", f"--out={out}", "--resume", "--train.steps=5", "--train.progress=true"]) == 0
    assert "extended from 2 to 5 steps" in capsys.readouterr().err
    assert metrics(out)[-1]["step"] == 5


@pytest.mark.parametrize("blocks", [{}, {"attn": {"impl": "tva"}, "ffn": {"impl": "vft"}, "vft": {"rank": 2}}], ids=str)
def test_a_run_begun_in_python_goes_on_from_the_command_line(tmp_path: Path, blocks: dict[str, Any]) -> None:
    """Python names the options that were given, the command line all; the rest have their defaults in both."""
    (tmp_path / "text.txt").write_text(TEXT)
    groups = {
        "model": {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16},
        "data": {"path": str(tmp_path / "text.txt"), "cache_dir": str(tmp_path / "cache")},
        "train": {"steps": 2, "batch_size": 4, "eval_batches": 1, "compile": "off", "progress": False},
        **blocks,
    }
    train_lm(groups, tmp_path / "run")
    assert main(["train", "lm", f"--out={tmp_path / 'run'}", "--resume", "--train.steps=4"]) == 0
    assert metrics(tmp_path / "run")[-1]["step"] == 4


def test_a_run_of_a_version_that_lacked_an_option_goes_on_and_another_value_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "lacking"
    shutil.copytree(folder / "run", out)
    settings = yaml.safe_load((out / "config.yaml").read_text())
    del settings["train"]["z_loss_weight"], settings["model"]["dropout"]
    (out / "config.yaml").write_text(yaml.safe_dump(settings))
    for state in out.glob("checkpoints/*/state.json"):
        content = json.loads(state.read_text())
        content["config"] = settings
        del content[STATE_SUM]
        state.write_text(json.dumps(content | {STATE_SUM: state_digest(content)}))
    words = ["train", "lm", f"--out={out}", "--resume", "--train.steps=3"]
    assert main(words) == 0
    capsys.readouterr()
    assert "train.z_loss_weight (was 0.001, now 0.5)" in error_of(capsys, *words, "--train.z_loss_weight=0.5")
