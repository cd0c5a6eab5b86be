"""Addresses of a cluster: their forms, and ports at which something else answers, or nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from blockyard.compare import address, cluster
from blockyard.compare.address import check_cluster, split_address
from blockyard.compare.engine import EngineConfig
from blockyard.compare.launch import check_reachable
from blockyard.errors import InputError

# Nine bytes of HTTP/2: a frame of settings with nothing in it.
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """An address where everybody is answered so; with None, nobody is."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if answer is None:
                    open_ones.append(connection)
                    continue
                with connection:
                    connection.sendall(answer)
                    connection.recv(1024)

        open_ones: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for connection in open_ones:
            connection.close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(address, "PROBE_SECONDS", 0.5)


@pytest.mark.parametrize(
    ("given", "parts"),
    [("10.0.0.1:6379", ("10.0.0.1", 6379)), ("head:1", ("head", 1)), ("[::1]:6379", ("::1", 6379))],
)
def test_forms_that_name_a_cluster(given: str, parts: tuple[str, int]) -> None:
    assert split_address(given) == parts
    EngineConfig(engine="ray", ray_address=given).check_engine()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ray://head:10001", "clients"),
        ("head", "should be auto, local, or HOST:PORT"),
        ("", "should be"),
        (":6379", "should be"),
        ("head:", "'' is no port"),
        ("head:http", "'http' is no port"),
        ("head:0", "'0' is no port"),
        ("head:65536", "'65536' is no port"),
        ("head:-1", "'-1' is no port"),
        ("head:²", "should be"),
        ("::1:6379", "should be"),
        ("http://head:6379", "should be"),
        ("a b:6379", "should be"),
    ],
)
def test_forms_that_name_none_are_refused_before_anything_is_read(given: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        EngineConfig(engine="ray", ray_address=given).check_engine()


def test_a_port_at_which_nothing_listens_is_one_line_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"ray.address='127.0.0.1:{port}': no Ray cluster answers there \(Conn"):
        check_cluster(None, f"127.0.0.1:{port}")
    assert time.monotonic() - began < 30


def test_a_host_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"ray.address='no-such-host.invalid:6379': no Ray cluster answers there"):
        check_cluster(None, "no-such-host.invalid:6379")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None], ids=["web", "closes", "silent"])
def test_what_listens_and_is_no_cluster_is_told_from_one(answer: bytes | None) -> None:
    with listening(answer) as there, pytest.raises(InputError, match="what listens there is no Ray cluster"):
        check_cluster(None, there)


def test_what_speaks_as_a_head_does_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(SETTINGS) as there:
        check_cluster(None, there)
    # Encrypted, only the port can be asked.
    monkeypatch.setenv("RAY_USE_TLS", "1")
    with listening(b"") as there:
        check_cluster(None, there)


def test_auto_asks_where_ray_would_look(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(b"") as there:
        monkeypatch.setenv("RAY_ADDRESS", there)
        with pytest.raises(InputError, match=f"ray.address='auto' is {there}: what listens there"):
            check_cluster(None, "auto")
        monkeypatch.delenv("RAY_ADDRESS")
        # A cluster that has ended leaves its address behind.
        services = SimpleNamespace(get_ray_address_from_environment=lambda given, folder: there)
        ray = SimpleNamespace(_private=SimpleNamespace(services=services))
        with pytest.raises(InputError, match=f"ray.address='auto' is {there}"):
            check_cluster(ray, "auto")
    # Without any, and of other versions, Ray says itself what is wrong.
    check_cluster(None, "auto")


def test_it_is_asked_before_data_are_read_and_before_ray_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = SimpleNamespace(is_initialized=lambda: False, init=lambda **given: pytest.fail("waits for minutes"))
    monkeypatch.setattr("blockyard.compare.launch.require", lambda name, extra: ray)
    with listening(b"") as there:
        config = EngineConfig(engine="ray", ray_address=there)
        for ask in (lambda: check_reachable(config), lambda: cluster._join(ray, config)):
            with pytest.raises(InputError, match="no Ray cluster"):
                ask()
