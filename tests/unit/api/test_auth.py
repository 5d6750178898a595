"""Keys: where they come from, what they open, and that they can change under way."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from tgwui_k8s.api.auth import ADMIN_PATHS, Authentication, is_open
from tgwui_k8s.config import ServerSettings
from tgwui_k8s.errors import AuthenticationError, PermissionDeniedError, UsageError
from tgwui_k8s.key_set import KeySet, load_keys

API_ROUTE = "/v1/completions"
ADMIN_ROUTE = "/v1/internal/model/load"


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _write(file: Path, text: str) -> None:
    """Replace a file as Kubernetes does: a new one under the same name."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


FORMS_OF_THE_GATEWAY = (
    "keys:\n  - name: team-a\n    key: plain\n",
    "# who may what\nkeys :\n- {name: team-a, key: plain}\n",
    '\n {"keys": [{"name": "team-a", "key": "plain"}]}',
    f"one\n  sha256:{'0' * 64}\n",
)


def _keys(*keys: str) -> KeySet:
    return KeySet(keys, None)


async def _call(
    path: str,
    headers: list[tuple[bytes, bytes]],
    *,
    api: KeySet | None = None,
    admin: KeySet | None = None,
) -> bool:
    """Whether the request reached the route; raises what the middleware raises."""
    reached = False

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal reached
        reached = True

    scope = {"type": "http", "path": path, "headers": headers}
    middleware = Authentication(route, api or _keys(), admin or _keys())
    await middleware(scope, None, None)  # type: ignore[arg-type]
    return reached


def _bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", b"Bearer " + key.encode())]


async def test_without_keys_the_api_is_open() -> None:
    """Nothing configured, nothing asked."""
    assert await _call(API_ROUTE, [])


@pytest.mark.parametrize(
    "headers",
    [
        _bearer("one"),
        _bearer("two"),
        [(b"authorization", b"bearer  one ")],
        [(b"x-api-key", b"one")],
        [(b"authorization", b"Bearer wrong"), (b"x-api-key", b"two")],
    ],
)
async def test_each_of_several_keys_opens_in_both_headers(
    headers: list[tuple[bytes, bytes]],
) -> None:
    """Any configured key, as a bearer token or as X-Api-Key."""
    assert await _call(API_ROUTE, headers, api=_keys("one", "two"))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        _bearer(""),
        _bearer("on"),
        _bearer("one\x00"),
        [(b"authorization", b"Basic one")],
        [(b"authorization", b"one")],
        [(b"x-api-key", b"\xff\xfe")],
    ],
)
async def test_a_missing_or_wrong_key_is_a_401(headers: list[tuple[bytes, bytes]]) -> None:
    """Nothing near a key passes for one."""
    with pytest.raises(AuthenticationError) as caught:
        await _call(API_ROUTE, headers, api=_keys("one", "two"))
    assert caught.value.code == "invalid_api_key"


async def test_an_error_does_not_repeat_the_key() -> None:
    """A mistyped key must not end up in a client's log."""
    with pytest.raises(AuthenticationError) as caught:
        await _call(API_ROUTE, _bearer("sk-mistyped"), api=_keys("one"))
    assert "mistyped" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(ADMIN_PATHS))
async def test_without_an_admin_key_admin_routes_are_closed(path: str) -> None:
    """An open server still cannot be emptied by whoever can reach it; the message says the way."""
    with pytest.raises(PermissionDeniedError, match="TGWUI_ADMIN_KEY"):
        await _call(path, [])


async def test_an_api_key_does_not_open_admin_routes() -> None:
    """A valid key without the right is a 403, not a 401."""
    with pytest.raises(PermissionDeniedError):
        await _call(ADMIN_ROUTE, _bearer("user"), api=_keys("user"), admin=_keys("root"))


async def test_a_wrong_key_on_an_admin_route_is_a_401() -> None:
    """Who is unknown is told so."""
    with pytest.raises(AuthenticationError):
        await _call(ADMIN_ROUTE, _bearer("x"), api=_keys("user"), admin=_keys("root"))


