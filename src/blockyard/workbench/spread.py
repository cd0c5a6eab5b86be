"""Trains the runs of a comparison in several processes at once, each with its share, for `--workers`.

A run is the same in whichever process it is made: batches and weights are functions of its seed. What a worker leaves
behind when it is stopped is an ordinary run folder, so the same command goes on, with as many workers as it likes.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch

import blockyard
from blockyard.errors import InputError
from blockyard.training.resolve import as_groups
from blockyard.training.signals import Interrupted, StopRequest
from blockyard.workbench import schema
from blockyard.workbench.live import Board, Line
from blockyard.workbench.runs import Job, kept_results, lines_of, read_result
from blockyard.workbench.settings import CompareConfig

POLL_SECONDS = 0.2
Key = tuple[str, int]


def train_spread(jobs: Mapping[int, list[Job]], config: CompareConfig, board: Board) -> dict[Key, schema.Run]:
    """Train what is missing with `config.workers` processes; returns every run by (choice, seed).

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
        _Workers(shares, config, board, lines).wait()
    for job in missing:
        run = read_result(job.folder)
        assert run is not None, f"{job.folder} holds no result"
        results[(job.planned.name, job.seed)] = run
    return results


class _Workers:
    """The processes and what they say."""

    def __init__(
        self, shares: Sequence[Sequence[Job]], config: CompareConfig, board: Board, lines: Mapping[Key, Line]
    ) -> None:
        self.board, self.lines = board, lines
        self.said: queue.Queue[dict[str, Any]] = queue.Queue()
        self.errors: list[str] = []
        # Runs that are to be compared by the clock share the cores evenly; the option, when given, has the last word.
        threads = max(1, torch.get_num_threads() // len(shares))
        self.processes = [self._start(share, config, threads) for share in shares]

    def _start(self, share: Sequence[Job], config: CompareConfig, threads: int) -> subprocess.Popen[str]:
        source = str(Path(blockyard.__file__).parents[1])
        path = os.pathsep.join(part for part in (source, os.environ.get("PYTHONPATH", "")) if part)
        process = subprocess.Popen(
            [sys.executable, "-m", "blockyard.workbench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        given = share[0].run.train.threads
        request = {"config": asdict(config), "threads": given or threads, "jobs": [_described(job) for job in share]}
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(request, default=list) + "\n")
        process.stdin.flush()
        threading.Thread(target=self._listen, args=(process.stdout,), daemon=True).start()
        return process

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                self.said.put(json.loads(line))
            except ValueError:
                # A library that prints.
                self.said.put({"say": line.rstrip()})

    def wait(self) -> None:
        """Show what they do until all have ended."""
        stopping = False
        with StopRequest().listening() as stop:
            try:
                while any(process.poll() is None for process in self.processes):
                    self._show()
                    failed = any(process.poll() not in (None, 0) for process in self.processes)
                    if not stopping and (failed or stop.signal is not None):
                        stopping = True
                        self._ask_to_stop()
                self._show(last=True)
            finally:
                self._ask_to_stop()
                for process in self.processes:
                    process.wait()
                    assert process.stdin is not None
                    process.stdin.close()
        if self.errors:
            raise InputError(self.errors[0])
        if stop.signal is not None:
            raise Interrupted(stop.signal, "stopped and saved; the same command continues")
        codes = [process.returncode for process in self.processes]
        if any(codes):
            raise RuntimeError(f"a worker ended with status {next(code for code in codes if code)}; see above")

    def _ask_to_stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def _show(self, *, last: bool = False) -> None:
        try:
            while True:
                message = self.said.get(timeout=0 if last else POLL_SECONDS)
                for found in message.get("lines", []):
                    line = self.lines[(found["name"], found["seed"])]
                    for name, value in found.items():
                        setattr(line, name, value)
                if "say" in message:
                    self.board.say(message["say"])
                if "error" in message:
                    self.errors.append(message["error"])
                if not last:
                    break
        except queue.Empty:
            pass
        self.board.show(list(self.lines.values()))


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
