"""A refusal comes before the work, stands alone, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from blockyard.cli import main
from blockyard.compare.plan import State
from blockyard.errors import InputError, InUse
from blockyard.files import check_writable, nothing_left
from blockyard.registry.pattern import parse_choice
from blockyard.registry.register import get_ffn
from blockyard.tasks.price.model import PriceConfig
from blockyard.tasks.run import train
from tests.fixtures.cli import TEXT, error_of, words
from tests.fixtures.malicious import groups_of, inputs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    given = inputs(tmp_path_factory.mktemp("inputs"))
    for task in ("lm", "classify"):
        train(groups_of(task, given, folder / "cache"), folder / task, task=task)
    return {"lm": folder / "lm", "classify": folder / "classify", "rows": given["rows"]}


def test_what_cannot_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, folder in ((tmp_path / "file" / "a", False), (tmp_path / "file", True), (tmp_path, False)):
        with pytest.raises(InputError, match="cannot write"):
            check_writable(path, folder=folder)
    with pytest.raises(InputError, match="device or a pipe"):
        check_writable("/dev/null")
    check_writable(tmp_path / "new" / "deep" / "file")
    check_writable(tmp_path / "new", folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_known_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path / "a")
    tmp_path.chmod(0o700)


def test_a_refusal_takes_away_what_was_made_for_it_alone(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("kept")
    for folder in (tmp_path / "there", tmp_path / "new" / "deep"):
        with pytest.raises(InputError), nothing_left(folder):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "lock").write_text("")
            (folder / "part").mkdir()
            raise InputError("no")
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["there", "there/mine"]
    with pytest.raises(InputError), nothing_left(tmp_path / "new") as keep:
        (tmp_path / "new").mkdir()
        keep()
        raise InputError("no")
    assert (tmp_path / "new").is_dir()


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"train.device": "cuda:77"}, "CUDA"),
        ({"train.parallel": "fsdp2", "train.vein_guide_steps": 1, "ffn.impl": "vft"}, ""),
        ({"train.vein_ranks": "99", "ffn.impl": "vft"}, "vein_ranks"),
        ({"train.threads": 10_000_000}, "train.threads=10000000 should be at most 4096"),
        ({"train.seed": 2**63 - 1}, "train.seed=9223372036854775807 should be at most"),
        ({"train.seed": 2**64}, "--train.seed='18446744073709551616' should be int"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_training_that_is_refused_leaves_no_folder(
    option: dict[str, Any], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "some" / "where"
    status = main([*words(tmp_path, **option), "--out", str(out)])
    told = capsys.readouterr().err
    if status == 2:
        assert line in told and told.count("\n") == 1
        assert not (tmp_path / "some").exists()
    else:
        assert not line and status == 0


def test_an_output_that_cannot_be_written_is_noticed_before_the_work(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    bad = str(tmp_path / "file" / "out")
    monkeypatch.chdir(tmp_path)

    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("the work was begun")

    for place in (
        "blockyard.text.readers.read_path", "blockyard.tasks.run.DataCache.fitted", "blockyard.compare.plan.make_plan",
        "blockyard.bench.decode.bench_decode", "blockyard.bench.blocks.bench_blocks",
        "blockyard.claims.collect.measure_claims", "blockyard.tasks.run.load_run",
        "blockyard.tasks.run.read_run", "blockyard.tasks.price.walk.walk_forward",
    ):  # fmt: skip
        monkeypatch.setattr(place, worked)
    lines = [
        ["train", "lm", "--out", bad],
        ["train", "recall", "--out", bad],
        ["compare", "lm", "--blocks", "standard", "--out", bad],
        ["bench", "decode", "--out", bad],
        ["bench", "blocks", "--out", bad],
        ["claims", "--page", bad],
        ["claims", "--resume", bad],
        ["classify", str(runs["classify"]), str(runs["rows"]), "--out", bad],
        ["forecast", "run", "--out", f"{bad}.csv"],
        ["forecast", "run", "--plot", f"{bad}.png"],
    ]
    for line in lines:
        assert "cannot write" in error_of(capsys, *line), line
    assert "--plot=a.xyz should end in one of .png" in error_of(capsys, "forecast", "run", "--plot", "a.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_of_generate_stands_alone(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    generate = ["generate", str(runs["lm"]), "--tokens", "2"]
    told = error_of(capsys, *generate, "--draft", str(runs["classify"]))
    assert told.endswith("holds a run of `train classify`; this takes one of `train lm`")
    assert "not UTF-8" in error_of(capsys, *generate, "--prompt", "gr\udcfcn")
    assert "--num_samples=10000000000 should be at most" in error_of(capsys, *generate, "--num_samples", "10000000000")
    assert main(generate) == 0
    assert capsys.readouterr().err.startswith("note: seed ")


def test_options_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(InputError, match=r"groups='one' belongs to layout=day"):
        PriceConfig(features=("close",), layout="patch", groups="one")
    with pytest.raises(InputError, match=r"stabilizer_rank=-1 belongs to stabilizer=lowrank"):
        get_ffn("vft", d_model=16, stabilizer_rank=-1, stabilizer="none")
    with pytest.raises(InputError, match="stabilizer_rank=-1 should be at least 1"):
        get_ffn("vft", d_model=16, stabilizer_rank=-1, stabilizer="lowrank")
    with pytest.raises(InputError, match="window stands twice"):
        parse_choice("standard[window=8,window=9]")


@pytest.mark.parametrize("state", [{"plan": []}, {"plan": {}, "terms": 5}, {"plan": {}, "measured": "x"}], ids=str)
def test_a_damaged_comparison_is_one_line(state: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / State.file).write_text(json.dumps({"schema": State.schema, "terms": None, **state}))
    with pytest.raises(InputError, match="is damaged at"):
        State(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["tune", "classify", "--config=--", "--over=train.lr=1e-3,1e-2"],
        ["compare", "lm", "--blocks=standard", "--train.lr=--"],
        ["train", "lm", "--train.schedule=--"],
        ["train", "lm", "--out=--", "--train.steps=0"],
    ],
)
def test_two_dashes_as_a_value_are_a_value(words, capsys, tmp_path, monkeypatch):
    """argparse took them away, and an empty list stood in their place."""
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_refusal_takes_nothing_away_from_another_process_that_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    with pytest.raises(InUse), nothing_left(folder):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text("of the other")
        raise InUse("in use")
    assert (folder / "metrics.jsonl").exists()
