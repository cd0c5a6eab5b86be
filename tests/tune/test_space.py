"""What `tune` searches: how it is written, what is drawn when, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blockyard.errors import InputError
from blockyard.tasks.settings import resolve
from blockyard.tune.dimension import Dimension
from blockyard.tune.space import Space, read_space, split_over
from tests.fixtures.cli import error_of

yaml = pytest.importorskip("yaml")


class Drawn:
    """Draws at random, or what it is told to; keeps what it was asked for."""

    def __init__(self, seed: int = 0, **told: Any) -> None:
        self.random, self.told, self.asked = random.Random(seed), told, []

    def suggest_float(self, name: str, low: float, high: float, *, step: Any = None, log: bool = False) -> float:
        self.asked.append(name)
        return self.random.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        self.asked.append(name)
        return self.random.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return self.told.get(name.replace(".", "_"), None) or self.random.choice(list(choices))


def one(text: str, task: str = "lm") -> Dimension:
    (found,) = read_space(task, split_over(text, "--over")).dimensions
    return found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("attn.impl=standard, tva", ("standard", "tva")),
        ("model.d_model=64,128,256", (64, 128, 256)),
        ("attn.window=none,32", (None, 32)),
        ("train.lr=none,1e-3", (None, 0.001)),
        ("model.tied=true,false", (True, False)),
        ("--train.batch-size=8,16", (8, 16)),
        ("model.pattern=standard,tva*3/standard[window=8]+swiglu", ("standard", "tva*3/standard[window=8]+swiglu")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_list_is_read_by_the_options_type(text: str, values: tuple[Any, ...]) -> None:
    assert one(text).values == values


def test_values_with_commas_of_their_own_stand_between_bars() -> None:
    assert one("model.horizons=1,2|5,10", task="price").values == ((1, 2), (5, 10))


@pytest.mark.parametrize(
    ("text", "low", "high", "log", "step", "whole"),
    [
        ("train.lr=1e-4..1e-2 log", 1e-4, 1e-2, True, None, False),
        ("train.lr=1e-4 .. 1e-2  log", 1e-4, 1e-2, True, None, False),
        ("model.d_model=64..256 step 32", 64, 256, False, 32, True),
        ("model.dropout=0..0.3 step 0.1", 0, 0.3, False, 0.1, False),
        ("model.dropout=.1...3", 0.1, 0.3, False, None, False),
        ("model.n_layers=1..64 log", 1, 64, True, None, True),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_range_is_read_by_the_options_type(
    text: str, low: float, high: float, log: bool, step: float | None, whole: bool
) -> None:
    found = one(text)
    assert (found.low, found.high, found.log, found.step, found.whole) == (low, high, log, step, whole)


@pytest.mark.parametrize(
    "text",
    ["train.lr=0.0001..0.01 log", "model.d_model=64..256 step 32", "attn.window=none,32", "model.pattern=a|b[x=1,y=2]"],
)
def test_written_values_read_back_the_same(text: str) -> None:
    if "pattern" in text:
        text = "model.pattern=standard|standard[window=8,n_kv_heads=2]"
    found = one(text)
    assert one(f"{found.name}={found.text}") == found
    assert Dimension.from_dict(found.to_dict()) == found


def test_drawn_numbers_have_four_digits_and_stay_inside() -> None:
    found = one("train.lr=0.00123456..0.0123456 log")
    for seed in range(50):
        value = found.draw(Drawn(seed))
        assert found.low <= value <= found.high
        assert value in (found.low, found.high) or value == float(f"{value:.4g}")


def test_numbers_of_a_list_are_drawn_as_ordered_and_names_are_not() -> None:
    assert one("model.d_model=64,128,256").is_ordered
    assert not one("attn.impl=standard,tva,mla").is_ordered
    assert not one("model.tied=true,false").is_ordered


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tran.lr=1,2", "no option group 'tran' (did you mean 'train'?)"),
        ("train.lrr=1,2", "no option 'lrr' (did you mean 'lr'?)"),
        ("attn.rank=1,2", "'rank' is an option of: tva, vft"),
        ("tva.rank=1,2", "no option group 'tva'; options of tva stand under vft"),
        ("attn.impl=standart,tva", "no attention named 'standart'. Did you mean 'standard'?"),
        ("model.pattern=standard,tva[rnak=2]", "'rnak' (did you mean 'rank'?)"),
        ("train.steps=10,20", "the search decides it by its budget"),
        ("train.seed=1,2", "seeds are not searched"),
        ("lr=1,2", "should name an option with its group"),
        ("train.lr", "should be GROUP.OPTION=VALUES"),
        ("train.lr=1e-2..1e-4", "the range should rise"),
        ("train.lr=0..1 log", "a logarithmic range begins above 0"),
        ("train.lr=1..2 lg", "'lg' behind a range should be log, or step and a number"),
        ("train.lr=1..2 log step 1", "by log or by step, not both"),
        ("model.d_model=64..250 step 32", "steps of 32 from 64 reach 224, not 250"),
        ("model.d_model=1.5..3", "'1.5' should be a whole number"),
        ("model.d_model=64,wide", "'wide' should be int"),
        ("train.optimizer=1..3", "a range is of numbers, and train.optimizer is muon | adamw"),
        ("train.optimizer=muon,sgd", "'sgd' should be muon | adamw"),
        ("model.d_model=64", "leaves nothing to search; give it as --model.d_model 64"),
        ("train.lr=0.1,1e-1", "names 0.1 twice"),
        ("train.lr=1e-3,1e-2; train.lr=1..2", "train.lr stands twice"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        read_space("lm", split_over(text, "--over"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


SPACE = "attn.impl=standard,tva; vft.rank=2,4,8; attn.window=none,16; ffn.impl=moe,vft; moe.expert=swiglu,relu2"


def test_option_of_a_block_is_drawn_where_the_block_is_drawn() -> None:
    space = read_space("lm", split_over(SPACE, "--over"))
    space.check({})
    for seed in range(40):
        groups, drawn = space.draw(Drawn(seed), {})
        vein = drawn["attn.impl"] == "tva" or drawn["ffn.impl"] == "vft"
        assert ("vft.rank" in drawn) == vein
        assert ("attn.window" in drawn) == (drawn["attn.impl"] == "standard")
        assert ("moe.expert" in drawn) == (drawn["ffn.impl"] == "moe")
        run = resolve(groups, "lm")
        (spec,) = run.model.blocks
        assert spec.attn == drawn["attn.impl"]
        assert spec.attn_options.get("rank") == (drawn["vft.rank"] if spec.attn == "tva" else None)
        assert space.with_drawn(drawn, {}) == groups


def test_experts_options_are_drawn_after_the_expert() -> None:
    space = read_space("lm", split_over("vft.rank=2,4; moe.expert=relu2,vft", "--over"))
    fixed = {"ffn": {"impl": "moe"}}
    space.check(fixed)
    assert "vft.rank" not in space.draw(Drawn(moe_expert="relu2"), fixed)[1]
    assert "vft.rank" in space.draw(Drawn(moe_expert="vft"), fixed)[1]


def test_fixed_option_of_a_block_counts_where_the_block_is_drawn() -> None:
    space = read_space("lm", {"attn.impl": "standard,tva"})
    fixed = {"vft": {"rank": 4}}
    space.check(fixed)
    assert "vft" not in space.draw(Drawn(attn_impl="standard"), fixed)[0]
    assert space.draw(Drawn(attn_impl="tva"), fixed)[0]["vft"] == {"rank": 4}
    assert "vft" not in space.defaults(fixed)


@pytest.mark.parametrize(
    ("over", "fixed", "told"),
    [
        ("vft.rank=2,4", {}, "vft.rank: 'rank' is an option of: tva, vft; selected are attn.impl=standard"),
        (
            "attn.impl=standard,mla",
            {"vft": {"rank": 2}},
            "'rank' is an option of: tva, vft; selected are attn.impl=standard",
        ),
        ("train.lr=1..2", {"train": {"lr": 1.0}}, "--over train.lr: given as 1 as well"),
        ("attn.impl=standard,tva", {"model": {"pattern": "tva"}}, "attn.impl: model.pattern names the mixers already"),
    ],
)
def test_what_no_trial_could_use_is_refused(over: str, fixed: dict[str, Any], told: str) -> None:
    space = read_space("lm", split_over(over, "--over"))
    with pytest.raises(InputError, match=r".") as error:
        space.check(fixed)
    assert told in str(error.value)


def test_space_of_python_takes_lists() -> None:
    space = read_space("lm", {"model.d_model": [64, 128], "attn.window": [None, 8], "train.lr": "1e-3..1e-2 log"})
    assert space.text == "model.d_model=64,128; attn.window=none,8; train.lr=0.001..0.01 log"
    with pytest.raises(InputError, match=r"--over model.d_model: 'wide' should be int"):
        read_space("lm", {"model.d_model": [64, "wide"]})
    with pytest.raises(InputError, match=r"should be a list of values, or a range"):
        read_space("lm", {"model.d_model": 64})


def test_settings_file_says_the_same_as_words(tmp_path: Path) -> None:
    from blockyard.cli.tune_tasks import searched

    file = tmp_path / "search.yaml"
    file.write_text("over:\n  train: {lr: 1e-4..1e-2 log}\n  attn.impl: [standard, tva]\n  vft.rank: 2,4\n")
    found = searched(["vft.rank=2,8"], [file])
    space = read_space("lm", {name: item.value for name, item in found.items()})
    assert space.text == "train.lr=0.0001..0.01 log; attn.impl=standard,tva; vft.rank=2,8"


def test_later_source_decides_whether_an_option_is_searched_or_given() -> None:
    from blockyard.cli.tune_tasks import without_overruled
    from blockyard.tasks.given import Setting

    def item(layer: int) -> Setting:
        return Setting("train", "lr", "1..2", "x", layer=layer)

    assert without_overruled({"train.lr": item(0)}, [item(1)]) == ({}, [item(1)])
    assert without_overruled({"train.lr": item(1)}, [item(0)]) == ({"train.lr": item(1)}, [])
    # Of one source it is a contradiction, which is told later.
    assert without_overruled({"train.lr": item(1)}, [item(1)]) == ({"train.lr": item(1)}, [item(1)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "--over must be given"),
        (["--over", "train.lr=1..2", "--over", "train.lr=2..3"], "--over: train.lr stands twice"),
        (["--over", "train.lr=1..2", "--trials", "0"], "trials=0 should be at least 1"),
        (["--over", "train.lr=1..2", "--pruner", "mean"], "--pruner='mean' should be none | median | hyperband"),
        (["--over", "train.lr=1..2", "--train.steps", "5"], "no option 'steps'"),
        (
            ["--over", "train.lr=1..2", "--modle.d_model", "5"],
            "--modle.d_model: no option group 'modle' (did you mean 'model'?)",
        ),
        (["--over", "train.lr=1..2", "--budget.value", "-1"], "budget.value=-1.0 must be a number above 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_words_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], told: str
) -> None:
    assert told in error_of(capsys, "tune", "lm", *words, "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_runs_own_steps_in_a_settings_file_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("train: {steps: 5}\n")
    told = error_of(capsys, "tune", "lm", "--over", "train.lr=1..2", "--config", str(file))
    assert told == f"{file}: train.steps: the search decides it by its budget; leave it out"


def test_a_whole_space_is_plain_data() -> None:
    import json

    space = read_space("lm", split_over(SPACE + "; train.lr=1e-3..1e-2 log; model.dropout=0..0.2 step 0.1", "--over"))
    back = json.loads(json.dumps([d.to_dict() for d in space.dimensions]))
    assert Space("lm", tuple(Dimension.from_dict(found) for found in back)) == space
