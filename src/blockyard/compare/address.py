"""The address of a Ray cluster: its forms, and whether a cluster answers there.

Ray itself waits for minutes for one that does not, with lines of its own. Its head speaks HTTP/2 (gRPC), whose two ends
each begin with a frame of settings: what has a port open and sends none, such as a web server, is told from a cluster.
"""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

from blockyard.errors import InputError

# How long one of the addresses that a name stands for may take to accept, and what listens there to say anything.
PROBE_SECONDS = 5.0
FORMS = "auto, local, or HOST:PORT of the cluster's head, such as 10.0.0.1:6379"
START = "start one with `ray start --head`, or give --ray.address local"
# RFC 9113, 3.4: what a client begins with, and its frame of settings, an empty one. The fourth byte of a frame is what
# it holds; 4 is settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADER, _KIND, _SETTINGS = 9, 3, 4


def check_cluster(ray: Any, address: str) -> None:
    """Refuse an address at which no cluster answers, before Ray waits for it.

    Args:
        ray: the package.
        address: as the option has it.

    Raises:
        InputError: in a line.
    """
    if address == "local":
        return
    found = _found_by(ray) if address == "auto" else address
    if found is not None:
        _probe(*split_address(found), f"ray.address={address!r}" + (f" is {found}" if found != address else ""))


def split_address(address: str) -> tuple[str, int]:
    """Return the host and the port of HOST:PORT; an IPv6 host stands in brackets.

    Raises:
        InputError: for what is of another form.
    """
    said = f"ray.address={address!r}"
    if address.startswith("ray://"):
        raise InputError(
            f"{said} is one of Ray's clients, who stand outside of the cluster and see none of its folders: start the "
            f"command on a machine of the cluster, with {FORMS}"
        )
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    # Not `isdigit`, which is true of digits that int() takes in other scripts, and of some that it does not.
    if not bare or any(c in bare for c in "/@ ") or (":" in bare and bare == host) or not port.isascii():
        raise InputError(f"{said} should be {FORMS}")
    if not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise InputError(f"{said} should be {FORMS}; {port!r} is no port")
    return bare, int(port)


def _found_by(ray: Any) -> str | None:
    """Return what Ray would take `auto` for, None where only Ray can say."""
    if given := os.environ.get("RAY_ADDRESS"):
        return None if given in ("auto", "local") else given
    # Not a part of its interface: where it is elsewhere in some version, joining tells what is wrong, only later.
    services = getattr(getattr(ray, "_private", None), "services", None)
    find = getattr(services, "get_ray_address_from_environment", None)
    try:
        found = None if find is None else find("auto", None)
    except (ConnectionError, TypeError):
        return None
    return found if isinstance(found, str) and found not in ("auto", "local") else None


def _probe(host: str, port: int, said: str) -> None:
    """Ask whatever listens at a port whether it speaks as a cluster's head does."""
    try:
        # One after the other, all addresses that the name stands for.
        connection = socket.create_connection((host, port), timeout=PROBE_SECONDS)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{said}: no Ray cluster answers there ({reason}); {START}") from error
    # Encrypted, the first words are others than these.
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        connection.close()
        return
    with closing(connection):
        try:
            connection.sendall(_HELLO)
            answer = b""
            while len(answer) < _HEADER and (more := connection.recv(_HEADER - len(answer))):
                answer += more
        except OSError:
            answer = b""
    if len(answer) < _HEADER or answer[_KIND] != _SETTINGS:
        raise InputError(f"{said}: what listens there is no Ray cluster; {START}")
