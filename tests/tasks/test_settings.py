"""Option groups become a run's configuration and come back from it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockyard.errors import InputError
from blockyard.models.lm import LMConfig
from blockyard.registry.pattern import LayerSpec
from blockyard.tasks.settings import as_groups, resolve

PLUGIN = """
from torch import nn
from blockyard.registry.register import register_attn, register_ffn
from blockyard.standard.attention import StandardAttention

@register_attn("yarn", group="knit")
class Yarn(StandardAttention):
    def __init__(self, d_model: int, n_heads: int = 2, *, gauge: int = 3, shared: int = 1, causal: bool = False):
        super().__init__(d_model, n_heads, causal=causal)
        self.gauge, self.shared = gauge, shared

@register_ffn("purl", group="knit")
class Purl(nn.Linear):
    def __init__(self, d_model: int, *, shared: int = 1, scale: float = 1.0):
        super().__init__(d_model, d_model)
        self.shared, self.scale = shared, scale
"""


@pytest.fixture
def knit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A plug-in with a family of two members; what it registers is taken out again."""
    from blockyard.registry import register as registry

    folder = tmp_path / "plugins"
    folder.mkdir()
    (folder / "knit_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(registry._register, "entries", dict(registry._register.entries))
    monkeypatch.delitem(sys.modules, "knit_plugin", raising=False)
    yield "knit_plugin"
    sys.modules.pop("knit_plugin", None)


def test_groups_become_a_configuration_and_back() -> None:
    groups = {
        "model": {"d_model": 32, "dropout": 0.1},
        "attn": {"impl": "standard", "window": 8},
        "ffn": {"impl": "relu2"},
        "train": {"steps": 7},
        "data": {"max_bytes": 1000},
    }
    run = resolve(groups)
    (spec,) = run.model.blocks
    assert (spec.attn, spec.ffn, spec.attn_options) == ("standard", "relu2", {"window": 8})
    assert (run.model.d_model, run.train.steps, run.data.max_bytes) == (32, 7, 1000)
    assert resolve(as_groups(run)) == run


def test_a_pattern_comes_back_from_its_groups() -> None:
    run = resolve({"model": {"pattern": "standard[window=4]*2/standard+swiglu"}})
    assert [spec.ffn for spec in run.model.blocks] == ["relu2", "relu2", "swiglu"]
    assert resolve(as_groups(run)) == run


def test_a_family_serves_both_of_its_members(knit: str) -> None:
    run = resolve(
        {
            "plugins": [knit],
            "attn": {"impl": "yarn"},
            "ffn": {"impl": "purl"},
            "knit": {"shared": 5, "gauge": 7, "scale": 2},
        }
    )
    (spec,) = run.model.blocks
    assert spec == LayerSpec("yarn", "purl", {"shared": 5, "gauge": 7}, {"shared": 5, "scale": 2.0})
    assert resolve(as_groups(run)) == run


def test_an_option_in_brackets_goes_before_its_group(knit: str) -> None:
    groups = {"plugins": [knit], "model": {"pattern": "yarn[gauge=9]/yarn"}, "knit": {"gauge": 4}}
    assert [spec.attn_options["gauge"] for spec in resolve(groups).model.blocks] == [9, 4]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"modle": {}}, r"no option group 'modle' \(did you mean 'model'\?\)"),
        ({"model": {"d_modle": 4}}, r"'d_modle' \(did you mean 'd_model'\?\)"),
        ({"model": {"vocab_size": 4}}, "vocab_size"),
        ({"train": {"steps": "many"}}, "steps='many' should be int"),
        ({"attn": {"impl": "standart"}}, "standart"),
        ({"attn": {"windw": 3}}, r"'windw' \(did you mean 'window'\?\)"),
        (
            {"attn": {"impl": "standard"}, "model": {"pattern": "standard"}},
            "attn.impl: model.pattern names the mixers already; leave one of them out",
        ),
        ({"plugins": ["no_such_module_here"]}, "no_such_module_here"),
    ],
)
def test_bad_groups_are_named(groups: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(groups)


def test_an_option_of_a_family_that_is_not_selected_is_refused(knit: str) -> None:
    with pytest.raises(InputError, match=r"'shared' is an option of: yarn, purl; selected are attn\.impl=standard"):
        resolve({"plugins": [knit], "knit": {"shared": 2}})
    with pytest.raises(InputError, match=r"'gauge' is an option of: yarn; selected are .*, ffn\.impl=purl"):
        resolve({"plugins": [knit], "ffn": {"impl": "purl"}, "knit": {"gauge": 2}})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", ["logit_softcap", "rope_theta"])
def test_a_model_option_that_gives_no_numbers_is_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name}={value} should be positive"):
        LMConfig(vocab_size=8, **{name: value})
