"""Starts workers where the options say: as processes of this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import IO, Any

from blockyard.compare.address import check_cluster
from blockyard.compare.engine import EngineConfig
from blockyard.compare.processes import Launch, ProcessWorker, Worker, message_of
from blockyard.errors import require


def check_reachable(config: EngineConfig) -> None:
    """Refuse an engine that is not there, before data are read for it.

    Raises:
        InputError: for a package that is not installed, or a cluster that does not answer.
    """
    if config.engine == "ray":
        check_cluster(require("ray", extra="ray"), config.ray_address)


@contextmanager
def launcher(config: EngineConfig, module: str, out: Path, held: Sequence[IO[Any]] = ()) -> Iterator[Launch]:
    """Give what starts workers where the options say.

    Args:
        config: the options.
        module: what each worker runs, as `python -m`.
        out: the folder that all of them write into.
        held: open files that workers of this machine keep open too, such as a lock.

    Raises:
        InputError: for a cluster that is not there, or has no machine with what a worker takes.
    """
    if config.engine == "ray":
        # It stands on Ray, which few have.
        from blockyard.compare.cluster import cluster_launcher

        with cluster_launcher(config, module, out) as launch:
            yield launch
        return

    def start(request: Mapping[str, Any], said: Queue[dict[str, Any]]) -> Worker:
        return ProcessWorker(module, request, lambda line: said.put(message_of(line)), held)

    yield start
