"""Workers that each do a share of some work: started, listened to, and asked to save and stop together.

A worker reads one line of JSON from standard input, does what it says, and writes a JSON line now and then. When its
standard input ends, whoever started it is gone: it saves and stops.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import blockyard
from blockyard.errors import InputError
from blockyard.machine.memory import worker_environment
from blockyard.training.interrupt import Interrupted, StopRequest

# One sentence for one thing, whether one process or eight were stopped.
STOPPED = "stopped and saved; the same command continues"
POLL_SECONDS = 0.2


# A process that saves itself on a signal ends with 128 and the signal's number, as shells have it.
# Python says −15 for a process that a signal ended; a shell, and what handles signals itself, 143.
_SIGNALLED = 128


@dataclass(frozen=True)
class Ending:
    """How a worker ended.

    Attributes:
        status: its own status: 0, or an answer in itself; of no meaning where something happened to it.
        lost: what happened to it, as "a worker …" goes on; empty where it ended by itself.
        blamed: whether its work may be what ended it (the system takes the largest process when memory ends) and not
            the machine that it was on.
    """

    status: int = 0
    lost: str = ""
    blamed: bool = True


class Worker(Protocol):
    """One worker that has been started, wherever it is."""

    def poll(self) -> Ending | None:
        """Return how it ended, None while it runs; all it said has been handed on by then."""

    def stop(self) -> None:
        """Ask it to save and stop; does nothing to one that has ended."""

    def wait(self) -> None:
        """Wait for its end and let go of it."""


# Starts a worker on a request; what it says goes into the queue.
Launch = Callable[[Mapping[str, Any], "queue.Queue[dict[str, Any]]"], Worker]
Lost = Callable[[Mapping[str, Any], Ending], Sequence[Mapping[str, Any]]]


class Workers:
    """The workers of one piece of work and what they say.

    Args:
        launch: starts one, here or elsewhere (`launch.launcher`).
        requests: what each is asked, as plain data.
        heard: called with each message, and with {} now and then while there is none.
        lost: called when something happened to a worker that nobody here asked for, with its request and its ending;
            returns what shall be asked of new workers in its place. No more than at first run at once.
    """

    def __init__(
        self,
        launch: Launch,
        requests: Sequence[Mapping[str, Any]],
        heard: Callable[[dict[str, Any]], None],
        lost: Lost | None = None,
    ) -> None:
        self._heard, self._lost, self._launch = heard, lost, launch
        # Threads listen and one loop acts: records are made and results written in one place, in one order.
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._errors: list[str] = []
        self._waiting: list[Mapping[str, Any]] = []
        self._running = [(self._start(request), request) for request in requests]
        self._most = len(self._running)

    def _start(self, request: Mapping[str, Any]) -> Worker:
        return self._launch(request, self._said)

    def wait(self) -> None:
        """Hand on what they say until all have ended.

        Raises:
            InputError: for what a worker could not do, when the others have been stopped and saved.
            Interrupted: after SIGTERM or SIGINT, when all have saved.
        """
        # Asked once: a second SIGTERM has its usual effect and would end a worker in the middle of its save.
        stopping, failed = False, list[Ending]()
        with StopRequest().listening() as stop:
            try:
                while self._running:
                    self._hear()
                    failed += self._ended(stopping)
                    if not stopping and (failed or stop.signal is not None):
                        stopping = True
                        self._ask_to_stop()
                self._hear(last=True)
            finally:
                self._ask_to_stop()
                for worker, _ in self._running:
                    worker.wait()
        # What a worker could not do comes before how it ended: the status alone says nothing to a user.
        if self._errors:
            raise InputError(self._errors[0])
        if stop.signal is not None:
            raise Interrupted(stop.signal, STOPPED)
        if failed:
            how = failed[0].lost or f"ended with status {failed[0].status}"
            raise RuntimeError(f"a worker {how}; see above")

    def _ended(self, stopping: bool) -> list[Ending]:
        """Let go of workers that have ended and start others in the place of lost ones; returns how they failed."""
        failed, running = [], []
        for worker, request in self._running:
            ending = worker.poll()
            if ending is None:
                running.append((worker, request))
                continue
            worker.wait()
            if ending.lost and self._lost is not None and not stopping:
                # What it said before it died counts for what is left of its share.
                self._hear(last=True)
                self._waiting += self._lost(request, ending)
            elif ending.lost or ending.status:
                failed.append(ending)
        self._running = running
        # No more than at first: two in place of the one that memory ended would end the same way.
        while self._waiting and len(running) < self._most and not (stopping or failed):
            request = self._waiting.pop(0)
            running.append((self._start(request), request))
        return failed

    def _ask_to_stop(self) -> None:
        for worker, _ in self._running:
            worker.stop()

    def _hear(self, *, last: bool = False) -> None:
        try:
            while True:
                # Waits here and nowhere else, so that a signal is answered within a fifth of a second.
                message = self._said.get(timeout=0 if last else POLL_SECONDS)
                if "error" in message:
                    self._errors.append(message["error"])
                self._heard(message)
                if not last:
                    break
        except queue.Empty:
            self._heard({})


class ProcessWorker:
    """A worker that is a process of this machine.

    Args:
        module: what it runs, as `python -m`.
        request: what it is asked, as plain data.
        hear: called with each line that it says, from a thread.
        held: open files that it keeps open too, such as a lock that shall outlive this process with it.
        folder: where it runs; here by default.
    """

    def __init__(
        self,
        module: str,
        request: Mapping[str, Any],
        hear: Callable[[str], None],
        held: Sequence[IO[Any]] = (),
        folder: str | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            # -P: a file in the current folder that is called like a module of ours would otherwise be run in its place.
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**module_environment(), **worker_environment()},
            # A lock is the folder's for as long as anybody writes there, not for as long as its starter lives.
            pass_fds=[file.fileno() for file in held],
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        # Standard input stays open: its end is how a worker learns that its starter is gone, even by SIGKILL.
        self._process.stdin.write(json.dumps(request, default=list) + "\n")
        self._process.stdin.flush()
        # A pipe that nobody reads fills up and stops the worker.
        self._listener = threading.Thread(target=_listen, args=(self._process.stdout, hear), daemon=True)
        self._listener.start()

    def poll(self) -> Ending | None:
        """Return how it ended, None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        self._listener.join(timeout=POLL_SECONDS)
        # A status of its own, 1 or 2, is an answer; a signal is something that happened to it.
        died_of = -code if code < 0 else code - _SIGNALLED if code > _SIGNALLED else 0
        return Ending(code, f"died of {signal_name(died_of)}" if died_of else "")

    def stop(self) -> None:
        """Ask it to save and stop."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> None:
        """Wait for its end and let go of it."""
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


def _listen(stream: IO[str], hear: Callable[[str], None]) -> None:
    for line in stream:
        hear(line)


def message_of(line: str) -> dict[str, Any]:
    """Return what a line of a worker says."""
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    # A library that prints.
    return found if isinstance(found, dict) else {"say": line.rstrip()}


def module_environment() -> dict[str, str]:
    """Return the environment in which a new process finds this very package."""
    # A checkout on PYTHONPATH or an installed package: whatever this process runs, that one runs.
    source = str(Path(blockyard.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))}


def measured_by(module: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """Run a module in a fresh process that reads a request and prints its answer, both JSON; None where it fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", module],
            input=json.dumps(request, default=list),
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            env=module_environment(),
        )
        # The last line: libraries print what they like before it.
        answer: dict[str, Any] | None = json.loads(done.stdout.strip().splitlines()[-1])
        return answer if done.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def signal_name(number: int) -> str:
    """Name a signal as people do: "SIGKILL"."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ask_for_work() -> dict[str, Any]:
    """Return what standard input asks of this process; from now on it is asked to stop once the one that asks has
    gone."""
    request: dict[str, Any] = json.loads(sys.stdin.readline())

    def wait() -> None:
        # Returns at the end of the pipe, which the system closes with the process that held its other end.
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
    return request


def work_as_asked(work: Callable[[dict[str, Any]], None]) -> int:
    """Do what standard input asks for, telling errors that the user can put right; returns the exit status."""
    try:
        work(ask_for_work())
    except InputError as error:
        report({"error": str(error)})
        return 2
    except Interrupted as stop:
        return int(stop.code) if isinstance(stop.code, int) else 1
    return 0


def report(message: Mapping[str, Any]) -> None:
    """Tell the process that started this one."""
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        # Nobody reads any more; the end of standard input will stop this process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
