"""Where the workers of a comparison, a search or a transplant run: processes of this machine, or of a Ray cluster.

The runs are the same, and so are their folders: an engine only starts worker processes somewhere and hands on what they
say. What has ended is never run again, whichever machine made it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from blockyard.compare.address import split_address
from blockyard.errors import InputError, at_least, at_most, one_of

RAY = "ray_"
# More processes than any machine trains in.
MOST_WORKERS = 1024
# Of what a worker of a cluster may ask for: more than any machine has.
_MOST_CORES, _MOST_GPUS, _MOST_GIB = 4096, 64, 65536


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where runs are trained, and how many at once.

    Args:
        workers: processes that train at once, each a share of the runs; with a budget in seconds they share the clock's
            machine, so one is fairer.
        engine: `local` trains on this machine; `ray` on a Ray cluster whose machines all see the folders of the runs
            and of the data under the same paths. Give as many workers as the cluster has room for.
        ray_address: the cluster: `auto` finds the one that this machine belongs to, HOST:PORT names another, `local`
            starts one here that ends with the command.
        ray_cores: cores that each worker takes, and its threads.
        ray_gpus: GPUs that each worker takes.
        ray_memory: GiB of memory that each worker takes; none takes no account of it.
    """

    workers: int = 1
    engine: Literal["local", "ray"] = "local"
    ray_address: str = "auto"
    ray_cores: int = 1
    ray_gpus: float = 0.0
    ray_memory: float | None = None

    def check_engine(self) -> None:
        """Refuse what no machine has.

        Raises:
            InputError: naming the option.
        """
        one_of(("local", "ray"), engine=self.engine)
        at_least(1, workers=self.workers, **{"ray.cores": self.ray_cores})
        at_most(MOST_WORKERS, workers=self.workers)
        at_most(_MOST_CORES, **{"ray.cores": self.ray_cores})
        # Written so that NaN fails, too.
        if not 0 <= self.ray_gpus <= _MOST_GPUS:
            raise InputError(f"ray.gpus={self.ray_gpus} should be from 0 to {_MOST_GPUS}")
        if self.ray_memory is not None and not 0 < self.ray_memory <= _MOST_GIB:
            raise InputError(f"ray.memory={self.ray_memory} should be above 0, in GiB, and at most {_MOST_GIB}")
        odd = [f"ray.{name}" for name in ("address", "cores", "gpus", "memory") if self._changed(RAY + name)]
        if self.engine != "ray" and odd:
            raise InputError(f"{odd[0]} is of the engine ray: give --engine ray, too")
        if self.ray_address not in ("auto", "local"):
            split_address(self.ray_address)

    def check_join(self, join: bool) -> None:
        """Refuse workers of a process that joins others.

        Raises:
            InputError: saying how several join.
        """
        if join and self.spreads:
            raise InputError("join: one process joins; start the command once for each, without workers or an engine")

    def _changed(self, name: str) -> bool:
        return getattr(self, name) != type(self).__dataclass_fields__[name].default

    @property
    def spreads(self) -> bool:
        """Whether runs are trained by workers, and not in this process."""
        return self.workers > 1 or self.engine != "local"

    def threads(self, workers: int) -> int:
        """Return the threads of each of so many workers, where no option says."""
        if self.engine == "ray":
            return self.ray_cores
        # Not needed to read options, which is all that most of this class's callers do.
        import torch

        return max(1, torch.get_num_threads() // workers)


LOCAL = EngineConfig()
