"""Where a report's figures come from: versions and machine."""

from __future__ import annotations

import os
from typing import Any

import torch

from blockyard.machine.processor import processor_name, system_name
from blockyard.tasks.kind import Run
from blockyard.training.environment import describe_environment


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and what it runs on."""
    found = describe_environment(torch.device("cpu"), 1)
    return {"blockyard": found["blockyard"], "python": found["python"], **found["packages"]}


def machine_of(base: Run[Any, Any]) -> dict[str, Any]:
    """Return the machine as a report tells it."""
    cuda = torch.cuda.is_available() and base.train.device != "cpu"
    return {
        "cpu": processor_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "memory_bytes": _memory(),
        "accelerator": torch.cuda.get_device_name() if cuda else None,
        "system": system_name(),
    }


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
