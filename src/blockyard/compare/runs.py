"""Trains the runs of a comparison, in this process or spread over several.

Every run is an ordinary run folder with exact resume, so a comparison killed at any moment goes on where its last
checkpoints are. With `--workers` several processes take a share each: a run is the same whichever process makes it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from blockyard.compare.budget import Budget
from blockyard.compare.jobs import Job, Key, described, end_line, kept_results, lines_of, lost_run
from blockyard.compare.launch import launcher
from blockyard.compare.live import Board
from blockyard.compare.processes import Ending, Workers
from blockyard.compare.results import read_result
from blockyard.compare.sharing import ORPHAN_SECONDS, POLL_SECONDS, Sharing
from blockyard.compare.turns import train_all
from blockyard.mirror import mirror_of
from blockyard.report import schema
from blockyard.training.folder import LOCK, held

# Machines of a cluster come and go; a run that has lost so many may be what ends them.
MOST_LOSSES = 5


def train_jobs(
    jobs: Mapping[int, list[Job]], budget: Budget, board: Board, sharing: Sharing | None = None
) -> dict[Key, schema.Run]:
    """Train what is missing, in this process or by the workers that the budget names, and by whoever has joined;
    returns every run by (choice, seed).

    Args:
        jobs: the runs, by seed.
        budget: what each may spend, and where they are trained.
        board: shows them.
        sharing: where other processes are offered runs; None offers none.

    Raises:
        InputError: for what a worker could not do, when the others have been stopped and saved.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    wait_for_orphans(jobs, board, sharing)
    return (train_spread if budget.engine.spreads else train_all)(jobs, budget, board, sharing)


def train_spread(
    jobs: Mapping[int, list[Job]], budget: Budget, board: Board, sharing: Sharing | None = None
) -> dict[Key, schema.Run]:
    """Train what is missing with as many workers as the budget's engine has; returns every run by (choice, seed).

    The runs of a worker that is killed are begun again, each by itself; one that takes its process with it once more is
    recorded as killed. One whose machine is lost is not to blame for it, until that has happened too often.

    Raises:
        InputError: for what a worker could not do, when the others have been stopped and saved.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
    results = kept_results(jobs, lines)
    board.show(list(lines.values()), now=True)
    missing = [job for group in jobs.values() for job in group if job.key not in results]
    if missing:
        if sharing is not None:
            sharing.offer(missing, budget)
        # Dealt like cards: every worker has runs of every seed, and ends about when the others do.
        many = min(budget.engine.workers, len(missing))
        shares = [missing[i::many] for i in range(many)]

        def heard(message: dict[str, Any]) -> None:
            for found in message.get("lines", []):
                line = lines[(found["name"], found["seed"])]
                for name, value in found.items():
                    setattr(line, name, value)
            if "say" in message:
                board.say(message["say"])
            board.show(list(lines.values()))

        # By run: the process that memory ended held several, of which one is to blame.
        deaths, losses = Counter[Key](), Counter[Key]()

        def lost(request: Mapping[str, Any], ending: Ending) -> list[dict[str, Any]]:
            keys = {(job["name"], job["seed"]) for job in request["jobs"]}
            left = [j for j in missing if j.key in keys and read_result(j.folder) is None]
            again = []
            for job in left:
                (deaths if ending.blamed else losses)[job.key] += 1
                alone = deaths[job.key] > 1 and len(left) == 1
                if alone or losses[job.key] > MOST_LOSSES:
                    why = f"its process {ending.lost} {losses[job.key]} times"
                    if ending.blamed:
                        why = f"its process {ending.lost} twice, the second time by itself"
                    killed = lost_run(job, "killed", why)
                    lines[job.key].status = killed["status"]
                    board.say(end_line(job, killed, job.quality))
                else:
                    # Each by itself, so that the next death names the one that cannot be trained here.
                    again.append([job])
            if again:
                board.say(f"a worker {ending.lost}; begun again: {_named(again)}")
            return _requests(again, budget, sharing, request["threads"])

        # Of a run its choice's folder, and of that the one in which all of them are.
        with launcher(budget.engine, "blockyard.compare.worker", missing[0].folder.parents[1]) as launch:
            Workers(launch, _requests(shares, budget, sharing), heard, lost).wait()
    for job in missing:
        run = read_result(job.folder)
        assert run is not None, f"{job.folder} holds no result"
        results[job.key] = run
    return results


def wait_for_orphans(jobs: Mapping[int, list[Job]], board: Board, sharing: Sharing | None = None) -> None:
    """Wait until nobody holds a run any more: workers whose starter was killed save first, and then stop.

    After two minutes it is somebody else, as the run's folder will say. Those who have joined may hold runs for hours.
    """
    # Their own locks, and not the comparison's: that one went with the process that was killed.
    locks = [job.folder / LOCK for group in jobs.values() for job in group]
    until, told = time.monotonic() + ORPHAN_SECONDS, False
    while any(map(held, locks)) and time.monotonic() < until and not (sharing is not None and sharing.joined()):
        if not told:
            board.say("waiting for a worker of an earlier comparison to save and stop")
            told = True
        time.sleep(POLL_SECONDS)


def _named(shares: Sequence[Sequence[Job]]) -> str:
    return ", ".join(f"{job.planned.name} seed {job.seed}" for share in shares for job in share)


def _requests(
    shares: Sequence[Sequence[Job]], budget: Budget, sharing: Sharing | None, threads: int | None = None
) -> list[dict[str, Any]]:
    if not shares:
        return []
    # Runs that are to be compared by the clock share the cores evenly; the option, when given, has the last word.
    threads = threads or shares[0][0].run.train.threads or budget.engine.threads(len(shares))
    # Nobody joins where each machine has a folder of its own.
    out = None if sharing is None or mirror_of(sharing.out) is not None else str(sharing.out.absolute())
    return [
        {"budget": budget.as_request(), "threads": threads, "out": out, "jobs": [described(job) for job in share]}
        for share in shares
    ]
