"""A listening socket, or one clear line that says why there is none."""

from __future__ import annotations

import os
import socket

from tgwui_k8s.errors import BindError

_BACKLOG = 2048


def bind(host: str, port: int, *, port_flag: str = "--port") -> socket.socket:
    """A socket that listens on the address; port 0 takes a free one. Raises `BindError`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        both = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise BindError(_why_not_bound(host, port, port_flag, error)) from error


def address_of(listener: socket.socket) -> str:
    """Its URL, as it was bound."""
    host, port = listener.getsockname()[:2]
    return _url(host, port)


def local_address_of(listener: socket.socket) -> str:
    """A URL at which this machine reaches it: any address is reached at the loopback one."""
    host, port = listener.getsockname()[:2]
    any_address = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not bound, looked up
    return _url(any_address.get(host, host), port)


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _why_not_bound(host: str, port: int, port_flag: str, error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return f"--host {host} is no address of this machine: {error.strerror}"
    if isinstance(error, PermissionError):
        return f"port {port} on {host} needs privileges: choose one above 1023 with {port_flag}"
    hint = f": stop what listens there, or choose another {port_flag}"
    return (
        f"cannot listen on {host}, port {port}: {os.strerror(error.errno or 0)}"
        f"{hint if 'in use' in str(error) else ''}"
    )
