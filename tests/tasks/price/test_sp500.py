"""Real data: skill on the S&P 500 beside EWMA and GARCH-t, and the LTSF protocol's known figures."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from blockyard.tasks.price.baselines import run_baselines
from blockyard.tasks.price.data.config import PriceDataConfig
from blockyard.tasks.price.data.windows import load_price_data
from blockyard.tasks.price.forecaster import Forecaster
from blockyard.tasks.price.model import LEVELS, PriceConfig
from blockyard.tasks.price.summary import summarise
from blockyard.tasks.price.task import PriceTask
from blockyard.training.config import TrainConfig
from blockyard.training.trainer import Trainer
from tests.fixtures.folders import ROOT


def test_a_small_forecaster_has_the_volatility_skill_of_garch_on_the_sp500(tmp_path):
    """The test span of 2014-12 … 2018-11; 120 steps of a tenth of the default model."""
    pytest.importorskip("arch", reason="arch, which carries the S&P 500, is not installed")
    settings = PriceDataConfig(train_end="2012-11-30", val_end="2014-11-21")
    config = PriceConfig(features=("close",), d_model=16, n_layers=1, horizons=(1, 5, 20, 30))
    data = load_price_data(settings, context=config.context, horizons=config.horizons)
    config = PriceConfig(**{**vars(config), "features": data.features})
    train = TrainConfig(steps=120, batch_size=64, optimizer="adamw", lr=1e-3, eval_every=0, save_every=0,
                        progress=False, compile="off", precision="fp32", device="cpu")  # fmt: skip
    task = PriceTask(config, data, train)
    trainer = Trainer(task, train, tmp_path / "run", resolved={})
    trainer.advance(120)
    trainer.close()
    assets, rows = data.origins("test")
    until = data.borders.val_end
    forecasts, _ = run_baselines(data, LEVELS, assets=assets, rows=rows, fit_until=until)
    forecasts["model"] = Forecaster(task.model.eval(), None, "model").forecast(data, assets, rows)
    found = summarise(data, assets, rows, forecasts, levels=LEVELS, border=until, repeats=200)["forecasts"]

    def skill(name):
        return [score["value"] for score in found[name]["skill"]]

    assert skill("EWMA(0.94)") == pytest.approx([0.107, 0.076, 0.038, 0.029], abs=2e-3)
    assert skill("GARCH-t") == pytest.approx([0.112, 0.082, 0.068, 0.065], abs=4e-3)
    model = skill("model")
    assert model[0] > 0.105 and model[1] > 0.075 and model[2] > 0.02, model
    assert found["model"]["skill"][0]["low"] > 0.05
    for h in (0, 1):
        assert found["model"]["coverage_90%"][h]["value"] == pytest.approx(0.9, abs=0.03)
    # Volatility is forecast, direction is not.
    assert abs(found["model"]["ic"][0]["value"]) < 0.15


def ltsf():
    """benchmarks/ltsf.py and the folder of its data; skips where either is missing."""
    roots = [Path(os.environ["BLOCKYARD_SHARED"])] if "BLOCKYARD_SHARED" in os.environ else []
    roots += [parent / "shared" for parent in Path(__file__).resolve().parents]
    folder = next((root / "data" for root in roots if (root / "data" / "ETTh1.csv").is_file()), None)
    if folder is None:
        pytest.skip("ETTh1.csv is not here: set BLOCKYARD_SHARED to the folder that holds data/ETTh1.csv")
    spec = importlib.util.spec_from_file_location("ltsf", ROOT / "benchmarks" / "ltsf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, folder


def test_the_ltsf_protocol_gives_the_published_figures_of_plain_forecasts():
    module, folder = ltsf()
    found = module.baselines(module.Series("ETTh1", folder), 96, 96)
    assert found == pytest.approx({"repeat": 1.294, "seasonal": 0.512, "ridge": 0.383}, abs=1e-3)
    assert module.baselines(module.Series("exchange", folder), 96, 96)["repeat"] == pytest.approx(0.081, abs=1e-3)


def test_the_ltsf_task_learns_and_reads_no_label_across_a_border():
    module, folder = ltsf()
    series = module.Series("ETTh1", folder)
    for part, end in (("train", 8640), ("val", 11520), ("test", 14400)):
        windows = series.windows(part, 96, 24)
        last = torch.from_numpy(windows[-1, :, -1].copy())
        assert torch.equal(last, torch.from_numpy(series.values[end - 1]))
        count = {"train": 8640 - 119, "val": 2880 - 23, "test": 2880 - 23}[part]
        assert len(windows) == count
    few = module.Series("ETTh1", folder)
    few.values, few.borders = few.values[:1200, :2], (800, 1000, 1200)
    run = module.train(few, 48, 12, {"d_model": 8, "n_layers": 1, "dropout": 0.0, "lr": 3e-3}, 0, 15)
    assert run["test"] < 0.8 * module.baselines(few, 48, 12)["repeat"]
    # A linear path that starts as a ridge regression is that good before the first step.
    setting = {"d_model": 8, "n_layers": 1, "dropout": 0.0, "lr": 1e-9, "shortcut_ridge": "fitted"}
    started = module.train(few, 48, 12, setting, 0, 1)
    assert started["shortcut_ridge"] in module.PENALTIES
    assert started["test"] < 0.8 * module.baselines(few, 48, 12)["repeat"]
