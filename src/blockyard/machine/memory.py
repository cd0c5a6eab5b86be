"""How much memory there is, and the one refusal of what would not fit into it.

What is about to be built is estimated first and compared with what can still be had: of the machine, of the control
group that a container runs in, of the process's own limits, or of an accelerator. Estimates are lower bounds, so what
is refused could not have gone well. `force` overrides: swap may be large, or another program about to end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from blockyard.errors import InputError

if TYPE_CHECKING:
    import torch

# How worker processes are told what their parent was.
FORCE = "BLOCKYARD_FORCE"
_forced: ContextVar[bool] = ContextVar("forced", default=False)
# Control groups without a limit say so with a word or, in their first version, with a number near 2**63.
_NO_LIMIT = 1 << 60
_CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def forcing(force: bool = True) -> Iterator[None]:
    """Refuse nothing for its size within it, if `force` (or an outer one) says so."""
    token = _forced.set(_forced.get() or force)
    try:
        yield
    finally:
        _forced.reset(token)


def is_forced() -> bool:
    """Return whether the user takes the risk."""
    return _forced.get() or os.environ.get(FORCE) == "1"


def worker_environment() -> dict[str, str]:
    """Return what a worker process's environment has beside this one's."""
    return {FORCE: "1"} if is_forced() else {}


def refuse_beyond_memory(
    needed: float, what: str, device: torch.device | None = None, less: str = "ask for less"
) -> None:
    """Refuse what takes more memory than there is.

    Args:
        needed: bytes that it takes at least.
        what: it, and how the bytes come about: "the model takes at least {} to train (…)"; {} stands for the bytes.
        device: where it would be; the CPU when not given.
        less: what the user is told to do.

    Raises:
        InputError: unless it fits, is forced, or nothing is known of the memory.
    """
    if is_forced():
        return
    there = available_bytes(device)
    if there is not None and needed > there:
        where = f"{device} has" if device is not None and device.type == "cuda" else "this machine has"
        raise InputError(
            f"{what.format(in_words(needed))}, and {where} {in_words(there)} free: "
            f"{less}, or take the risk with --force (force=True)"
        )


def in_words(size: float) -> str:
    """Return bytes for people: "1.5 GB"."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if size < 1000 or unit == "PB":
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit ends the loop")


def available_bytes(device: torch.device | None = None) -> int | None:
    """Return bytes that can still be had, by what is tightest; None where the system does not tell."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    limits = [_of_machine(), *_of_control_groups(), *_of_process()]
    return min((limit for limit in limits if limit is not None), default=None)


def _of_machine() -> int | None:
    """Return what programs can have without forcing others out, swap included."""
    found: dict[str, int] = {}
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            found[name] = int(rest.split()[0]) * 1024
    if "MemAvailable" in found:
        return found["MemAvailable"] + found.get("SwapFree", 0)
    # Other systems tell the whole alone.
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_control_groups() -> Iterator[int]:
    """Yield what is left of the limit of every control group that this process is in (Linux)."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, limit, used, idle = _CGROUPS, "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                root, limit, used, idle = (
                    _CGROUPS / "memory",
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                )
            else:
                continue
            # In a container the path may be the host's, and the group's own files stand at the root.
            folders = {root, *((root / path.lstrip("/")) / up for up in ("", "..", "../.."))}
            for folder in folders:
                yield from _left(folder / limit, folder / used, folder / "memory.stat", idle)


def _left(limit: Path, used: Path, statistics: Path, idle: str) -> Iterator[int]:
    with suppress(OSError, ValueError):
        most = int(limit.read_text(encoding="ascii"))
        if most < _NO_LIMIT:
            told = dict(line.split(maxsplit=1) for line in statistics.read_text(encoding="ascii").splitlines())
            # Pages of files that nobody uses are given up first.
            yield max(most - int(used.read_text(encoding="ascii")) + int(told.get(idle, 0)), 0)


def _of_process() -> Iterator[int]:
    """Yield what is left of this process's address space, if `ulimit -v` bounds it."""
    if sys.platform == "win32":
        return
    import resource

    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            yield max(most - pages * resource.getpagesize(), 0)
