"""A transplant's choices made by several workers, each of which reads the model: here, or on a Ray cluster.

What is independent: the rows of an order of layers, one for each piece of text; and choices, from their search to the
measures of what was made. A worker tells every measurement as it is made, and this process keeps it; runs, healings and
moments lie in the folder that all see. So what is lost with a worker is its last slice, and the process that asked goes
on as after a kill: it finds everything, and computes nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockyard.compare.launch import launcher
from blockyard.compare.processes import Ending, Workers
from blockyard.compare.runs import MOST_LOSSES
from blockyard.training.folder import CONFIG
from blockyard.transplant.measuring import ANSWERS
from blockyard.transplant.state import TransplantState
from blockyard.transplant.work import Transplant

WORKER = "blockyard.transplant.worker"
# That a row of an order was measured, by choice and piece.
ROW = "row"
# A piece of work: a choice, and a piece of the text that orders its layers, or None for all the rest of it.
Item = tuple[str, int | None]


def spread(
    work: Transplant, state: TransplantState, model: str, tokenizer: str | Path | None, *, trust: bool
) -> dict[str, str]:
    """Let workers make what they can of a transplant.

    Args:
        work: the transplant; its moments are in its folder.
        state: keeps what they measure.
        model: where the model lies.
        tokenizer: as the user named one.
        trust: import whatever plug-ins a run folder names.

    Returns: why choices were refused, by name.

    Raises:
        InputError: for what a worker could not do at all.
        Interrupted: after SIGTERM or SIGINT, when the trainings under way have been saved.
    """
    shared = {
        "model": model if not Path(model).exists() else str(Path(model).absolute()),
        "tokenizer": None if tokenizer is None else str(tokenizer),
        "trust": trust,
        "out": str(work.out.absolute()),
        "config": work.config.as_request(),
        "reading": work.reading,
    }
    spreading = _Spreading(work, state, shared)
    many = work.config.workers
    # With a choice for everybody an order costs less where its choice is made: each start reads the model.
    if len(work.choices) < many:
        spreading.do(spreading.rows(), many)
    # The last one is made here, where the model is, unless the machines that have the room are others.
    if len(work.choices) > 1 or work.config.engine != "local":
        state.settle(work.reading, work.asked)
        spreading.do(spreading.wholes(), many)
    return spreading.refused


class _Spreading:
    """Workers and what becomes of their work.

    Args:
        work: the transplant.
        state: keeps what they measure.
        shared: what every worker is told.
    """

    def __init__(self, work: Transplant, state: TransplantState, shared: Mapping[str, Any]) -> None:
        self.work, self.state, self.shared = work, state, shared
        self.refused: dict[str, str] = {}
        self._made: set[Item] = set()
        # By piece of work: a worker that memory ended held several, of which one is to blame.
        self._deaths, self._losses = Counter[Item](), Counter[Item]()

    def rows(self) -> list[Item]:
        """Return the rows of orders that are not known, choices in turns."""
        found: list[Item] = []
        for name in self.work.choices:
            part = self.work.open_part(name)
            if part is None or part.layers != "auto":
                continue
            pieces = range(len(self.work.deciding.order))
            found += [(name, piece) for piece in pieces if self.state.known(ROW, name, str(piece)) is None]
        return found

    def wholes(self) -> list[Item]:
        """Return the choices that are not made and measured."""
        return [(name, None) for name in self.work.choices if not self._is_made(name)]

    def _is_made(self, name: str) -> bool:
        measured = any(self.state.known(kind, name) is not None for kind in ("measures", ANSWERS))
        return measured and (self.work.folder(name) / CONFIG).exists()

    def do(self, items: Sequence[Item], many: int) -> None:
        """Have these pieces of work done."""
        if not items:
            return
        together = [item for item in items if self.work.trains(item[0])]
        # What is trained for one choice serves another, and is not trained twice at the same time.
        apart = [item for item in items if item not in together]
        shares = [share for share in (apart[i::many] for i in range(many)) if share]
        if together:
            shares = [*shares[: many - 1], [*(shares[many - 1] if len(shares) == many else ()), *together]]
        threads = self.work.config.threads(len(shares))
        requests = [self._request(share, threads) for share in shares]
        with launcher(self.work.config, WORKER, self.work.out, held=[self.state.lock]) as launch:
            Workers(launch, requests, self._heard, self._lost).wait()

    def _request(self, items: Sequence[Item], threads: int) -> dict[str, Any]:
        known = self.state.data["measured"]
        return {**self.shared, "threads": threads, "items": [list(item) for item in items], "measured": known}

    def _heard(self, message: dict[str, Any]) -> None:
        if "keep" in message:
            name, value = message["keep"]
            self.state.keep(value, name)
        if "spent" in message:
            self.state.add_seconds(*message["spent"])
        if "made" in message:
            name, piece = message["made"]
            self._made.add((name, piece))
            if piece is not None:
                self.state.keep(True, ROW, name, str(piece))
        if "refused" in message:
            name, why = message["refused"]
            self.refused[name] = why
        if "say" in message:
            self.work.say(message["say"])

    def _lost(self, request: Mapping[str, Any], ending: Ending) -> list[dict[str, Any]]:
        items: list[Item] = [(name, piece) for name, piece in request["items"]]
        left = [item for item in items if item not in self._made and item[0] not in self.refused]
        again = []
        for item in left:
            (self._deaths if ending.blamed else self._losses)[item] += 1
            alone = self._deaths[item] > 1 and len(left) == 1
            if alone or self._losses[item] > MOST_LOSSES:
                times = "twice, the second time by itself" if alone else f"{self._losses[item]} times"
                self.refused[item[0]] = f"its process {ending.lost} {times}"
            else:
                again.append(item)
        if again:
            self.work.say(f"a worker {ending.lost}; begun again: {', '.join(map(_told, again))}")
        # Each by itself where it may be to blame, so that the next death names it.
        shares = [[item] for item in again] if ending.blamed else [again] if again else []
        return [self._request(share, request["threads"]) for share in shares]


def _told(item: Item) -> str:
    name, piece = item
    return name if piece is None else f"{name}, piece {piece} of the order"
