"""The configuration of a training: options with help, bad values named, plain data throughout."""

from __future__ import annotations

import dataclasses

import pytest

from blockyard.errors import InputError
from blockyard.registry.options import options_of
from blockyard.training.config import TrainConfig


def test_every_training_option_has_a_help_text() -> None:
    assert [name for name, option in options_of(TrainConfig).items() if not option.help] == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"steps": 0}, "train.steps=0"),
        ({"batch_size": 6, "accumulate": 4}, "train.accumulate=4"),
        ({"lr": 0.0}, "train.lr=0.0"),
        ({"lr": float("nan")}, "train.lr=nan"),
        ({"beta1": 1.0}, "train.beta1=1.0"),
        ({"final_lr": 2.0}, "train.final_lr=2.0"),
        ({"seed": -1}, "train.seed=-1"),
        ({"weight_decay": -0.1}, "train.weight_decay=-0.1"),
        ({"orthogonal_steps": 0}, "train.orthogonal_steps=0"),
    ],
)
def test_a_bad_training_option_is_named(options: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        TrainConfig(**options)


def test_a_batch_that_ranks_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="multiple of"):
        TrainConfig(batch_size=6, accumulate=2).rows(2)


def test_every_field_of_the_configuration_is_plain_data() -> None:
    assert all(v is None or isinstance(v, int | float | str) for v in dataclasses.asdict(TrainConfig()).values())
