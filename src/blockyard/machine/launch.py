"""What torchrun tells a process through its environment: which of how many it is. Costs no torch."""

from __future__ import annotations

import os

from blockyard.errors import InputError


def world_size() -> int:
    """Return the number of processes of the run.

    Raises:
        InputError: when WORLD_SIZE is no number of at least 1.
    """
    return _number("WORLD_SIZE", 1, least=1)


def rank() -> int:
    """Return the number of this process among them; 0 for one that runs alone, whatever RANK says.

    Raises:
        InputError: when RANK is no number below WORLD_SIZE.
    """
    size, found = world_size(), _number("RANK", 0, least=0)
    if size == 1:
        return 0
    if found >= size:
        raise InputError(f"RANK={found} should be below WORLD_SIZE={size}; torchrun sets both")
    return found


def local_rank() -> int:
    """Return the number of this process on its machine, by which it takes its device.

    Raises:
        InputError: when LOCAL_RANK is no number.
    """
    return _number("LOCAL_RANK", 0, least=0)


def check_meeting_point() -> None:
    """Refuse to wait for other processes where nothing says how they are met.

    Raises:
        InputError: naming the variable that is missing or no port.
    """
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            raise InputError(f"WORLD_SIZE={world_size()} without {name}: several processes are started by torchrun")
    if _number("MASTER_PORT", 0, least=0) > 65535:
        raise InputError(f"MASTER_PORT={os.environ['MASTER_PORT']!r} should be a port, 0 to 65535")


def is_first() -> bool:
    """Return whether this process is the one that talks to the user; so is one whose environment makes no sense."""
    try:
        return rank() == 0
    except InputError:
        return True


def _number(name: str, default: int, *, least: int) -> int:
    text = os.environ.get(name) or str(default)
    # At most nine digits: what is longer is no number of processes, and may be more than `int` reads.
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) < least:
        raise InputError(f"the environment's {name}={text!r} should be a whole number of at least {least}")
    return int(text)
