"""Who may use the page, and the cookie that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tgwui_k8s.errors import UsageError
from tgwui_k8s.ui.keys import SESSION_SECONDS, Keyring, Login
from tgwui_k8s.ui.page_settings import PageSettings


class Clock:
    """A clock that is set by hand."""

    now = 1_000_000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def keyring(clock: Clock | None = None, **settings: object) -> Keyring:
    told = PageSettings(api_url="", listener=0, heartbeat=0, **settings)  # type: ignore[arg-type]
    return Keyring(told, clock=clock or Clock())


def test_keys_and_their_roles() -> None:
    """The admin key is the admin's, an API key the user's, anything else nobody's."""
    keys = keyring(api_keys=("user",), admin_keys=("admin",))

    assert keys.login("user") == Login("user", "user")
    assert keys.login("admin") == Login("admin", "admin")
    assert keys.login("other") is None
    assert keys.login("") is None
    assert (keys.is_open, keys.has_admin) == (False, True)


def test_without_an_api_key_everybody_comes_in() -> None:
    """An admin key alone leaves the API open."""
    assert keyring(admin_keys=("admin",)).is_open
    assert not keyring().has_admin


def test_a_session_holds_on_every_replica_until_it_ends() -> None:
    """Another process with the same keys accepts it; time, and a change of it, end it."""
    clock = Clock()
    cookie = keyring(api_keys=("one", "two")).cookie(Login("two", "user"))
    replica = keyring(clock, api_keys=("zero", "two"), admin_keys=("admin",))

    assert "two" not in cookie
    assert replica.session(cookie) == Login("two", "user")
    expiry, signature = cookie.split(".")
    assert replica.session(f"{int(expiry) + 1}.{signature}") is None
    assert replica.session(f"{expiry}.{signature[:-1]}") is None
    clock.now += SESSION_SECONDS
    assert replica.session(cookie) is None


@pytest.mark.parametrize("cookie", [None, "", ".", "x.y", "9" * 13 + ".y", "¹.y", "2000000.\ud800"])
def test_nonsense_is_no_session(cookie: str | None) -> None:
    """Whatever a browser sends."""
    assert keyring(api_keys=("one",)).session(cookie) is None


def test_a_session_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that leaves the file takes its sessions along, and those of others stay."""
    monkeypatch.setattr("tgwui_k8s.key_set.RECHECK_SECONDS", 0.0)
    file = tmp_path / "keys"
    file.write_text("old\nother\n")
    keys = keyring(api_key_file=str(file))
    old, other = (keys.cookie(Login(key, "user")) for key in ("old", "other"))
    assert keys.session(old) == Login("old", "user")

    file.write_text("other\nnewer-key\n")
    assert keys.session(old) is None
    assert keys.session(other) == Login("other", "user")
    assert keys.login("newer-key") is not None


def test_a_key_file_must_hold_keys(tmp_path: Path) -> None:
    """As for the API itself."""
    (tmp_path / "empty").write_text("\n")
    for name in ("empty", "missing"):
        with pytest.raises(UsageError, match=name):
            keyring(api_key_file=str(tmp_path / name))
