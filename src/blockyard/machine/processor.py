"""The machine's names, found without starting a process.

`platform.platform()` and `platform.processor()` run `uname -p`. A child that starts in the instant in which its parent
is killed holds the run folder's lock for a moment longer, and whoever resumes at once finds the folder in use.
"""

from __future__ import annotations

import os
from pathlib import Path


def processor_name() -> str:
    """Return the processor's model as far as the system tells it, otherwise its architecture."""
    return _told("model name") or os.uname().machine


def vendor_name() -> str | None:
    """Return who made the processor, such as `GenuineIntel`; None where the system does not tell."""
    return _told("vendor_id")


def _told(field: str) -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(field):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return None


def system_name() -> str:
    """Return kernel, its release and the architecture, such as `Linux-6.8.0-x86_64`."""
    names = os.uname()
    return f"{names.sysname}-{names.release}-{names.machine}"
