"""A search from its first trial to its report: trials, the best again with fresh seeds, the record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from optuna.trial import FrozenTrial, TrialState

from blockyard.compare.processes import Workers, signal_name
from blockyard.compare.provenance import machine_of, versions
from blockyard.errors import InputError
from blockyard.files import plain
from blockyard.training.interrupt import StopRequest
from blockyard.tune import schema
from blockyard.tune.board import Board, Line
from blockyard.tune.budgeted import Ended
from blockyard.tune.finals import (
    Candidate,
    Final,
    best_trials,
    candidates_of,
    fresh_seeds,
    jobs_of,
    make_finals,
    read_finals,
)
from blockyard.tune.output import write_record
from blockyard.tune.record import Asked, make_record
from blockyard.tune.report import write_report
from blockyard.tune.search import open_study, unfinished
from blockyard.tune.start import SearchState, Start
from blockyard.tune.trials import DRAWN, NOTE, RESULT, SAME_AS, STATUS, Search, fail_trial, sweep

WORKER = "blockyard.tune.worker"


class Session:
    """One search, from its first trial to its report.

    Args:
        start: what is known before.
        out: its folder, which `state` holds.
        state: its terms and clock.
        board: shows it.
    """

    def __init__(self, start: Start, out: Path, state: SearchState, board: Board) -> None:
        self.start, self.out, self.state, self.board, self.config = start, out, state, board, start.config
        self.study = open_study(out, start.config, start.quality.better)
        self.asked = Asked(start.kind, start.quality, start.config, start.space, start.fixed, start.default, out)
        self.began, self.before = time.monotonic(), float(state.data.get("seconds", 0.0))
        self.candidates: list[Candidate] = []
        self.seeds: list[int] = []
        self._written = -1
        self._best: schema.Best | None = None

    def run(self) -> schema.Tuning:
        sweep(self.out, self.study)
        try:
            self._search(unfinished(self.study))
            self._refuse_nothing()
            self.candidates = candidates_of(
                self.study, self.start.space, self.start.fixed, self.config, self.start.default
            )
            self.seeds = fresh_seeds(self.candidates, self.start.task, self.config)
            if self.seeds:
                self._finals(jobs_of(self.candidates, self.seeds))
            record = self._record("complete")
        except BaseException:
            self._keep_clock()
            raise
        self._keep_clock()
        files = write_report(record, self.out)
        self.board.say(record["verdict"]["headline"])
        self.board.say(f"report: {files['html']}")
        return record

    def _keep_clock(self) -> None:
        self.state.data["seconds"] = self.before + time.monotonic() - self.began
        self.state.save()

    def _search(self, waiting: list[int]) -> None:
        if self.config.workers > 1:
            self._search_spread(waiting)
            return
        with StopRequest().listening() as stop:
            Search(
                self.out,
                self.start.space,
                self.start.fixed,
                self.config,
                self.study,
                self.start.quality,
                self.start.shelf,
                stop,
                self.watch,
            ).run(waiting)
        self.watch(now=True)

    def _search_spread(self, waiting: list[int]) -> None:
        """Search with several processes, begun again where they were killed, until there are enough trials."""
        many, deaths = self.config.workers, Counter[int]()
        while True:
            before = len(self.study.get_trials(deepcopy=False))
            self._spread("search", [waiting[i::many] for i in range(many)], self.watch)
            left = unfinished(self.study)
            deaths.update(left)
            for number in left:
                if deaths[number] > 1:
                    fail_trial(self.study, number, "its process was killed twice")
            waiting = unfinished(self.study)
            made = len(self.study.get_trials(deepcopy=False))
            if not waiting and made >= self.config.trials:
                return
            if not left and made == before:
                raise RuntimeError("every worker was killed before it began a trial")

    def _finals(self, jobs: Sequence[Final]) -> None:
        names = ", ".join(dict.fromkeys(job.candidate.name for job in jobs))
        self.board.say(f"running again with fresh seeds: {names}")
        self._record("running again")
        lines = {job.key: Line(f"{job.candidate.name} seed {job.seed}", job.candidate.drawn) for job in jobs}

        def watch(job: Final, part: int, value: float | None, ended: Ended | None) -> None:
            line = lines[job.key]
            line.part, line.value = part / self.config.evaluations, value
            if ended is not None:
                line.status, line.note = ended.status, ended.note
            self.board.show(list(lines.values()), now=ended is not None)

        self.board.show(list(lines.values()))
        kept = read_finals(jobs, self.out)
        missing = [job for job in jobs if job.key not in kept]
        if self.config.workers > 1 and len(missing) > 1:
            many = min(self.config.workers, len(missing))
            shares = [[jobs.index(job) for job in missing[i::many]] for i in range(many)]

            def heard(message: dict[str, Any]) -> None:
                if "final" in message:
                    number, part, value, ended = message["final"]
                    watch(jobs[number], part, value, Ended(**ended) if ended else None)
                elif "say" in message:
                    self.board.say(message["say"])

            self._processes("finals", shares, heard)
        with StopRequest().listening() as stop:
            make_finals(jobs, self.out, self.start.task, self.config, self.start.shelf, stop, watch)

    def _spread(self, phase: str, shares: Sequence[Sequence[int]], watch: Callable[[], None]) -> None:
        def heard(message: dict[str, Any]) -> None:
            if "say" in message:
                self.board.say(message["say"])
            watch()

        self._processes(phase, shares, heard)

    def _processes(self, phase: str, shares: Sequence[Sequence[int]], heard: Callable[[dict[str, Any]], None]) -> None:
        threads = self.start.threads or max(1, torch.get_num_threads() // len(shares))
        requests = [
            {
                "folder": str(self.out.absolute()),
                "phase": phase,
                "share": list(share),
                "config": asdict(self.config),
                "threads": threads,
                "task": self.start.task,
                # As the user gave them, not as the folder's files have them: they name the plug-ins to import.
                "fixed": plain(self.start.fixed),
                "space": [dimension.to_dict() for dimension in self.start.space.dimensions],
                "default": plain(self.start.default),
                "first": plain(self.start.groups),
                "better": self.start.quality.better,
            }
            for share in shares
        ]
        # The search is in use for as long as one of them lives, even if this process is killed.
        Workers(WORKER, requests, heard, held=[self.state.lock], lost=self._lost).wait()

    def _lost(self, request: Mapping[str, Any], number: int) -> list[Mapping[str, Any]]:
        """Say that a worker died. The others go on with the search; what it was at is begun again after them."""
        self.board.say(f"a worker died of {signal_name(number)}; what it was at is begun again")
        return []

    def watch(self, *, now: bool = False) -> None:
        """Show all trials, and keep the record when one has ended."""
        trials = self.study.get_trials(deepcopy=False)
        best = best_trials(self.study, 1)
        lines = [_line(trial, self.config.evaluations, trial.number in best) for trial in trials]
        over = sum(trial.state.is_finished() for trial in trials)
        self.board.show(lines, now=now or over != self._written)
        if over != self._written:
            self._record("searching")
            self._written = over

    def _refuse_nothing(self) -> None:
        """A search in which nothing finished has nothing to say."""
        if best_trials(self.study, 1):
            return
        trials = self.study.get_trials(deepcopy=False)
        first = next((t.user_attrs for t in trials if t.user_attrs.get(NOTE)), {})
        raise InputError(
            f"none of {len(trials)} trials finished; the first {first.get(STATUS, 'failed')}: {first.get(NOTE, '')}"
        )

    def _record(self, status: str) -> schema.Tuning:
        start = self.start
        finals = read_finals(jobs_of(self.candidates, self.seeds), self.out)
        record = make_record(
            self.asked, self.study, status, self.candidates, self.seeds, finals, self._provenance(), start.notes
        )
        changed = record["best"] is not None and record["best"] != self._best
        write_record(record, self.asked, start.shelf if changed else None)
        self._best = record["best"]
        return record

    def _provenance(self) -> dict[str, Any]:
        start = self.start
        command = self.config.command(start.task, start.space.text, start.fixed, str(self.out))
        return {
            "command": command,
            "versions": versions(),
            "data": plain(start.data.fingerprint),
            "machine": machine_of(start.run),
            "seconds_total": self.before + time.monotonic() - self.began,
        }


def _line(trial: FrozenTrial, evaluations: int, is_best: bool) -> Line:
    """How far a trial is, from the journal alone: another process may be making it."""
    attrs, ended, part = trial.user_attrs, trial.state.is_finished(), trial.last_step or 0
    value = trial.intermediate_values[part] if part else None
    if trial.state == TrialState.COMPLETE:
        value = (attrs.get(RESULT) or {}).get("value", value)
    again = ended and SAME_AS in attrs
    return Line(
        name=f"trial {trial.number}",
        settings=attrs.get(DRAWN, {}),
        part=part / evaluations,
        value=value,
        status="repeated" if again else attrs.get(STATUS, "failed") if ended else "training",
        note=f"same as trial {attrs[SAME_AS]}" if again else attrs.get(NOTE, ""),
        is_best=is_best,
    )
