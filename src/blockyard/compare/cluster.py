"""Workers on the machines of a Ray cluster (extra `ray`).

A worker is the same process as on one machine. On its machine a keeper starts it, keeps its standard input open and
hands on its lines; Ray places keepers by the cores, GPUs and memory they take, and says when one is lost with its
machine. Run folders lie on storage that all machines see, or at a URL from which keepers fetch and to which they send.
A lost machine costs what its runs had done since their last checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import uuid4

from blockyard.compare.address import START, check_cluster
from blockyard.compare.engine import EngineConfig
from blockyard.compare.keeper import Keeper, versions_here
from blockyard.compare.processes import Ending, Launch, Worker, message_of, module_environment
from blockyard.errors import InputError, require
from blockyard.files import make_folder, write_atomically
from blockyard.machine.memory import is_forced
from blockyard.mirror import Mirror, mirror_of

# A line now and then is all that a worker says; a keeper that has nothing to say answers after this long.
HEAR_SECONDS = 0.5
GIB = 2**30
PROBE = "seen-by-all"


@contextmanager
def cluster_launcher(config: EngineConfig, module: str, out: Path) -> Iterator[Launch]:
    """Join the cluster and give what starts workers on it.

    Args:
        config: which cluster, and what a worker takes.
        module: what each worker runs, as `python -m`.
        out: the folder that all of them write into, on storage that all machines see.

    Raises:
        InputError: for a cluster that is not there, or has no machine with what a worker takes.
    """
    ray = require("ray", extra="ray")
    _join(ray, config)
    _check_room(ray, config)
    # Ray's own objects have no types; an actor is made of a plain class, which is tested without Ray.
    actor = ray.remote(Keeper).options(
        num_cpus=config.ray_cores,
        num_gpus=config.ray_gpus,
        memory=None if config.ray_memory is None else round(config.ray_memory * GIB),
        # A question that waits for lines must not keep out the order to stop.
        max_concurrency=4,
        # What is lost is asked for again by whoever knows what is left of it.
        max_restarts=0,
    )
    # What a keeper finds there says that it sees this very folder, and not one of the same name.
    token = uuid4().hex
    probe = out.absolute() / f"{PROBE}-{token[:8]}"
    make_folder(probe.parent)
    write_atomically(probe, token)
    here = {"cwd": str(Path.cwd()), "probe": str(probe), "token": token, "versions": versions_here()}
    mirror = mirror_of(out)
    if mirror is not None:
        # Each machine fetches what its worker needs, and sends what that makes.
        mirror.push()
        here |= {"url": mirror.url, "local": str(out.absolute())}

    def start(request: Mapping[str, Any], said: Queue[dict[str, Any]]) -> Worker:
        # A keeper's process has nothing of this one's environment.
        return ClusterWorker(ray, actor.remote(module, dict(request), {**here, "forced": is_forced()}), said, mirror)

    try:
        yield start
    finally:
        probe.unlink(missing_ok=True)


class ClusterWorker:
    """A worker on some machine of the cluster, as the machine that asked for it sees it.

    Args:
        ray: the package.
        keeper: its keeper there; it may still be waiting for room.
        said: takes what the worker says.
        mirror: of the folder that it works in, where that is kept at a URL.
    """

    def __init__(self, ray: Any, keeper: Any, said: Queue[dict[str, Any]], mirror: Mirror | None = None) -> None:
        self._ray, self._keeper, self._said, self._mirror = ray, keeper, said, mirror
        self._ending: Ending | None = None
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        ray = self._ray
        ended: Ending | None = None
        try:
            while ended is None:
                # Waits for as long as the cluster has no room for it.
                lines, ending = ray.get(self._keeper.hear.remote(HEAR_SECONDS))
                for line in lines:
                    self._said.put(message_of(line))
                if ending is not None:
                    ended = Ending(**ending)
        except ray.exceptions.RayActorError:
            ended = Ending(lost="was lost with its machine", blamed=False)
        except ray.exceptions.RayTaskError as error:
            # What the keeper itself refused, such as a machine that does not see the folder.
            cause = error.cause
            self._said.put({"error": str(cause) if isinstance(cause, InputError) else f"a worker's machine: {cause!r}"})
            ended = Ending(2)
        except ray.exceptions.RayError as error:
            ended = Ending(lost=f"was lost with the cluster ({type(error).__name__})", blamed=False)
        if self._mirror is not None:
            try:
                # Whoever learns of the end looks into the folders.
                self._mirror.pull()
            except InputError as error:
                self._said.put({"error": str(error)})
        self._ending = ended

    def poll(self) -> Ending | None:
        """Return how it ended, None while it runs or waits for room."""
        return self._ending

    def stop(self) -> None:
        """Ask it to save and stop."""
        if self._ending is None:
            self._keeper.stop.remote()

    def wait(self) -> None:
        """Wait for its end and give back what it took of the cluster."""
        self._listener.join()
        self._ray.kill(self._keeper)


def _join(ray: Any, config: EngineConfig) -> None:
    """Join the cluster, once in a process."""
    if ray.is_initialized():
        return
    check_cluster(ray, config.ray_address)
    local = config.ray_address == "local"
    # Keepers find the package where this process has it; what an installation brings is on every machine already.
    environment = {"PYTHONPATH": module_environment()["PYTHONPATH"]}
    try:
        ray.init(
            address="local" if local else config.ray_address,
            runtime_env={"env_vars": environment},
            include_dashboard=False if local else None,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"ray.address={config.ray_address!r}: no Ray cluster answers there ({reason}); {START}"
        ) from error


def _check_room(ray: Any, config: EngineConfig) -> None:
    """Refuse workers that no machine of the cluster could ever hold: Ray would wait for one for ever."""
    taken = {"CPU": float(config.ray_cores), "GPU": config.ray_gpus, "memory": (config.ray_memory or 0) * GIB}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in taken.items()) for node in nodes):
        return
    largest = "; ".join(
        f"{node.get('CPU', 0):g} cores, {node.get('GPU', 0):g} GPUs, {node.get('memory', 0) / GIB:.1f} GiB"
        for node in nodes
    )
    raise InputError(
        f"no machine of the cluster has ray.cores={config.ray_cores}, ray.gpus={config.ray_gpus:g}"
        f"{'' if config.ray_memory is None else f', ray.memory={config.ray_memory:g}'}; there are: {largest or 'none'}"
    )
