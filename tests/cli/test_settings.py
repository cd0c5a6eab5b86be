"""Settings from words and files: one check, one merge, errors that say where and what instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from blockyard.cli.parser import Parser
from blockyard.cli.settings import add_groups, given_words
from blockyard.cli.sources import given_in
from blockyard.errors import InputError
from blockyard.registry.plugins import load_file_plugins
from blockyard.registry.yamlfile import read_yaml, write_yaml
from blockyard.tasks.given import Settings, resolve
from blockyard.tasks.groups import PATTERN, Group, block_groups, by_name, dataclass_group
from tests.fixtures.cli import toys


@dataclass(frozen=True)
class ToyTrain:
    """A run.

    Args:
        steps: how many steps.
        lr: how fast, 100% of the time.
        fused: all at once.
        compile: beforehand.
        name: of the run.
    """

    steps: int = 10
    lr: float = 1e-3
    fused: bool = False
    compile: Literal["auto", "on", "off"] = "auto"
    name: str | None = None


@pytest.fixture
def groups() -> Iterator[dict[str, Group]]:
    with toys():
        model = Group("model", "the model", {"pattern": PATTERN})
        train = dataclass_group("train", "the run", ToyTrain)
        yield by_name([model, *block_groups("standard", "swiglu"), train])


def from_words(groups: dict[str, Group], *words: str) -> Settings:
    parser = Parser("toy", "a toy")
    add_groups(parser, groups)
    return resolve(groups, given_words(parser.parse(words)))


def from_file(groups: dict[str, Group], path: Path, text: str) -> Settings:
    path.write_text(text, encoding="utf-8")
    return resolve(groups, given_in(path, read_yaml(path), groups, ("plugins",)))


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_filled_in_for_what_is_selected(groups: dict[str, Group]) -> None:
    settings = from_words(groups)
    assert settings["train"] == {"steps": 10, "lr": 1e-3, "fused": False, "compile": "auto", "name": None}
    assert settings["attn"]["impl"] == "standard"
    assert settings["attn"]["window"] is None
    assert settings["ffn"]["impl"] == "swiglu"
    assert "toy" not in settings


def test_selected_family_gets_its_defaults(groups: dict[str, Group]) -> None:
    settings = from_words(groups, "--attn.impl", "toy_mixer")
    assert settings["toy"] == {"vigour": 4, "shade": "red", "loud": False, "depth": 1}
    assert settings["attn"] == {"impl": "toy_mixer"}


def test_option_whose_defaults_differ_is_left_to_each_block(groups: dict[str, Group]) -> None:
    settings = from_words(groups, "--attn.impl", "toy_mixer", "--ffn.impl", "toy_ffn")
    assert "depth" not in settings["toy"]
    assert settings["toy"]["vigour"] == 4
    assert settings["toy"]["toy_width"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--attn.impl=toy_mixer", "--toy.vigour=8", "--train.fused", "--train.lr=2e-4"],
        ["--attn.impl", "toy_mixer", "--toy.vigour", "8", "--train.fused", "true", "--train.lr", "2e-4"],
        ["--train.fused=true", "--toy.vigour", "8", "--train.lr", ".0002", "--attn.impl", "toy_mixer"],
    ],
    ids=["equals", "spaces", "mixed"],
)
def test_every_way_of_writing_an_option_means_the_same(groups: dict[str, Group], words: list[str]) -> None:
    settings = from_words(groups, *words)
    assert settings["toy"]["vigour"] == 8
    assert settings["train"]["fused"] is True
    assert settings["train"]["lr"] == 2e-4


def test_bare_truth_value_does_not_swallow_the_next_option(groups: dict[str, Group]) -> None:
    assert from_words(groups, "--train.fused", "--train.steps", "3")["train"]["steps"] == 3


def test_negative_number_is_a_value_and_not_an_option(groups: dict[str, Group]) -> None:
    assert from_words(groups, "--train.lr", "-1e-3")["train"]["lr"] == -1e-3


def test_last_of_two_words_wins(groups: dict[str, Group]) -> None:
    assert from_words(groups, "--train.steps", "3", "--train.steps", "5")["train"]["steps"] == 5


def test_none_is_read_as_none(groups: dict[str, Group]) -> None:
    assert from_words(groups, "--train.name", "x", "--train.name", "none")["train"]["name"] is None


def test_words_win_over_the_file(groups: dict[str, Group], tmp_path: Path) -> None:
    settings = merged(groups, tmp_path, "train: {steps: 3, lr: 1e-2}\n", "--train.steps", "5")
    assert settings["train"]["steps"] == 5
    assert settings["train"]["lr"] == 0.01


def test_file_may_use_dotted_keys(groups: dict[str, Group], tmp_path: Path) -> None:
    assert from_file(groups, tmp_path / "a.yaml", "train.steps: 7\n")["train"]["steps"] == 7


def test_off_is_a_word_in_a_file(groups: dict[str, Group], tmp_path: Path) -> None:
    assert from_file(groups, tmp_path / "a.yaml", "train: {compile: off}\n")["train"]["compile"] == "off"


def test_numbers_of_a_file_need_no_decimal_point(groups: dict[str, Group], tmp_path: Path) -> None:
    assert from_file(groups, tmp_path / "a.yaml", "train: {lr: 3e-4, steps: 20}\n")["train"]["lr"] == 3e-4


@pytest.mark.parametrize(
    "words",
    [
        ["--attn.impl", "toy_mixer", "--toy.vigour", "8", "--train.compile", "off"],
        ["--model.pattern", "toy_mixer/standard[window=8]", "--toy.vigour", "8", "--train.lr", "1e-9"],
    ],
    ids=["impl", "pattern"],
)
def test_settings_survive_being_written_and_read_again(
    groups: dict[str, Group], tmp_path: Path, words: list[str]
) -> None:
    pytest.importorskip("yaml")
    first = from_words(groups, *words)
    assert from_file(groups, tmp_path / "config.yaml", write_yaml(first)) == first


def test_words_that_look_like_numbers_or_truths_stay_words_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    written = {"data": {"path": "1e3", "folder": "true", "name": "off", "column": "2024-01-02"}, "lr": 1e-9}
    (tmp_path / "config.yaml").write_text(write_yaml(written))
    assert read_yaml(tmp_path / "config.yaml") == written


def test_pattern_selects_every_family_that_it_names(groups: dict[str, Group]) -> None:
    settings = from_words(groups, "--model.pattern", "toy_mixer*3/standard", "--toy.vigour", "2", "--attn.window", "9")
    assert settings["toy"]["vigour"] == 2
    assert settings["attn"]["window"] == 9


def test_pattern_beside_a_mixer_is_refused(groups: dict[str, Group]) -> None:
    told = message(from_words, groups, "--model.pattern", "toy_mixer", "--attn.impl", "standard")
    assert told == "--attn.impl: model.pattern names the mixers already; leave one of them out"


def merged(groups: dict[str, Group], tmp_path: Path, text: str, *words: str) -> Settings:
    """A file with the words laid over it."""
    path = tmp_path / "run.yaml"
    path.write_text(text)
    parser = Parser("toy", "a toy")
    add_groups(parser, groups)
    return resolve(groups, [*given_in(path, read_yaml(path), groups), *given_words(parser.parse(words))])


def test_option_of_a_file_goes_with_the_block_that_a_word_replaces(groups: dict[str, Group], tmp_path: Path) -> None:
    settings = merged(groups, tmp_path, "attn: {impl: toy_mixer}\ntoy: {vigour: 8}\n", "--attn.impl", "standard")
    assert settings["attn"]["impl"] == "standard"
    assert "toy" not in settings


def test_misspelt_option_of_a_file_is_told_even_when_its_block_is_replaced(
    groups: dict[str, Group], tmp_path: Path
) -> None:
    text = "attn: {impl: toy_mixer}\ntoy: {vigoru: 8}\n"
    assert "(did you mean 'vigour'?)" in message(merged, groups, tmp_path, text, "--attn.impl", "standard")


def test_word_for_the_mixer_replaces_the_pattern_of_a_file(groups: dict[str, Group], tmp_path: Path) -> None:
    settings = merged(groups, tmp_path, "model: {pattern: toy_mixer/standard}\n", "--attn.impl", "standard")
    assert settings["model"]["pattern"] is None


def test_word_for_the_pattern_replaces_the_mixer_of_a_file(groups: dict[str, Group], tmp_path: Path) -> None:
    settings = merged(groups, tmp_path, "attn: {impl: toy_mixer}\n", "--model.pattern", "standard/toy_mixer")
    assert settings["model"]["pattern"] == "standard/toy_mixer"
    assert "impl" not in settings["attn"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--toy.vigoru", "4"], "--toy.vigoru: no option 'vigoru' (did you mean 'vigour'?)"),
        (["--tyo.vigour", "4"], "--tyo.vigour: no option group 'tyo' (did you mean 'toy'?)"),
        (["--toy_mixer.vigour", "4"],
         "--toy_mixer.vigour: no option group 'toy_mixer'; options of toy_mixer stand under toy"),
        (["--attn", "toy_mixer"], "unknown option '--attn' (did you mean '--attn.impl'?)"),
        (["--attn.vigour", "4"], "--attn.vigour: 'vigour' is an option of: toy_mixer, toy_ffn"),
        (["--train.stesp=4"], "--train.stesp: no option 'stesp' (did you mean 'steps'?)"),
        (["--toy.vigour", "4"],
         "--toy.vigour: 'vigour' is an option of: toy_mixer, toy_ffn; "
         "selected are attn.impl=standard, ffn.impl=swiglu"),
        (["--attn.impl", "toy_mixer", "--toy.toy_width", "4"],
         "--toy.toy_width: 'toy_width' is an option of: toy_ffn; selected are attn.impl=toy_mixer, ffn.impl=swiglu"),
        (["--attn.impl", "standart"], "--attn.impl: no attention named 'standart'. Did you mean 'standard'?"),
        (["--ffn.impl", "swigul"], "--ffn.impl: no FFN named 'swigul'. Did you mean 'swiglu'?"),
        (["--train.steps", "many"], "--train.steps='many' should be int"),
        (["--train.steps", "1.5"], "--train.steps='1.5' should be int"),
        (["--train.fused", "perhaps"], "--train.fused='perhaps' should be bool"),
        (["--train.compile", "of"], "--train.compile='of' should be auto | on | off"),
        (["--attn.impl", "toy_mixer", "--toy.shade", "blue"], "--toy.shade='blue' should be red | green"),
        (["--attn.impl", "needy"], "--needy.size must be given"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_word_is_told(groups: dict[str, Group], words: list[str], told: str) -> None:
    assert message(from_words, groups, *words) == told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("toy: {vigoru: 4}\n", "FILE: toy.vigoru: no option 'vigoru' (did you mean 'vigour'?)"),
        ("toy: {toy_width: 4.0}\n",
         "FILE: toy.toy_width: 'toy_width' is an option of: toy_ffn; "
         "selected are attn.impl=standard, ffn.impl=swiglu"),
        ("tarin: {steps: 4}\n", "FILE: no option group 'tarin' (did you mean 'train'?)"),
        ("train.stesp: 4\n", "FILE: train.stesp: no option 'stesp' (did you mean 'steps'?)"),
        ("train: {steps: many}\n", "FILE: train.steps='many' should be int"),
        ("train: {steps: true}\n", "FILE: train.steps=True should be int"),
        ("train: {steps: [1]}\n", "FILE: train.steps=[1] should be int"),
        ("train: {fused: 1}\n", "FILE: train.fused=1 should be bool"),
        ("train: 4\n", "FILE: train=4 should be a mapping, such as 'train: {key: value}'"),
        ("attn: {impl: standart}\n", "FILE: attn.impl: no attention named 'standart'. Did you mean 'standard'?"),
    ],
    ids=lambda value: value.strip() if "FILE" not in value else "",
)  # fmt: skip
def test_wrong_key_of_a_file_is_told(groups: dict[str, Group], tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    assert message(from_file, groups, path, text) == told.replace("FILE", str(path))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds nothing; expected groups"),
        (b"- a\n- b\n", "holds a list; expected groups"),
        (b"words\n", "holds a str; expected groups"),
        (b"train:\n  steps: 3\n   lr: 1\n", "line 3: mapping values are not allowed here"),
        (b"train: {steps: 3\n", "line 2: expected ',' or '}'"),
        (b"train:\n  steps: 3\n  steps: 4\n", "line 3: 'steps' stands twice"),
        (b"train: !!python/object:os.system {}\n", "line 1: could not determine a constructor"),
        (b"a: \xff\xfe\n", "is not UTF-8 text (byte 3)"),
        (b"a: \x00\n", "is not YAML"),
        (b"? [a, b]\n: 3\n", "line 1: a key should be one word"),
    ],
    ids=["empty", "list", "text", "indent", "bracket", "twice", "object", "not-utf8", "binary", "list-key"],
)
def test_file_that_is_not_settings_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    said = message(read_yaml, path)
    assert said.startswith(f"settings file {str(path)!r}")
    assert told in said


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert message(read_yaml, path) == f"cannot read settings file {str(path)!r}: No such file or directory"


def test_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    assert message(read_yaml, tmp_path) == f"cannot read settings file {str(tmp_path)!r}: Is a directory"


def test_plugins_of_a_file_must_be_a_list_of_names() -> None:
    assert load_file_plugins(["os.path"], "run.yaml") == ("os.path",)
    for wrong in ("a.b", {"a": 1}, [3], 3):
        told = message(load_file_plugins, wrong, "run.yaml")
        assert told == f"run.yaml: plugins={wrong!r} should be a list of module names"
    assert message(load_file_plugins, ["a/b.py"], "run.yaml").startswith(
        "run.yaml: plugins: 'a/b.py' is not a module's"
    )
    assert len(message(load_file_plugins, ["x" * 100_000], "run.yaml")) < 500


def test_family_named_like_another_group_is_refused(groups: dict[str, Group]) -> None:
    told = message(by_name, [*groups.values(), Group("toy", "x", {}, groups["toy"].members)])
    assert told.startswith("option group 'toy' of toy_mixer (attention), toy_ffn (FFN) is taken")


def test_help_names_type_default_choices_text_and_who_is_served(groups: dict[str, Group]) -> None:
    parser = Parser("toy", "a toy")
    add_groups(parser, groups)
    shown = " ".join(parser.format_help().split())
    assert "toy: options of toy_mixer (attention), toy_ffn (FFN)" in shown
    assert "--toy.vigour int how much of nothing (default: 4)" in shown
    assert "--toy.shade red|green [toy_mixer] in which colour (default: red)" in shown
    assert "--toy.toy_width float|none [toy_ffn] only the FFN has it (default: none)" in shown
    assert "[toy_mixer] differs from the FFN's in its default (default: 1); [toy_ffn] (default: 2)" in shown
    assert "--train.lr float how fast, 100% of the time (default: 0.001)" in shown
    assert "--needy.size int there is no good default (required)" in shown
