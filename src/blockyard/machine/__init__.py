"""The machine: how much memory and which processor there is, and what torchrun tells a process.

    refuse what is larger than: min(machine, container's control group, process limits, CUDA device), what of it is free

Estimates are lower bounds, so what is refused could not have gone well; --force, force=True or `forcing()` overrides.

Files:

    memory.py      what can still be had, and the one refusal of what would not fit
    launch.py      which of how many processes this is, read from the environment without torch
    processor.py   the names of processor and system, for records
    beats.py       something done every so many seconds beside the work
    pages.py       large buffers in huge pages, where the system has them (Linux)

A program of your own needs `forcing` around `load_run` at most:

    with forcing():
        model, tokenizer, run = load_run("runs/large")

What is estimated and refused: docs/errors.md; what huge pages are worth: docs/decoding.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockyard.names import exports

if TYPE_CHECKING:
    from blockyard.machine.memory import available_bytes as available_bytes
    from blockyard.machine.memory import forcing as forcing
else:
    __all__ = exports(
        __name__,
        {
            "memory": "available_bytes forcing",
        },
    )
