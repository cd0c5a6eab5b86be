"""What a run ran on: versions and machine, for whoever wants to repeat it."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Any

import torch

import blockyard
from blockyard.machine.processor import processor_name, system_name

# What can change the numbers of a run or how its data are read; the rest of an environment cannot.
RECORDED = ("torch", "numpy", "safetensors", "tokenizers", "pyarrow")


def describe_environment(device: torch.device, ranks: int) -> dict[str, Any]:
    """Return versions of what computes and reads, and the machine, as plain data."""
    return {
        "blockyard": blockyard.__version__,
        "python": sys.version.split()[0],
        "platform": system_name(),
        "packages": {name: version for name in RECORDED if (version := _version(name))},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ranks": ranks,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
