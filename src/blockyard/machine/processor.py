"""The machine's names, found without starting a process.

`platform.platform()` and `platform.processor()` run `uname -p`. A child that starts in the instant in which its parent
is killed holds the run folder's lock for a moment longer, and whoever resumes at once finds the folder in use.
"""

from __future__ import annotations

import os
from pathlib import Path

_TOLD_BY_LINUX = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the processor's name, with its family and model, as far as the system tells them, otherwise its
    architecture."""
    name, model = _told("model name") or os.uname().machine, _told("model")
    # The name alone may be that of several generations: AMD EPYC is what virtual machines say of all of them.
    return f"{name} (family {family()}, model {model})" if family() is not None and model else name


def vendor_name() -> str | None:
    """Return who made the processor, such as `GenuineIntel`; None where the system does not tell."""
    return _told("vendor_id")


def family() -> int | None:
    """Return the family that the maker counts the processor to, 25 and 26 for AMD's Zen 4 and Zen 5; None where the
    system does not tell."""
    told = _told("cpu family")
    return int(told) if told is not None and told.isdecimal() else None


def _told(field: str) -> str | None:
    try:
        for line in _TOLD_BY_LINUX.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    except OSError:
        pass
    return None


def system_name() -> str:
    """Return kernel, its release and the architecture, such as `Linux-6.8.0-x86_64`."""
    names = os.uname()
    return f"{names.sysname}-{names.release}-{names.machine}"
