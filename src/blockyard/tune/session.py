"""A search from its first trial to its report: trials, the best again with fresh seeds, the record."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from blockyard.compare.jobs import Job
from blockyard.compare.launch import launcher
from blockyard.compare.live import make_board as make_runs_board
from blockyard.compare.processes import STOPPED, Ending, Workers
from blockyard.compare.provenance import machine_of, versions
from blockyard.compare.runs import MOST_LOSSES, train_jobs
from blockyard.errors import InputError
from blockyard.files import plain
from blockyard.mirror import place_of
from blockyard.training.folder import LOCK as RUN_LOCK
from blockyard.training.folder import held
from blockyard.training.interrupt import Interrupted, StopRequest
from blockyard.tune import schema
from blockyard.tune.board import Line, make_board
from blockyard.tune.finals import Candidate, best_trials, candidates_of, fresh_seeds, jobs_of, read_finals
from blockyard.tune.output import write_record
from blockyard.tune.plan import SearchSpec
from blockyard.tune.record import finals_of, make_record
from blockyard.tune.report import write_report
from blockyard.tune.search import open_study, unfinished
from blockyard.tune.start import DefaultRun, SearchState, terms_of
from blockyard.tune.storage import GRACE_SECONDS, Others, begun, offer, owner_of, reaching, take_over
from blockyard.tune.trials import DRAWN, NOTE, RESULT, SAME_AS, STATUS, Search, fail_trial, folder_of, sweep

WORKER = "blockyard.tune.worker"
# Between two looks at what others are at.
LOOK_SECONDS = 1.0


class Session:
    """One search, from its first trial to its report.

    Args:
        start: what is known before.
        out: its folder, which `state` holds.
        state: its terms and clock.
        show: whether a person is shown how it goes.
    """

    def __init__(self, start: DefaultRun, out: Path, state: SearchState, show: bool) -> None:
        self.start, self.out, self.state, self.config = start, out, state, start.config
        self.study = open_study(out, start.config, start.quality.better, terms=terms_of(start))
        self.owner = owner_of(out, joined=False)
        self.board: Any = make_board(show, start.quality.metric)
        self.shown = show
        self.spec = SearchSpec(start.task, start.quality, start.config, start.space, start.fixed, start.default, out)
        self.began, self.before = time.monotonic(), float(state.data.get("seconds", 0.0))
        self.candidates: list[Candidate] = []
        self.jobs: dict[int, list[Job]] = {}
        self.parameters: dict[str, int] = {}
        self._written = -1
        # How workers were lost since they were last started.
        self._endings: list[Ending] = []
        self._best: schema.Best | None = None

    def close(self) -> None:
        self.board.close()

    def run(self) -> schema.Tuning:
        sweep(self.out, self.study)
        try:
            with reaching(self.config.storage):
                self._search_all()
            self._refuse_nothing()
            self.candidates = candidates_of(self.study, self.spec)
            seeds = fresh_seeds(self.candidates, self.spec)
            if seeds:
                self.jobs, self.parameters = jobs_of(self.candidates, seeds, self.spec, self.start.cache)
                self.board.say(f"running again with fresh seeds: {', '.join(self.parameters)}")
                self._record("running again")
                self.board.close()
                self.board = make_runs_board(self.shown, self.start.kind.unit)
                train_jobs(self.jobs, self.config.budget, self.board)
            record = self._record("complete")
        finally:
            self._keep_clock()
        files = write_report(record, self.out)
        self.board.say(record["verdict"]["headline"])
        self.board.say(f"report: {place_of(files['html'])}")
        return record

    def _keep_clock(self) -> None:
        self.state.data["seconds"] = self.before + time.monotonic() - self.began
        self.state.save()

    def _search_all(self) -> None:
        """Make the trials; of a search that others have joined until theirs have ended, too."""
        if self.config.storage is None:
            self._search(unfinished(self.study))
            return
        offer(self.study, self.config.trials)
        self._search(unfinished(self.study, self.owner))
        others, told = Others(self.study, self.owner), set[int]()
        with StopRequest().listening() as stop:
            while others.running():
                if stop.signal is not None:
                    raise Interrupted(stop.signal, STOPPED)
                lost = []
                for number in others.lost():
                    # Of one that we see the folder of: cut off from the database, and at it all the same.
                    if held(folder_of(self.out, number) / RUN_LOCK):
                        if number not in told:
                            self.board.say(f"trial {number}: nothing is heard of it, but its folder is in use; waiting")
                        told.add(number)
                        continue
                    lost.append(number)
                    self.board.say(f"trial {number}: nothing was heard of it for {GRACE_SECONDS:.0f} s; made here")
                    take_over(self.study, number, self.owner)
                if lost:
                    self._search(lost)
                self.watch()
                time.sleep(LOOK_SECONDS)
        self.watch(now=True)

    def _search(self, waiting: list[int]) -> None:
        if self.config.spreads:
            self._search_spread(waiting)
            return
        with StopRequest().listening() as stop:
            Search(self.spec, self.study, self.start.cache, stop, self.watch, self.owner).run(waiting)
        self.watch(now=True)

    def _search_spread(self, waiting: list[int]) -> None:
        """Search with several processes, begun again where they were killed, until there are enough trials."""
        many, deaths, losses = self.config.workers, Counter[int](), Counter[int]()
        while True:
            before = len(begun(self.study))
            self._endings.clear()
            self._spread([waiting[i::many] for i in range(many)])
            left = self._unfinished()
            # A machine that goes takes trials along that are not to blame; which worker had which, nobody knows.
            (deaths if any(ending.blamed for ending in self._endings) else losses).update(left)
            for number in left:
                if deaths[number] > 1:
                    fail_trial(self.study, number, "its process was killed twice")
                elif losses[number] > MOST_LOSSES:
                    fail_trial(self.study, number, f"its process was lost with its machine {losses[number]} times")
            waiting = self._unfinished()
            made = len(begun(self.study))
            if not waiting and made >= self.config.trials:
                return
            if not left and made == before:
                raise RuntimeError("every worker was killed before it began a trial")

    def _unfinished(self) -> list[int]:
        return unfinished(self.study, None if self.config.storage is None else self.owner)

    def _spread(self, shares: Sequence[Sequence[int]]) -> None:
        def heard(message: dict[str, Any]) -> None:
            if "say" in message:
                self.board.say(message["say"])
            self.watch()

        threads = self.start.threads or self.config.threads(len(shares))
        requests = [
            {
                "folder": str(self.out.absolute()),
                "share": list(share),
                "config": asdict(self.config),
                "threads": threads,
                "task": self.start.task,
                # As the user gave them, not as the folder's files have them: they name the plug-ins to import.
                "fixed": plain(self.start.fixed),
                "space": [dimension.to_dict() for dimension in self.start.space.dimensions],
                "first": plain(self.start.groups),
                "better": self.start.quality.better,
                "owner": self.owner,
                "terms": plain(terms_of(self.start)),
            }
            for share in shares
        ]
        # The search is in use for as long as one of them lives, even if this process is killed.
        with launcher(self.config, WORKER, self.out, held=[self.state.lock]) as launch:
            Workers(launch, requests, heard, self._lost).wait()

    def _lost(self, request: Mapping[str, Any], ending: Ending) -> list[Mapping[str, Any]]:
        """Say that a worker died. The others go on with the search; what it was at is begun again after them."""
        self._endings.append(ending)
        self.board.say(f"a worker {ending.lost}; what it was at is begun again")
        return []

    def watch(self, *, now: bool = False) -> None:
        """Show all trials, and keep the record when one has ended."""
        trials = begun(self.study)
        best = best_trials(self.study, 1)
        lines = [_line(trial, self.config.evaluations, trial.number in best) for trial in trials]
        over = sum(trial.state.is_finished() for trial in trials)
        self.board.show(lines, now=now or over != self._written)
        if over != self._written:
            self._record("searching")
            self._written = over

    def _refuse_nothing(self) -> None:
        """Refuse a search in which nothing finished has nothing to say."""
        if best_trials(self.study, 1):
            return
        trials = begun(self.study)
        first = next((t.user_attrs for t in trials if t.user_attrs.get(NOTE)), {})
        raise InputError(
            f"none of {len(trials)} trials finished; the first {first.get(STATUS, 'failed')}: {first.get(NOTE, '')}"
        )

    def _record(self, status: str) -> schema.Tuning:
        start = self.start
        runs, seeds = read_finals(self.jobs), list(self.jobs)
        finals = finals_of(self.spec, self.study, self.candidates, seeds, runs, self.parameters) if seeds else []
        record = make_record(self.spec, self.study, status, finals, seeds, self._provenance(), start.notes)
        changed = record["best"] is not None and record["best"] != self._best
        write_record(record, self.spec, start.cache if changed else None)
        self._best = record["best"]
        return record

    def _provenance(self) -> dict[str, Any]:
        start = self.start
        command = self.config.command(start.task, start.space.text, start.fixed, place_of(self.out))
        return {
            "command": command,
            "versions": versions(),
            "data": plain(start.data.fingerprint),
            "machine": machine_of(start.run),
            "seconds_total": self.before + time.monotonic() - self.began,
        }


def _line(trial: FrozenTrial, evaluations: int, is_best: bool) -> Line:
    """Return how far a trial is, from the journal alone: another process may be making it."""
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
