"""Schemas of settings files: what the examples and runs hold is valid, and what a command would refuse is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from blockyard.cli.finding import command_names, load_command
from blockyard.cli.shape_cache import shape_of
from blockyard.files import plain
from blockyard.registry.builtin import TASKS
from blockyard.registry.options import Option
from blockyard.registry.schema import option_schema, type_schema
from blockyard.registry.yamlfile import read_yaml, write_yaml
from blockyard.tasks.settings import as_groups, resolve
from tests.fixtures.cli import error_of, shown

jsonschema = pytest.importorskip("jsonschema", reason="the extra dev has it")
EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.yaml"))
WITH_FILES = [name for name in command_names() if name.split()[0] in ("train", "compare", "tune")]


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("BLOCKYARD_CACHE", str(tmp_path_factory.getbasetemp() / "help-cache"))


def schema(capsys: pytest.CaptureFixture[str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(shown(capsys, "schema", *name.split()))
    jsonschema.Draft202012Validator.check_schema(found)
    return found


def valid(found: dict[str, Any], content: Any) -> bool:
    return jsonschema.Draft202012Validator(found).is_valid(content)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Each says in its head which command it is for.
    name = next(name for name in WITH_FILES if f"blockyard {name} " in path.read_text())
    jsonschema.validate(read_yaml(path), schema(capsys, name))


@pytest.mark.parametrize("task", TASKS)
def test_what_a_run_writes_is_valid(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    patterned = {"model": {"pattern": "tva/standard[window=2]", "n_layers": 2}}
    found = schema(capsys, f"train {task}")
    for groups in ({}, {"attn": {"impl": "tva"}, "vft": {"rank": 4}}, patterned):
        written = tmp_path / "config.yaml"
        written.write_text(write_yaml(plain(as_groups(resolve(groups, task)))))
        jsonschema.validate(read_yaml(written), found)


def test_groups_may_be_written_with_dots_or_left_empty(capsys: pytest.CaptureFixture[str]) -> None:
    found = schema(capsys, "train lm")
    assert valid(found, {"model.d_model": 64, "train": None, "plugins": ["mine"], "task": "lm"})
    compared = schema(capsys, "compare lm")
    assert valid(compared, {"blocks": "standard;tva", "seeds": "auto", "budget": {"unit": "tokens"}})
    assert valid(schema(capsys, "tune lm"), {"over": "train.lr=1e-4..1e-2 log", "trials": 3})


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"d_modle": 64}},
        {"modle": {}},
        {"model": {"d_model": "wide"}},
        {"model": {"d_model": 64.5}},
        {"model": 64},
        {"model.norm": "batch"},
        {"train": {"steps": True}},
        {"task": "price"},
        {"plugins": "mine"},
        {"plugins": [3]},
    ],
    ids=json.dumps,
)
def test_what_the_command_refuses_is_not_valid(content, tmp_path, capsys) -> None:
    assert not valid(schema(capsys, "train lm"), content)
    (tmp_path / "bad.yaml").write_text(write_yaml(content))
    assert "bad.yaml" in error_of(capsys, "train", "lm", "--config", str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize("name", WITH_FILES)
def test_every_default_is_valid(name: str) -> None:
    for flag in shape_of(load_command(name)).flags:
        if flag.schema is not None and "default" in flag.schema:
            assert valid(dict(flag.schema), flag.schema["default"]), flag.name


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        (int, [1], ["1", True, 1.5]),
        (float | None, [1, 1.5, None], ["none", True]),
        (bool, [True], [1, "true"]),
        (Literal["a", 2], ["a", 2], ["b", 3]),
        (tuple[int, ...] | None, [[1, 2], None], [["a"], 1]),
        (int | Path, [3], ["x"]),
    ],
)
def test_a_type_s_schema_passes_what_the_option_takes(annotation, good, bad) -> None:
    option = Option("x", annotation, good[0], "text")
    for value in good:
        option.check(value)
        assert valid(option_schema(option), value)
    for value in bad:
        with pytest.raises(Exception, match="should be"):
            option.check(value)
        assert not valid(option_schema(option), value)


def test_known_names_are_offered_and_others_pass() -> None:
    found = option_schema(Option("impl", str, "tva"), ("tva", "mla"))
    assert {"enum": ["tva", "mla"]} in found["anyOf"]
    assert valid(found, "my_mixer") and not valid(found, 3)
    assert type_schema(Path) == {}


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert "of which command" in error_of(capsys, "schema")
    assert error_of(capsys, "schema", "list") == "blockyard list takes no settings files"
    assert "unexpected argument 'more'" in error_of(capsys, "schema", "train", "lm", "more")
