"""Each choice's own learning rate: the ladder, its ends, what is kept, and what the report says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from blockyard.compare import rates
from blockyard.compare.compare import compare_lm
from blockyard.compare.plan import at_rate
from blockyard.compare.settings import CompareConfig
from blockyard.errors import InputError
from blockyard.report.charts.rates import figures_over_rate
from blockyard.report.reading import how_to_read
from blockyard.report.render import render_png
from blockyard.report.units import rate_label
from blockyard.report.verdict import analyse
from blockyard.tasks.kind import Quality
from blockyard.tasks.lm.report import LMParts
from blockyard.training.config import TrainConfig
from tests.fixtures.reports import synthetic_report

STEPS, TOKENS_PER_STEP = 40, 4 * 16
LOSS, ACCURACY = Quality(), Quality(better="higher", margin=0.01)


@pytest.fixture(autouse=True)
def _short_probes(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "LEAST_STEPS", 8)


@pytest.fixture
def groups(tmp_path: Path) -> dict[str, Any]:
    draw, path = random.Random(0), tmp_path / "text.txt"
    path.write_text(" ".join(draw.choice(["yard", "block", "mixer", "vein", "of", "the"]) for _ in range(2000)))
    model = {"d_model": 16, "n_layers": 1, "n_heads": 2, "context": 16}
    train = {"batch_size": 4, "threads": 1, "compile": "off", "precision": "fp32", "eval_batches": 1, "warmup": 5}
    return {"model": model, "train": train, "data": {"path": str(path)}}


def compared(groups: dict[str, Any], out: Path, blocks: str = "standard;relu2", **changes: Any) -> dict[str, Any]:
    terms = {"budget_value": STEPS * TOKENS_PER_STEP, "seeds": 1, "evaluations": 2, "sample_tokens": 4}
    config = CompareConfig(blocks, **{**terms, "measure_memory": False, **changes})
    return dict(compare_lm(config, groups, out, show=False))


def settings_of(run: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())["train"]


def test_every_choice_runs_at_the_rate_that_its_probes_found(groups: dict[str, Any], tmp_path: Path) -> None:
    report = compared(groups, tmp_path / "out")
    usual = TrainConfig()
    for choice in report["choices"]:
        found = choice["rate"]
        assert {0.5, 1.0, 2.0} <= set(found["factors"])
        probes = dict(zip(found["factors"], found["figures"]))
        assert probes[found["factor"]] <= 1.01 * min(probes.values())
        # The ladder has grown until the best stands within it, or as far as it goes.
        inside = min(probes) < found["factor"] < max(probes)
        assert inside or found["factor"] in (rates.FARTHEST, 1 / rates.FARTHEST)
        trained = settings_of(tmp_path / "out" / choice["runs"][0]["folder"])
        assert trained["lr"] == (None if found["factor"] == 1 else pytest.approx(usual.adamw_lr * found["factor"]))
        assert trained["matrix_lr"] == pytest.approx(usual.matrix_lr * found["factor"])
    assert report["rates"]["cost"] > 0 and set(report["rates"]["orders"]["own"]) == {"standard", "relu2"}


def test_a_probe_is_a_short_run_with_its_whole_schedule_and_a_seed_of_its_own(
    groups: dict[str, Any], tmp_path: Path
) -> None:
    compared(groups, tmp_path / "out", "standard")
    probe = settings_of(next((tmp_path / "out" / "rates").glob("*/times-2")))
    assert probe["steps"] == round(rates.SHARE * STEPS) and probe["warmup"] == round(rates.SHARE * 5)
    assert probe["seed"] == rates.SEEDS_APART and probe["matrix_lr"] == pytest.approx(2 * TrainConfig().matrix_lr)


def test_what_was_found_is_kept(groups: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compared(groups, tmp_path / "out")
    monkeypatch.setattr(rates, "train_jobs", lambda *a: pytest.fail("probed again"))
    again = compared(groups, tmp_path / "out")
    assert [c["rate"] for c in again["choices"]] == [c["rate"] for c in first["choices"]]


def test_a_choice_that_is_added_gets_its_own_probes(groups: dict[str, Any], tmp_path: Path) -> None:
    compared(groups, tmp_path / "out")
    before = json.loads((tmp_path / "out" / "compare.json").read_text())["rates"]
    compared(groups, tmp_path / "out", "standard;relu2;tva")
    after = json.loads((tmp_path / "out" / "compare.json").read_text())["rates"]
    assert after.keys() == {"standard", "relu2", "tva"} and {n: after[n] for n in before} == before


def test_one_rate_for_all_and_a_list_of_rates(groups: dict[str, Any], tmp_path: Path) -> None:
    one = compared(groups, tmp_path / "one", rates="one")
    assert "rates" not in one and not (tmp_path / "one" / "rates").exists()
    listed = compared(groups, tmp_path / "list", rates="1,4")
    assert all(choice["rate"]["factors"] == [1.0, 4.0] for choice in listed["choices"])
    with pytest.raises(InputError, match="other terms: rates was 'one', now 'auto'"):
        compared(groups, tmp_path / "one")


def test_folders_from_before_have_one_rate(groups: dict[str, Any], tmp_path: Path) -> None:
    compared(groups, tmp_path / "out", rates="one")
    state = tmp_path / "out" / "compare.json"
    held = json.loads(state.read_text())
    del held["terms"]["rates"]
    state.write_text(json.dumps(held))
    assert "rates" not in compared(groups, tmp_path / "out", rates="one")
    with pytest.raises(InputError, match="rates was 'one', now 'auto'"):
        compared(groups, tmp_path / "out")


def test_a_budget_too_small_for_probes_has_one_rate(
    groups: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "LEAST_STEPS", 20)
    assert "rates" not in compared(groups, tmp_path / "out")


@pytest.mark.slow
def test_probes_in_other_processes_find_the_same(groups: dict[str, Any], tmp_path: Path) -> None:
    alone = compared(groups, tmp_path / "alone", rates="1,2")
    several = compared(groups, tmp_path / "several", rates="1,2", workers=2)
    for one, other in zip(alone["choices"], several["choices"]):
        assert one["rate"] == other["rate"] and one["runs"][0]["final_loss"] == other["runs"][0]["final_loss"]


@pytest.mark.parametrize("asked", ["", "0", "-1", "nan", "inf", "one,2", "fast", "1e-9"])
def test_rates_that_are_none_are_refused(asked: str) -> None:
    with pytest.raises(InputError, match="should be auto, one, or factors"):
        CompareConfig("standard", rates=asked)


@pytest.mark.parametrize(
    ("found", "beyond"),
    [
        ({0.5: 2.0, 1.0: 1.0, 2.0: 2.0}, []),
        ({0.5: 1.0, 1.0: 2.0, 2.0: 3.0}, [0.25]),
        ({0.5: 3.0, 1.0: 2.0, 2.0: 1.0}, [4.0]),
        ({0.5: 3.0, 1.0: 2.0, 2.0: None}, []),
        ({0.5: 2.0, 1.0: None, 2.0: None}, [0.25]),
        ({0.5: None, 1.0: None, 2.0: None}, [0.25]),
        ({1 / 16: 1.0, 0.125: 2.0}, []),
        ({8.0: 2.0, 16.0: 1.0}, []),
    ],
)
def test_the_ladder_grows_where_its_best_is_at_an_end(found: dict[float, float | None], beyond: list[float]) -> None:
    if found == {0.5: 3.0, 1.0: 2.0, 2.0: None}:
        # 1 is the best that ended, and 2 was lost: nothing beyond it.
        assert rates._beyond(found, LOSS) == beyond
        return
    assert rates._beyond(found, LOSS) == beyond
    if all(figure is not None for figure in found.values()):
        # The same for accuracies, of which the highest is best.
        assert rates._beyond({f: -v for f, v in found.items() if v is not None}, ACCURACY) == beyond


def test_of_probes_that_do_as_well_the_one_nearest_to_the_recipe_is_taken() -> None:
    assert rates.best_factor({0.5: 1.0, 1.0: 1.0, 2.0: 1.0}, LOSS) == 1.0
    assert rates.best_factor({0.25: 1.0, 2.0: 1.0}, LOSS) == 2.0
    assert rates.best_factor({0.5: 1.0, 2.0: 1.0}, LOSS) == 0.5
    assert rates.best_factor({0.5: None, 1.0: None}, LOSS) == 1.0
    # Within 1 % of the best loss, or .01 of an accuracy, one seed tells nothing.
    assert rates.best_factor({1.0: 2.286, 2.0: 2.285}, LOSS) == 1.0
    assert rates.best_factor({1.0: 2.067, 2.0: 2.033}, LOSS) == 2.0
    assert rates.best_factor({1.0: 0.905, 2.0: 0.91}, ACCURACY) == 1.0
    assert rates.best_factor({1.0: 0.89, 2.0: 0.91}, ACCURACY) == 2.0


def test_a_factor_scales_both_rates_and_one_leaves_the_options_alone() -> None:
    config = TrainConfig()
    assert at_rate(config, 1.0) is config
    faster = at_rate(config, 2.0)
    assert faster.lr == 2 * config.adamw_lr and faster.matrix_lr == 2 * config.matrix_lr
    assert [rate_label(f) for f in (0.25, 0.5, 1.0, 1.5, 2.0, 0.3)] == ["×1/4", "×1/2", "×1", "×1.5", "×2", "×0.3"]


def test_the_report_shows_the_probes_and_says_what_one_rate_would_have_said() -> None:
    report = analyse(synthetic_report())
    assert figures_over_rate(report) is None
    assert any("not tuned for any" in line for line in how_to_read(report, LMParts()))
    names = [choice["name"] for choice in report["choices"]]
    for choice in report["choices"]:
        choice["rate"] = {"factor": 2.0, "lr": 0.04, "matrix_lr": 0.04, "factors": [1.0, 2.0], "figures": [2.0, None]}
    report["rates"] = {"share": 0.2, "seconds": 10.0, "cost": 0.25, "orders": {"one": names, "own": names[::-1]}}
    chart = figures_over_rate(report)
    assert chart is not None and "20%" in chart.caption
    assert render_png(chart, report).startswith(b"\x89PNG")
    line = next(line for line in how_to_read(report, LMParts()) if "found by probes" in line)
    assert "25% of the training" in line and f"{', '.join(names[::-1])} instead of {', '.join(names)}" in line


def test_a_choice_whose_probes_are_too_short_is_not_put_beside_those_that_have_their_rates(
    groups: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compared(groups, tmp_path / "out")
    monkeypatch.setattr(rates, "LEAST_STEPS", 9)
    with pytest.raises(InputError, match="have rates of their own: give it another --out"):
        compared(groups, tmp_path / "out", "standard;relu2;swiglu")
    monkeypatch.setattr(rates, "LEAST_STEPS", 8)
    again = compared(groups, tmp_path / "out")
    assert [c["runs"] for c in first["choices"]] == [c["runs"] for c in again["choices"]]


def test_factors_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(InputError, match="two factors that are equal in six digits"):
        CompareConfig("standard", rates="1,1.00000001")
