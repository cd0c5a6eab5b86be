"""Run in a process of its own: makes a share of a transplant's choices, for `--workers`.

Reads one line of JSON from standard input: the model, the terms, what was measured so far, and what to do. Writes a
line for every measurement that it makes, as it makes it. When standard input ends, whoever started it is gone: it saves
what it trains, and stops.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockyard.compare.processes import report, work_as_asked

if TYPE_CHECKING:
    from blockyard.transplant.work import Transplant

# Between two lines that say how far it is.
TELL_SECONDS = 5.0


def work(request: dict[str, Any]) -> None:
    """Make what is asked for."""
    import torch

    from blockyard.errors import InputError
    from blockyard.training.interrupt import Interrupted
    from blockyard.transplant.original import read_original
    from blockyard.transplant.settings import TransplantConfig
    from blockyard.transplant.state import SentState
    from blockyard.transplant.work import Transplant

    torch.set_num_threads(request["threads"])
    config, out = TransplantConfig.from_request(request["config"]), Path(request["out"])
    read = read_original(request["model"], request["tokenizer"], trust=request["trust"])
    made = Transplant(config, config.names, out, *read, show=False)
    different = [name for name, value in request["reading"].items() if made.reading[name] != value]
    if different:
        raise InputError(f"a worker reads another {different[0]} than the process that asks: the same files are needed")
    made.progress, made.tell = _Lines(), lambda line: report({"say": line})
    state = SentState(request["measured"], report)
    moments = made.moments(state)
    # The original's losses on what is reported on, for all choices.
    before: dict[str, torch.Tensor] = {}
    for name, piece in request["items"]:
        try:
            _do(made, state, moments, name, piece, before)
        except Interrupted:
            raise
        except InputError as error:
            # One choice that cannot be made is no reason against the others.
            report({"refused": [name, str(error)]})
            continue
        report({"made": [name, piece]})


def _do(made: Transplant, state: Any, moments: Any, name: str, piece: int | None, before: dict[str, Any]) -> None:
    if piece is not None:
        with state.timing(f"choose/{name}"):
            made.search(name, moments, state).order_row(piece)
        return
    _wait_for_others(made, name)
    # Said by whoever asked, of all choices in their order.
    made.warnings = []
    settled = made.settle(name, moments, state)
    model = made.make(name, settled, moments, state)
    state.keep(made.warnings, "warned", name)
    made.measuring(state).answers(made.model, name, model, before)


def _wait_for_others(made: Transplant, name: str) -> None:
    """Wait until nobody trains this choice: one that was cut off from its starter saves first, and then stops."""
    from blockyard.compare.sharing import ORPHAN_SECONDS, POLL_SECONDS
    from blockyard.training.folder import LOCK, held
    from blockyard.transplant.work import OUTPUTS

    until = time.monotonic() + ORPHAN_SECONDS
    folders = [made.healing(name), *((made.out / OUTPUTS).iterdir() if (made.out / OUTPUTS).is_dir() else ())]
    while any(held(folder / LOCK) for folder in folders) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)


class _Lines:
    """Says now and then how far the work is."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said >= TELL_SECONDS:
            self._said = now
            report({"say": f"{what}: {done:,} of {total:,} steps"})


if __name__ == "__main__":
    raise SystemExit(work_as_asked(work))
