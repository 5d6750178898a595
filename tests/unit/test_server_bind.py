"""Binding the port: what works, and one clear line for what does not."""

from __future__ import annotations

import socket

import pytest

from tgwui_k8s.errors import BindError
from tgwui_k8s.listener import address_of, bind, local_address_of


def test_port_zero_takes_a_free_port_that_accepts_at_once() -> None:
    """Clients may connect before anybody answers."""
    with bind("127.0.0.1", 0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5):
            pass

    assert address[0] == "127.0.0.1"
    assert address[1] > 0


def test_busy_port_is_an_error_that_names_it() -> None:
    """Never another port."""
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(BindError, match=rf"port {port}: .*in use: .*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_foreign_address_is_an_error_that_names_it(host: str) -> None:
    """An unknown name, or an address of another machine."""
    with pytest.raises(BindError, match=host):
        bind(host, 0)


def test_any_address_of_version_6_serves_version_4_too() -> None:
    """`--host ::` is what dual-stack clusters want."""
    try:
        listener = bind("::", 0)
    except BindError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.mark.parametrize(
    ("host", "shown", "reached"),
    [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0", "127.0.0.1")],
)
def test_any_address_is_reached_at_the_loopback_one(host: str, shown: str, reached: str) -> None:
    """What is bound and where this machine connects are different things."""
    with bind(host, 0) as listener:
        port = listener.getsockname()[1]

        assert address_of(listener) == f"http://{shown}:{port}"
        assert local_address_of(listener) == f"http://{reached}:{port}"
