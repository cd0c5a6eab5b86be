"""Loggers watch a run: they see every line of metrics, and none of their faults reaches the training."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

from blockyard.errors import InputError, MissingExtra
from blockyard.training import loggers
from blockyard.training.loggers import find_loggers, register_logger
from tests.fixtures.toy_training import toy_config, toy_trainer


class Seen:
    """Keeps all that it is told; fails where `fails` says."""

    fails = ""

    def __init__(self, folder, options, step):
        self.opened, self.rows, self.closed = (folder, options, step), [], 0
        type(self).last = self
        if self.fails == "open":
            raise OSError("no room\nand more")

    def log(self, step, row):
        if self.fails == "log" and step == 3:
            raise ValueError("cannot")
        self.rows.append((step, dict(row)))
        row.clear()

    def close(self):
        self.closed += 1
        if self.fails in ("close", "log"):
            raise RuntimeError("stuck")


@pytest.fixture
def seen(monkeypatch):
    """A class of its own for every test, registered as `seen`."""
    cls = type("Seen", (Seen,), {})
    monkeypatch.setitem(loggers._registered, "seen", cls)
    return cls


def run(out: Path, *, resume: bool = False, **options):
    trainer = toy_trainer(out, toy_config(**options), resume=resume)
    try:
        trainer.run()
    finally:
        trainer.close()
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_logger_is_told_every_line_of_metrics_and_the_configuration(tmp_path, seen):
    rows = run(tmp_path / "run", log="seen")
    assert seen.last.rows == [(row["step"], row) for row in rows]
    assert seen.last.opened[0] == tmp_path / "run" and seen.last.opened[2] == 0
    assert seen.last.opened[1]["train"]["log"] == "seen"
    assert seen.last.closed == 1


def test_a_logger_of_a_resumed_run_is_told_where_it_stands(tmp_path, seen):
    trainer = toy_trainer(tmp_path / "run", toy_config())
    trainer.advance(5)
    trainer.save()
    trainer.close()
    run(tmp_path / "run", resume=True, log="seen")
    assert seen.last.opened[2] == 5 and [step for step, _ in seen.last.rows] == list(range(6, 13))


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        ("open", "the logger seen failed on opening and is left out: OSError: no room"),
        ("log", "the logger seen failed at step 3 and is left out: ValueError: cannot"),
        ("close", "the logger seen failed on closing and is left out: RuntimeError: stuck"),
    ],
)
@pytest.mark.parametrize("progress", [True, False], ids=["shown", "quiet"])
def test_a_logger_that_fails_is_named_once_and_the_run_is_what_it_would_be(
    tmp_path, seen, capsys, fails, told, progress
):
    plain = run(tmp_path / "plain")
    seen.fails = fails
    rows = run(tmp_path / "run", log="seen", progress=progress)
    lines = [line for line in capsys.readouterr().err.splitlines() if "logger" in line]
    assert lines == [told]
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]


def test_one_that_fails_leaves_the_others(tmp_path, seen, monkeypatch):
    seen.fails = "log"
    other = type("Other", (Seen,), {})
    monkeypatch.setitem(loggers._registered, "other", other)
    run(tmp_path / "run", log=" seen, other ")
    assert len(seen.last.rows) == 2 and len(other.last.rows) == 12


def test_an_unknown_logger_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(InputError, match=r"train.log='tensorbord' is no logger \(did you mean 'tensorboard'\?\)"):
        toy_trainer(tmp_path / "run", toy_config(log="tensorbord"))
    assert not (tmp_path / "run").exists()


def test_a_logger_that_refuses_leaves_no_folder(tmp_path, monkeypatch):
    def refuse(folder, options, step):
        raise InputError("log in first")

    monkeypatch.setitem(loggers._registered, "strict", refuse)
    with pytest.raises(InputError, match="log in first"):
        toy_trainer(tmp_path / "run", toy_config(log="strict"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"log": "tensorboard"}, {"tensorboard": True}], ids=["log", "as before"])
def test_tensorboard_that_is_not_installed_names_its_extra(tmp_path, monkeypatch, options):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra, match=r"pip install 'blockyard\[tensorboard\]'"):
        toy_trainer(tmp_path / "run", toy_config(**options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options", [{"log": "tensorboard"}, {"tensorboard": True}, {"log": "tensorboard", "tensorboard": True}]
)
def test_tensorboard_has_the_figures_and_the_configuration(tmp_path, options):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = run(tmp_path / "run", **options)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"], rel=1e-6)) for row in rows]
    config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    width: " in config


def test_an_installed_logger_is_found_by_its_entry_point(monkeypatch):
    point = metadata.EntryPoint("theirs", "tests.training.test_loggers:Seen", "blockyard.loggers")
    broken = metadata.EntryPoint("broken", "tests.training.test_loggers:Nothing", "blockyard.loggers")
    monkeypatch.setattr(loggers, "_registered", dict(loggers._registered))
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point, broken] if group == "blockyard.loggers" else [])
    assert find_loggers("theirs")["theirs"].__name__ == "Seen"
    with pytest.raises(InputError, match=r"logger 'broken' .* cannot be imported: AttributeError"):
        find_loggers("broken")


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(loggers, "_registered", dict(loggers._registered))
    assert register_logger("mine")(Seen) is Seen
    register_logger("mine")(Seen)
    with pytest.raises(InputError, match="there is a logger 'mine' already"):
        register_logger("mine")(lambda folder, options, step: None)
    with pytest.raises(InputError, match="is no name for a logger"):
        register_logger("a,b")
