"""Pods with addresses of their own: network namespaces on a bridge, as a CNI plug-in makes them."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest


@dataclass(frozen=True)
class Namespace:
    """One pod's network: an address nobody else has, until it is removed."""

    name: str
    address: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """What a command is run with to be in there."""
        return ("ip", "netns", "exec", self.name)


class Network:
    """A bridge, and the namespaces on it. Addresses are not used twice."""

    def __init__(self, bridge: str, subnet: str) -> None:
        self._bridge = bridge
        self._subnet = subnet
        self._numbers = count(2)
        self._namespaces: list[Namespace] = []

    def add(self) -> Namespace:
        """A new namespace with an address that everybody on the bridge reaches."""
        number = next(self._numbers)
        one = Namespace(f"{self._bridge}-{number}", f"{self._subnet}.{number}")
        outside = f"{self._bridge}v{number}"
        _ip("netns", "add", one.name)
        self._namespaces.append(one)
        _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", one.name)
        _ip("link", "set", outside, "master", self._bridge, "up")
        _ip("-n", one.name, "address", "add", f"{one.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", one.name, "link", "set", device, "up")
        return one

    def remove(self, one: Namespace) -> None:
        """The address is gone: whoever connects hears nothing."""
        self._namespaces.remove(one)
        _ip("netns", "delete", one.name)

    def close(self) -> None:
        """Leave nothing."""
        for one in list(self._namespaces):
            self.remove(one)
        _ip("link", "delete", self._bridge)


@contextmanager
def network() -> Iterator[Network]:
    """A network that leaves nothing; skips where there is no right to make one."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2, for network namespaces")
    # Names go some time after their owner has; nobody uses one twice.
    bridge, subnet = f"tgw{secrets.token_hex(2)}", f"10.231.{secrets.randbelow(250)}"
    try:
        _ip("link", "add", bridge, "type", "bridge")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs the right to make namespaces: {error.stderr}")
    made = Network(bridge, subnet)
    try:
        _ip("address", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        yield made
    finally:
        made.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