@pytest.mark.parametrize("path", [ADMIN_ROUTE, API_ROUTE])
async def test_the_admin_key_opens_everything(path: str) -> None:
    """An admin needs no second key."""
    assert await _call(path, _bearer("root"), api=_keys("user"), admin=_keys("root"))


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/v2/models/a/b/ready", "/docs"]
)
async def test_probes_and_metrics_need_no_key(path: str) -> None:
    """kubelet and Prometheus send none."""
    assert await _call(path, [], api=_keys("one"))


@pytest.mark.parametrize(
    "path", ["/health/live/", "/healthx", "/v2/models/x/infer", "/", "/v1/internal/model/list"]
)
def test_what_is_not_listed_is_not_open(path: str) -> None:
    """Near misses of open paths are protected."""
    assert not is_open(path)


def test_a_file_holds_one_key_a_line(tmp_path: Path) -> None:
    """Blank lines, spaces around keys and Windows line ends do not count."""
    file = tmp_path / "keys"
    file.write_bytes(b"one\r\n\n  two  \n")
    keys = KeySet(["three"], str(file))
    assert [keys.accepts(key) for key in (b"one", b"two", b"three", b"", b"four")] == [
        True,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("content", [None, "", "\n  \n"])
def test_a_file_without_keys_is_refused_at_the_start(tmp_path: Path, content: str | None) -> None:
    """A server that should have been locked must not start open."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match="key file"):
        load_keys(ServerSettings(api_key_file=str(file)))


def test_a_changed_file_counts_from_the_next_second_on(tmp_path: Path) -> None:
    """New keys open and old ones close without a restart; the file is checked once a second."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text("old\n")
    keys = KeySet((), str(file), clock=clock)
    _write(file, "new\n")
    clock.now = 0.5
    assert keys.accepts(b"old")
    clock.now = 1.0
    assert (keys.accepts(b"old"), keys.accepts(b"new")) == (False, True)


def test_a_swapped_symlink_is_a_change(tmp_path: Path) -> None:
    """Kubernetes updates a mounted Secret by swapping the link `..data`."""
    clock = Clock()
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys").write_text(f"key{version}\n")
        os.utime(tmp_path / version / "keys", (1, 1))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys").symlink_to("..data/keys")
    keys = KeySet((), str(tmp_path / "keys"), clock=clock)
    (tmp_path / "..new").symlink_to("2")
    os.replace(tmp_path / "..new", tmp_path / "..data")
    clock.now = 1.0
    assert (keys.accepts(b"key1"), keys.accepts(b"key2")) == (False, True)


@pytest.mark.parametrize("content", FORMS_OF_THE_GATEWAY)
def test_a_file_for_the_gateway_is_refused_at_the_start(tmp_path: Path, content: str) -> None:
    """Its lines are no keys: they would be taken for some that nobody has, or anybody knows."""
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(UsageError, match="plain keys, one a line"):
        load_keys(ServerSettings(api_key_file=str(file)))


@pytest.mark.parametrize("after", [None, "", *FORMS_OF_THE_GATEWAY])
def test_a_file_that_goes_bad_keeps_the_last_keys_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, after: str | None
) -> None:
    """Neither locks everybody out nor opens the server; and when it is back, it counts again."""
    file, clock = tmp_path / "keys", Clock()
    file.write_text("old\n")
    keys = KeySet((), str(file), clock=clock)
    if after is None:
        file.unlink()
    else:
        _write(file, after)
    with caplog.at_level(logging.ERROR):
        for clock.now in (1.0, 2.0, 3.0):
            assert keys.accepts(b"old")
    assert len(caplog.records) == 1
    _write(file, "new\n")
    clock.now = 4.0
    assert (keys.accepts(b"old"), keys.accepts(b"new")) == (False, True)


def test_keys_are_not_kept_in_the_clear(tmp_path: Path) -> None:
    """A dump of the object's fields shows no key."""
    file = tmp_path / "keys"
    file.write_text("from-file\n")
    assert "from" not in str(vars(KeySet(["from-settings"], str(file)))).replace("_from_file", "")
