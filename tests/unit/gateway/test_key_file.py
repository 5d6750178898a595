"""Key files: who may use what, in which forms, and what a bad file does."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from tgwui_k8s.config import ServerSettings
from tgwui_k8s.errors import AuthenticationError, PermissionDeniedError, UsageError
from tgwui_k8s.gateway.key_file import ApiKey, digest_of, read_keys
from tgwui_k8s.gateway.keys import NOBODY, Keys, check_model
from tgwui_k8s.gateway.quotas.quota import Quota

CALL = "/v1/completions"
HEX = hashlib.sha256(b"hashed").hexdigest()

FULL = f"""
keys:
  - name: team-a
    sha256: [{HEX}, "sha256:{hashlib.sha256(b"next").hexdigest()}"]
    models: [llama-3-*, phi]
    requests_per_minute: 600
    tokens_per_minute: 200000
    max_concurrent_requests: 32
    budget_tokens: 50_000_000
    budget_period: week
  - {{name: notebook, key: plain}}
"""


def written(folder: Path, content: str | bytes) -> Path:
    """A key file."""
    path = folder / "keys"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def bearer(key: str) -> dict[bytes, bytes]:
    """A request's headers."""
    return {b"authorization": b"Bearer " + key.encode()}


def test_lines_are_keys_or_their_hashes(tmp_path: Path) -> None:
    """As the engine's file; both forms in one."""
    keys = read_keys(written(tmp_path, f"one\n\n  two \nsha256:{HEX}\n"))
    assert set(keys) == {digest_of(key) for key in (b"one", b"two", b"hashed")}
    assert {key.quota for key in keys.values()} == {Quota()}
    assert keys[digest_of(b"one")].name == "key-" + hashlib.sha256(b"one").hexdigest()[:8]


def test_entries_say_what_a_key_may_use(tmp_path: Path) -> None:
    """YAML, and the same as JSON; two keys of one name share its limits."""
    keys = read_keys(written(tmp_path, FULL))
    team = ApiKey("team-a", ("llama-3-*", "phi"), Quota(600, 200000, 32, 50_000_000, "week"))
    assert keys[digest_of(b"hashed")] == keys[digest_of(b"next")] == team
    assert keys[digest_of(b"plain")] == ApiKey("notebook")
    entry = {"name": "x", "sha256": HEX, "requests_per_minute": 1}
    keys = read_keys(written(tmp_path, json.dumps({"keys": [entry]})))
    assert keys == {digest_of(b"hashed"): ApiKey("x", None, Quota(requests_per_minute=1))}


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("", "no key"),
        ("keys: []", "no key"),
        ("sha256:12\n", "64 hexadecimal digits"),
        ("keys:\n - {name: a, key: geheim, requests: 5}", "requests"),
        ("keys:\n - {name: a, key: geheim, requests_per_minute: 0}", "requests_per_minute"),
        ("keys:\n - {name: a, key: geheim, budget_period: year}", "budget_period"),
        ("keys:\n - {name: a b, key: geheim}", "name"),
        ("keys:\n - {name: a}", "neither"),
        ("keys:\n - {name: a, key: ''}", "empty"),
        ("keys:\n - {name: a, key: ['']}", "empty"),
        ("keys:\n - {name: a, key: geheim}\n - {name: a, key: other}", "twice"),
        ("keys:\n - {name: a, key: geheim}\n - {name: b, key: geheim}", "same key"),
        ("keys:\n - {name: a, key: geheim", "line 2"),
        ("keys:\n - name: a\n   key: geheim: geheim\n", "line 3"),
        ("keys: geheim", "keys"),
        (b"keys:\n - {name: a, key: \xff\xfe}", "YAML"),
    ],
)
def test_a_wrong_file_says_where_and_shows_no_key(
    tmp_path: Path, content: str | bytes, word: str
) -> None:
    """The message goes to the log."""
    with pytest.raises(UsageError) as error:
        read_keys(written(tmp_path, content))
    assert word in str(error.value)
    assert "geheim" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_keys(path)


def test_keys_are_found_by_what_was_sent(tmp_path: Path) -> None:
    """From the settings and the file; admins' everywhere; others nowhere."""
    path = written(tmp_path, FULL)
    keys = Keys(ServerSettings(api_key=("fixed",), api_key_file=str(path), admin_key=("boss",)))
    assert keys.check_route(CALL, bearer("hashed")).name == "team-a"
    assert keys.check_route(CALL, {b"x-api-key": b"plain"}).name == "notebook"
    assert keys.check_route(CALL, bearer("fixed")).quota == Quota()
    assert keys.check_route(CALL, bearer("boss")).name == "admin"
    assert keys.check_route("/gateway", bearer("boss")).name == "admin"
    assert keys.check_route("/metrics", {}) is NOBODY
    assert keys.are_limited
    for headers in ({}, bearer("wrong"), bearer(HEX), bearer("")):
        with pytest.raises(AuthenticationError):
            keys.check_route(CALL, headers)
    with pytest.raises(PermissionDeniedError):
        keys.check_route("/gateway", bearer("hashed"))


def test_a_changed_file_counts_at_once_and_a_bad_one_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Secret is changed under a running gateway; a mistake in it locks nobody out."""
    monkeypatch.setattr("tgwui_k8s.key_set.RECHECK_SECONDS", 0.0)
    path = written(tmp_path, "first\n")
    keys = Keys(ServerSettings(api_key_file=str(path)))
    keys.check_route(CALL, bearer("first"))
    written(tmp_path, "keys: [{name: a, key: second, models: [m]}]")
    assert keys.check_route(CALL, bearer("second")).models == ("m",)
    with pytest.raises(AuthenticationError):
        keys.check_route(CALL, bearer("first"))
    with caplog.at_level(logging.ERROR):
        written(tmp_path, "keys: [{name: a, key: third")
        assert keys.check_route(CALL, bearer("second")).name == "a"
    assert "stay valid" in caplog.text
    assert "third" not in caplog.text
    path.unlink()
    assert keys.check_route(CALL, bearer("second")).name == "a"


def test_a_key_is_good_for_its_models() -> None:
    """By name or pattern; without a name nobody could tell."""
    key = ApiKey("a", ("llama-3-*", "phi"))
    for model in ("llama-3-8b", "phi"):
        check_model(key, model)
    for other in ("llama-2", "phi-2", None):
        with pytest.raises(PermissionDeniedError):
            check_model(key, other)
    check_model(ApiKey("b"), None)
