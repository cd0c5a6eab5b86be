"""What follows training: calibration on the validation part, the test beside baselines, plots; all into the folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blockyard.errors import MissingExtra
from blockyard.files import without_nan, write_atomically
from blockyard.tasks.price.baselines import run_baselines
from blockyard.tasks.price.calibrate import FILE
from blockyard.tasks.price.data.windows import PriceData
from blockyard.tasks.price.forecaster import Calibrate, load_forecaster
from blockyard.tasks.price.summary import evaluation_table, summarise
from blockyard.tasks.price.task import PriceForecasting
from blockyard.tasks.run import read_run

EVALUATION = "evaluation.json"


def finish_run(
    folder: Path | str,
    how: Calibrate = "auto",
    data: PriceData | None = None,
    *,
    plugins: Sequence[str] = (),
    trust: bool = False,
) -> str:
    """Calibrate a trained run, test it beside the baselines, and keep both in its folder.

    Args:
        folder: the run folder.
        how: calibration: auto, on or off.
        data: the run's data, read again when not given.
        plugins: modules to import first, that the run may want.
        trust: import whatever modules the run's configuration names.

    Returns: the test in words and tables.

    Raises:
        InputError: when the run or its data cannot be read, or the folder cannot be written.
    """
    folder = Path(folder)
    # Agreed to before anything in the folder is touched; the calibration goes first, as it may be a damaged one.
    read_run(folder, plugins=plugins, trust=trust)
    (folder / FILE).unlink(missing_ok=True)
    forecaster, _, run = load_forecaster(folder)
    if data is None:
        data = PriceForecasting().load_data(run.data, run.model)
    forecaster = forecaster.calibrated(data, how)
    parameters = sum(p.numel() for p in forecaster.model.parameters())
    lines = [data.prices.report(), data.describe(), f"{forecaster.name}: {parameters:,} parameters"]
    if forecaster.calibration is not None:
        forecaster.calibration.save(folder)
        why = forecaster.calibration.why or "as asked"
        lines.append(f"calibrated on {forecaster.calibration.rows:,} validation origins ({why})")
    elif how == "auto":
        lines.append(
            "not calibrated: shifts from one half of the validation part do not help the other, or it is too short"
        )
    assets, rows = data.origins("test")
    until, levels = data.borders.val_end, run.model.quantiles
    beside, notes = run_baselines(data, levels, assets=assets, rows=rows, fit_until=until)
    everyone = {forecaster.name: forecaster.forecast(data, assets, rows), **beside}
    found = summarise(data, assets, rows, everyone, levels=levels, border=until)
    save_summary(found, forecaster.name, folder)
    return "\n".join([*lines, *notes, "", evaluation_table(found)])


def save_summary(found: dict[str, Any], main: str, folder: Path) -> None:
    """Write evaluation.json and, where matplotlib is installed, the plots.

    Raises:
        InputError: when the folder cannot be written.
    """
    from blockyard.tasks.price.charts import save_summary_plots

    write_atomically(folder / EVALUATION, json.dumps(without_nan(found), indent=1) + "\n")
    # Pictures are not what the command was asked for.
    with contextlib.suppress(MissingExtra):
        save_summary_plots(found, main, folder)
