"""Nothing is lost and nothing changes: kills, signals, full disks, damaged files, other configurations."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from blockyard.errors import InputError
from blockyard.training import folder as folder_module
from blockyard.training.checkpoint import list_checkpoints
from blockyard.training.folder import RunFolder
from blockyard.training.interrupt import Interrupted
from blockyard.training.optim import lr_factor
from tests.fixtures.folders import ROOT
from tests.fixtures.resume_choices import everything
from tests.fixtures.toy_training import toy_config, toy_trainer


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(list_checkpoints(out / "checkpoints")[-1][1] / "model.safetensors")


def numbers(out: Path) -> list[tuple]:
    """What a run computed, without what its clock showed."""
    return [(row["step"], row["loss"], row["grad_norm"], row.get("val_loss")) for row in metrics(out)]


def assert_same_run(a: Path, b: Path) -> None:
    assert numbers(a) == numbers(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def run(out: Path, *, resume: bool = False, stop_after: int | None = None, task: dict | None = None, **options) -> None:
    trainer = toy_trainer(out, toy_config(**options), resume=resume, **(task or {}))
    try:
        if stop_after is None:
            trainer.run()
        else:
            trainer.advance(stop_after)
    finally:
        trainer.close()


def survive(
    tmp_path: Path, kills: int, seed: int, *, choice: str = "dropout", optimizer: str = "muon", steps: int = 120
) -> int:
    """Run a choice whole, and once more with kills; returns how many hit, when nothing differs."""
    words = ["-m", "tests.kill.training", str(tmp_path), choice, optimizer, str(kills), str(seed), str(steps)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "BLOCKYARD_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    return json.loads(done.stdout)["kills"]


def random_seed() -> int:
    return int.from_bytes(os.urandom(4), "big")


def test_a_run_killed_at_random_moments_ends_with_the_same_numbers(tmp_path: Path) -> None:
    assert survive(tmp_path, 3, random_seed()) == 3


@pytest.mark.slow  # the run before is killed likewise, and every mixer in the slow tests
def test_a_spectral_run_killed_at_a_random_moment_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """Its gate once was the one parameter that did not lie in memory as its moments did after a resume."""
    assert survive(tmp_path, 1, random_seed(), choice="attn-spectral", optimizer="adamw", steps=30) == 1


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_numbers(tmp_path: Path) -> None:
    for round_ in range(3):
        (tmp_path / str(round_)).mkdir()
        assert survive(tmp_path / str(round_), 10, random_seed()) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("choice", "optimizer"), everything(), ids=lambda v: v)
def test_everything_registered_survives_kills(tmp_path: Path, choice: str, optimizer: str) -> None:
    """The campaign: two kills of each mixer, FFN, task and schedule with each optimizer."""
    assert survive(tmp_path, 2, random_seed(), choice=choice, optimizer=optimizer, steps=40) == 2


@pytest.mark.parametrize("stop_after", [1, 4, 7, 9, 11])
def test_a_run_resumed_anywhere_equals_an_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "parts", stop_after=stop_after)
    run(tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    before = numbers(tmp_path), weights(tmp_path)
    run(tmp_path, resume=True)
    assert numbers(tmp_path) == before[0]
    assert all(torch.equal(before[1][name], tensor) for name, tensor in weights(tmp_path).items())


def test_the_clock_goes_on_after_resuming(tmp_path: Path) -> None:
    run(tmp_path, stop_after=8)
    at_8 = json.loads((tmp_path / "checkpoints" / "step-00000008" / "state.json").read_text())["clock"]
    trainer = toy_trainer(tmp_path, toy_config(), resume=True)
    assert (trainer.tokens, trainer.seconds, trainer.cpu_seconds) == (80, at_8["seconds"], at_8["cpu_seconds"])
    trainer.run()
    trainer.close()
    assert trainer.tokens == 120 and trainer.seconds > at_8["seconds"]


def test_metrics_cut_short_by_a_kill_are_mended(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "cut", stop_after=11)
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    run(tmp_path / "cut", resume=True)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")


def test_another_configuration_is_refused_and_the_differences_named(tmp_path: Path) -> None:
    run(tmp_path, stop_after=5)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"train\.lr \(was .*, now 0\.5\); train\.steps \(was 12, now 99\)"):
        run(tmp_path, resume=True, lr=0.5, steps=99)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_options_that_change_no_number_may_differ_on_resume(tmp_path: Path) -> None:
    run(tmp_path, stop_after=5)
    run(tmp_path, resume=True, keep=5, save_every=1)
    assert metrics(tmp_path)[-1]["step"] == 12


@pytest.mark.parametrize("ended", [True, False], ids=["at its end", "before it"])
def test_more_steps_extend_a_run_and_the_schedules_change_is_said(tmp_path: Path, ended: bool, capsys) -> None:
    run(tmp_path, **({} if ended else {"stop_after": 9}), progress=True)
    before = [row for row in numbers(tmp_path) if row[0] <= 9]
    capsys.readouterr()
    run(tmp_path, resume=True, steps=20, progress=True)
    said = capsys.readouterr().err
    assert "extended from 12 to 20 steps: the cosine schedule is stretched over them" in said
    rows = metrics(tmp_path)
    assert rows[-1]["step"] == 20 and numbers(tmp_path)[: len(before)] == before
    # The rate is that of a run of 20 steps from here on.
    lr = {row["step"]: row["lr"] for row in rows}
    config = toy_config(steps=20)
    first = 13 if ended else 9
    assert all(lr[step] == lr_factor(step - 1, config) * config.adamw_lr for step in range(first, 21))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["train"]["steps"] == 20
    # And it goes on being that run, without another word.
    run(tmp_path, resume=True, steps=20, progress=True)
    assert "extended" not in capsys.readouterr().err
    with pytest.raises(InputError, match=r"train\.steps \(was 20, now 12\)"):
        run(tmp_path, resume=True)


def test_an_extended_run_that_is_interrupted_again_ends_with_the_same_numbers(tmp_path: Path) -> None:
    for name, stops in (("whole", [9]), ("parts", [9, 11, 15])):
        trainer = toy_trainer(tmp_path / name, toy_config())
        trainer.advance(9)
        trainer.save()
        trainer.close()
        for stop in stops[1:]:
            trainer = toy_trainer(tmp_path / name, toy_config(steps=20), resume=True)
            trainer.advance(stop - trainer.step)
            trainer.close()
        run(tmp_path / name, resume=True, steps=20)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_short_run_whose_warm_up_was_cut_may_be_extended(tmp_path: Path) -> None:
    run(tmp_path, steps=4, warmup=8)
    run(tmp_path, resume=True, steps=12, warmup=8)
    assert metrics(tmp_path)[-1]["step"] == 12


def test_extending_a_run_by_one_option_and_changing_another_is_refused(tmp_path: Path) -> None:
    run(tmp_path, stop_after=5)
    with pytest.raises(InputError, match=r"train\.beta1 .*; train\.steps \(was 12, now 99\)"):
        run(tmp_path, resume=True, beta1=0.5, steps=99)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, toy_config(keep=2, eval_every=0, save_every=2))
    trainer.advance(4)
    trainer.best = {"step": 4, "val_loss": -1.0}
    trainer.run()
    trainer.close()
    assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == [4, 10, 12]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_checkpoint_is_named_and_nothing_is_lost(tmp_path: Path, name: str, damage: str) -> None:
    run(tmp_path, stop_after=9)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1][1]
    file, content = newest / name, (newest / name).read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        file.write_bytes(b"\xff" * 40 + content[40:])
    else:
        file.unlink()
    with pytest.raises(InputError, match=rf"{name} .*remove .* to resume from step-0000000\d, which is older"):
        run(tmp_path, resume=True)
    # The advice works.
    for part in newest.iterdir():
        part.unlink()
    newest.rmdir()
    run(tmp_path, resume=True)
    assert metrics(tmp_path)[-1]["step"] == 12


def test_a_full_disk_is_a_clear_error_and_the_previous_checkpoint_is_intact(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    trainer = toy_trainer(tmp_path / "full", toy_config())
    trainer.advance(7)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Files cannot grow beyond a kilobyte: the write fails as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write checkpoint .*step-00000007.*intact"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    trainer.close()
    names = sorted(p.name for p in (tmp_path / "full" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000005"]
    run(tmp_path / "full", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_a_disk_that_fills_up_under_the_metrics_is_a_clear_error_and_the_run_goes_on_later(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    trainer = toy_trainer(tmp_path / "full", toy_config())
    trainer.advance(6)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "full" / "metrics.jsonl").stat().st_size + 10, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl"):
            trainer.advance(1)
        trainer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    run(tmp_path / "full", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "full")


def test_a_run_that_began_while_the_lock_was_waited_for_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folder_module.fcntl.flock

    def slow_lock(file: object, how: int) -> None:
        (tmp_path / "config.yaml").write_text("{}")
        lock(file, how)

    monkeypatch.setattr(folder_module.fcntl, "flock", slow_lock)
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(tmp_path, resume=False)


@pytest.mark.parametrize("edited", [{"decisions": {"foo": 1}}, {"decisions": 3}, {"data": [1]}, {}], ids=str)
def test_an_edited_environment_file_stops_no_run(tmp_path: Path, edited: dict) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "edited", stop_after=9)
    (tmp_path / "edited" / "environment.json").write_text(json.dumps(edited))
    run(tmp_path / "edited", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "edited")


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", 5), ("step", None), ("clock", None), ("data", {}), ("format", 1), ("sha256", "0" * 64), ("more", 1)],
    ids=str,
)
def test_an_edited_state_is_refused_in_one_line(tmp_path: Path, key: str, value: object) -> None:
    """A step changed by hand would resume to other weights, and nothing else would show it."""
    run(tmp_path, stop_after=9)
    file = list_checkpoints(tmp_path / "checkpoints")[-1][1] / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps(state | {key: value}))
    with pytest.raises(InputError, match=r"state\.json is not as it was written"):
        run(tmp_path, resume=True)


def test_a_state_may_be_written_with_other_spaces_and_another_order(tmp_path: Path) -> None:
    run(tmp_path, stop_after=9)
    file = list_checkpoints(tmp_path / "checkpoints")[-1][1] / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()), sort_keys=True))
    run(tmp_path, resume=True)
    assert metrics(tmp_path)[-1]["step"] == 12


@pytest.mark.parametrize("environment", ["as it was", "deleted", "edited"])
def test_other_data_are_refused_whatever_the_environment_file_says(tmp_path: Path, environment: str) -> None:
    run(tmp_path, stop_after=9)
    file = tmp_path / "environment.json"
    if environment == "deleted":
        file.unlink()
    elif environment == "edited":
        file.write_text(json.dumps(json.loads(file.read_text()) | {"data": {"sha256": "1"}}))
    with pytest.raises(InputError, match=r"other data: the data of .* had sha256 0, other now has 1"):
        run(tmp_path, resume=True, task={"fingerprint": {"source": "other", "sha256": "1"}})


def test_a_checkpoint_of_the_first_format_still_resumes(tmp_path: Path) -> None:
    run(tmp_path / "whole")
    run(tmp_path / "old", stop_after=9)
    file = list_checkpoints(tmp_path / "old" / "checkpoints")[-1][1] / "state.json"
    state = json.loads(file.read_text())
    del state["sha256"], state["data"]
    file.write_text(json.dumps(state | {"format": 1}))
    run(tmp_path / "old", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "old")


def test_what_a_kill_left_half_written_is_swept_away(tmp_path: Path) -> None:
    run(tmp_path, stop_after=5)
    half = tmp_path / "checkpoints" / ".writing-step-00000006"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".writing-0123").write_text("half an environment")
    run(tmp_path, resume=True)
    assert not half.exists()
    assert not (tmp_path / ".writing-0123").exists()


def test_links_in_a_run_folder_are_not_written_through(tmp_path: Path) -> None:
    """A link under the temporary name of the past, and ones under the names of what is appended to."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run(tmp_path / "run", stop_after=5)
    (tmp_path / "run" / ".environment.json.writing").symlink_to(victim)
    run(tmp_path / "run", resume=True)
    assert victim.read_text() == "mine"
    for name, told in (("lock", "symbolic link"), ("metrics.jsonl", "symbolic link")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).symlink_to(tmp_path / "nowhere")
        with pytest.raises(InputError, match=told):
            run(folder)
        assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_saves_first_and_the_run_goes_on_from_there(tmp_path: Path, number: signal.Signals) -> None:
    run(tmp_path / "whole", save_every=0, eval_every=0)
    trainer = toy_trainer(tmp_path / "stopped", toy_config(save_every=0, eval_every=0))
    batch = trainer.task.batch

    def batch_and_signal(step: int, rows: slice) -> dict[str, torch.Tensor]:
        if step == 6:
            os.kill(os.getpid(), number)
        return batch(step, rows)

    trainer.task.batch = batch_and_signal  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as stopped:
        trainer.run()
    trainer.close()
    assert stopped.value.code == 128 + number
    assert [step for step, _ in list_checkpoints(tmp_path / "stopped" / "checkpoints")] == [7]
    run(tmp_path / "stopped", resume=True, save_every=0, eval_every=0)
    assert numbers(tmp_path / "whole") == numbers(tmp_path / "stopped")


def test_the_folder_is_free_once_its_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from tests.fixtures.toy_training import *\n"
        "t = toy_trainer(Path(sys.argv[1]), toy_config()); t.advance(5); print('ready', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(ROOT)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    with pytest.raises(InputError, match="in use"):
        run(tmp_path, resume=True)
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(100):
        try:
            return run(tmp_path, resume=True)
        except InputError:
            time.sleep(0.05)
    pytest.fail("the folder stayed locked")


def test_resuming_with_an_edited_config_is_refused_and_names_the_option(tmp_path: Path) -> None:
    run(tmp_path / "run", stop_after=4)
    trainer = toy_trainer(tmp_path / "run", toy_config(), resume=True)
    trainer.save()
    trainer.close()
    config = tmp_path / "run" / "config.yaml"
    edited = yaml.safe_load(config.read_text())
    edited["train"]["beta1"] = 0.5
    config.write_text(yaml.safe_dump(edited))
    with pytest.raises(InputError, match=r"edited config.yaml: train.beta1 \(was 0.9, now 0.5\)"):
        toy_trainer(tmp_path / "run", toy_config(beta1=0.5), resume=True)
