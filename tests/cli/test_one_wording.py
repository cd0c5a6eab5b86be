"""The same mistake is told in the same line from Python, a settings file and the command line, its place apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blockyard.cli.parser import Parser
from blockyard.cli.settings import add_groups, given_words
from blockyard.cli.sources import given_in
from blockyard.errors import InputError
from blockyard.tasks.given import resolve as resolve_words
from blockyard.tasks.groups import train_groups
from blockyard.tasks.settings import resolve

MISTAKES: dict[str, dict[str, dict[str, Any]]] = {
    "an unknown group": {"trian": {"steps": 4}},
    "an unknown group like none": {"zzzzzz": {"steps": 4}},
    "a block in a group's place": {"tva": {"rank": 4}},
    "an unknown option of the model": {"model": {"d_modle": 4}},
    "an unknown option of the training": {"train": {"stesp": 4}},
    "an unknown option of a family": {"vft": {"rnak": 4}},
    "an option of another group": {"train": {"rank": 4}},
    "a wrong type": {"train": {"steps": "many"}},
    "a wrong word": {"train": {"schedule": "bent"}},
    "a wrong type in a block": {"attn": {"window": "wide"}},
    "an option of a block that is not selected": {"vft": {"rank": 4}},
    "an option of a block beside the selected one": {"attn": {"impl": "mla"}, "vft": {"rank": 4}},
    "an option of a block that no layer of a pattern is": {"model": {"pattern": "mla"}, "vft": {"rank": 4}},
    "an unknown mixer": {"attn": {"impl": "standart"}},
    "an unknown FFN": {"ffn": {"impl": "swigul"}},
    "mixers named twice": {"attn": {"impl": "tva"}, "model": {"pattern": "tva"}},
}


def told(call: Any, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("groups", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_the_same_words_wherever_it_stands(
    groups: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    known, file = train_groups("lm"), tmp_path / "run.yaml"

    def in_words() -> None:
        parser = Parser("train lm", "trains")
        add_groups(parser, known)
        words = [f"--{group}.{key}={value}" for group, options in groups.items() for key, value in options.items()]
        resolve_words(known, given_words(parser.parse(words)))

    def in_a_file() -> None:
        resolve_words(known, given_in(file, dict(groups), known, ("plugins", "task")))

    from_python = told(resolve, groups, "lm")
    from_file, from_words = told(in_a_file), told(in_words)
    assert from_file == f"{file}: {from_python}"
    # A group that does not exist is told by its first flag, as no other place of it stands in the words.
    group, option = next((g, next(iter(o))) for g, o in groups.items())
    assert from_words in (f"--{from_python}", f"--{group}.{option}: {from_python}")
