"""`Endpoint`: one engine, who it is and where. `EndpointState`: what is known of it now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from tgwui_k8s.errors import UsageError
from tgwui_k8s.gateway.breaker import Breaker
from tgwui_k8s.gateway.failures import ExchangeError
from tgwui_k8s.gateway.http_client import Origin, parse_origin
from tgwui_k8s.gateway.http_connection import Exchange

DialectName = Literal["tgwui", "vllm", "llama-server", "tgi", "kserve"]
"""What an endpoint speaks; `tgwui` is this project's engine, or another gateway."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What discovery knows. Two pods that had the same address one after the other differ."""

    uid: str
    """The pod's UID; elsewhere the URL."""
    origin: Origin
    name: str = ""
    """For people: the pod's name."""
    dialect: DialectName | None = None
    """None: find out."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an endpoint says of itself."""

    num_running: float = 0
    num_waiting: float = 0
    kv_cache_usage: float = 0
    """0 to 1."""


@dataclass(slots=True, eq=False)
class EndpointState:
    """Written by the endpoint's monitor and by those who send it requests."""

    endpoint: Endpoint
    breaker: Breaker
    dialect: DialectName | None = None
    """None until its monitor has found out."""
    is_ready: bool = False
    is_leaving: bool = False
    """Discovery has taken it away: what runs there may finish, nothing new begins."""
    join_time: float = float("-inf")
    """When discovery showed it, on the event loop's clock."""
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Names that requests may use, with their cards of `/v1/models`."""
    load: Load = Load()
    load_time: float = float("-inf")
    """When `load` was read, on the event loop's clock."""
    num_in_flight_then: int = 0
    """Our own requests at that moment: they are part of `load`."""
    num_in_flight: int = 0
    exchanges: set[Exchange] = field(default_factory=set)
    """Under way, to be cut when the endpoint turns out to be dead."""
    heard_time: float = float("-inf")
    """When anything came from it, on the event loop's clock."""
    num_requests: int = 0
    num_failures: int = 0
    last_error: str = ""

    def cut_exchanges(self, error: ExchangeError) -> None:
        """End all that is under way: whoever waits for it goes elsewhere."""
        for exchange in list(self.exchanges):
            exchange.abort(error)

    @property
    def name(self) -> str:
        """For log lines and metrics."""
        return self.endpoint.name or self.endpoint.origin.authority


def parse_endpoint(text: str) -> Endpoint:
    """`http://host:port`, or with the dialect in front: `tgi+http://host:port`.

    Raises `UsageError`.
    """
    scheme, separator, rest = text.strip().partition("://")
    dialect, plus, transport = scheme.rpartition("+")
    if plus and dialect not in get_args(DialectName):
        known = ", ".join(get_args(DialectName))
        raise UsageError(f"'{text[:200]}': unknown dialect '{dialect[:50]}'; there are {known}")
    origin = parse_origin(transport + separator + rest)
    return Endpoint(uid=str(origin), origin=origin, dialect=dialect or None)  # type: ignore[arg-type] # checked above
