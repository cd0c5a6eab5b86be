"""A whole transplant: read a model and its text, fit, choose within a budget, write ordinary runs, measure, report.

Everything that can be refused is refused before minutes are spent. What is measured is kept in the folder as it comes,
so that the same words go on after a kill and end with the same weights.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from torch import nn

from blockyard.compare.launch import check_reachable
from blockyard.errors import InputError
from blockyard.files import check_writable, nothing_left
from blockyard.machine.memory import forcing
from blockyard.mirror import is_url, mirrored
from blockyard.pretrained import Pretrained
from blockyard.training.folder import CONFIG
from blockyard.transplant.original import read_original
from blockyard.transplant.record import Record
from blockyard.transplant.settings import TransplantConfig
from blockyard.transplant.spread import spread
from blockyard.transplant.state import STATE, TransplantState
from blockyard.transplant.work import Transplant


def run_transplant(
    model: str | Path | nn.Module | Pretrained,
    config: TransplantConfig,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    show: bool = True,
    trust: bool = False,
    force: bool = False,
) -> Record:
    """Put other blocks into a trained model, and say what it costs and saves.

    The folder can be given again after a kill, with the same terms: what was measured is kept.

    Args:
        model: a folder or .gguf file that `load_pretrained` reads, a run folder, or a module: ours or of transformers.
        config: the terms.
        out: with one choice the run folder of the new model; with several, each has its own within it. The record
            (transplant.json) and the page (report.html) are there, too. A path, or a URL.
        tokenizer: a folder with a tokenizer, where the model brings none.
        show: tell on standard error how far it is.
        trust: import whatever plug-ins a run folder names.
        force: go on also where by its estimate something does not fit into memory.

    Returns: the record.

    Raises:
        InputError: for anything that the user can put right.
    """
    if is_url(out):
        with mirrored(str(out)) as scratch:
            return run_transplant(model, config, scratch, tokenizer=tokenizer, show=show, trust=trust, force=force)
    folder = Path(out)
    names = config.names
    if config.spreads and isinstance(model, nn.Module | Pretrained):
        raise InputError("workers read the model themselves: give the folder or file that it lies in, not a module")
    check_reachable(config)
    check_writable(folder, folder=True)
    if (folder / CONFIG).exists() and not (folder / STATE).exists():
        raise InputError(f"{folder} already holds a run; give another --out")
    with forcing(force):
        work = Transplant(config, names, folder, *read_original(model, tokenizer, trust=trust), show)
        # A folder that was made for a transplant that never began goes with it.
        with nothing_left(folder) as begun, closing(TransplantState(folder)) as state:
            state.begin(work.reading, work.asked)
            named = "" if isinstance(model, nn.Module | Pretrained) else str(model)
            return work.run(state, begun, named, lambda: spread(work, state, named, tokenizer, trust=trust))
