"""Trains the runs of a comparison in several processes at once, each with its share, for `--workers`.

A run is the same in whichever process it is made: batches and weights are functions of its seed. What a worker leaves
behind when it is stopped is an ordinary run folder, so the same command goes on, with as many workers as it likes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from blockyard.compare.live import Board
from blockyard.compare.processes import Workers, signal_name
from blockyard.compare.runs import Job, end_line, kept_results, lines_of, lost_run, read_result
from blockyard.compare.settings import CompareConfig
from blockyard.report import schema
from blockyard.tasks.settings import as_groups
from blockyard.training.folder import LOCK, held

POLL_SECONDS = 0.2
# How long a worker whose starter was killed may take to save and stop: a slice of steps and an evaluation.
ORPHAN_SECONDS = 120.0
Key = tuple[str, int]


def train_spread(
    jobs: Mapping[int, list[Job]], config: CompareConfig, data: Any, board: Board
) -> dict[Key, schema.Run]:
    """Train what is missing with `config.workers` processes; returns every run by (choice, seed).

    The runs of a worker that is killed are begun again, each by itself; one that takes its process with it once more is
    recorded as killed.

    Raises:
        InputError: for what a worker could not do, when the others have been stopped and saved.
        Interrupted: after SIGTERM or SIGINT, when the runs in training have been saved.
    """
    lines = lines_of(jobs)
    results = kept_results(jobs, lines)
    board.show(list(lines.values()), now=True)
    missing = [job for group in jobs.values() for job in group if (job.planned.name, job.seed) not in results]
    if missing:
        shares = [missing[i :: config.workers] for i in range(min(config.workers, len(missing)))]

        def heard(message: dict[str, Any]) -> None:
            for found in message.get("lines", []):
                line = lines[(found["name"], found["seed"])]
                for name, value in found.items():
                    setattr(line, name, value)
            if "say" in message:
                board.say(message["say"])
            board.show(list(lines.values()))

        deaths: Counter[Key] = Counter()

        def lost(request: Mapping[str, Any], number: int) -> list[dict[str, Any]]:
            keys = {(job["name"], job["seed"]) for job in request["jobs"]}
            left = [j for j in missing if (j.planned.name, j.seed) in keys and read_result(j.folder) is None]
            again = []
            for job in left:
                key = (job.planned.name, job.seed)
                deaths[key] += 1
                if deaths[key] > 1 and len(left) == 1:
                    why = f"its process died of {signal_name(number)} twice, the second time by itself"
                    killed = lost_run(job, "killed", why, job.run.kind.quality(data))
                    lines[key].status = killed["status"]
                    board.say(end_line(job, killed, job.run.kind.quality(data)))
                else:
                    again.append([job])
            if again:
                board.say(f"a worker died of {signal_name(number)}; begun again: {_named(again)}")
            return _requests(again, config, request["threads"])

        Workers("blockyard.compare.worker", _requests(shares, config), heard, lost=lost).wait()
    for job in missing:
        run = read_result(job.folder)
        assert run is not None, f"{job.folder} holds no result"
        results[(job.planned.name, job.seed)] = run
    return results


def wait_for_orphans(jobs: Mapping[int, list[Job]], board: Board) -> None:
    """Wait until nobody holds a run any more: workers whose starter was killed save first, and then stop.

    After two minutes it is somebody else, as the run's folder will say.
    """
    locks = [job.folder / LOCK for group in jobs.values() for job in group]
    until, told = time.monotonic() + ORPHAN_SECONDS, False
    while any(map(held, locks)) and time.monotonic() < until:
        if not told:
            board.say("waiting for a worker of an earlier comparison to save and stop")
            told = True
        time.sleep(POLL_SECONDS)


def _named(shares: Sequence[Sequence[Job]]) -> str:
    return ", ".join(f"{job.planned.name} seed {job.seed}" for share in shares for job in share)


def _requests(
    shares: Sequence[Sequence[Job]], config: CompareConfig, threads: int | None = None
) -> list[dict[str, Any]]:
    if not shares:
        return []
    # Runs that are to be compared by the clock share the cores evenly; the option, when given, has the last word.
    threads = threads or shares[0][0].run.train.threads or max(1, torch.get_num_threads() // len(shares))
    return [{"config": asdict(config), "threads": threads, "jobs": [_described(job) for job in s]} for s in shares]


def _described(job: Job) -> dict[str, Any]:
    return {
        "name": job.planned.name,
        "seed": job.seed,
        "folder": str(job.folder),
        "groups": as_groups(job.run),
        "fitted": {name: getattr(job.run.model, name) for name in job.run.kind.from_data},
        "match": job.planned.match,
        "seconds_per_step": job.planned.seconds_per_step,
    }
