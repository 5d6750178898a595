"""What the page's process is told when it starts: one line of JSON on its stdin."""

from __future__ import annotations

from typing import Literal

import msgspec

from tgwui_k8s.config import Settings


class PageSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Keys travel here because arguments and environments show in `/proc`."""

    api_url: str
    """Where the API of this pod answers, such as `http://127.0.0.1:5000`."""
    listener: int
    """The file descriptor of a listening socket."""
    heartbeat: int
    """The file descriptor of a pipe that takes the page's heartbeat."""
    root_path: str = ""
    public_api_url: str = ""
    """Where programs reach the API; empty: the browser's script knows best."""
    api_root_path: str = ""
    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None
    admin_keys: tuple[str, ...] = ()
    admin_key_file: str | None = None
    preset_dir: str | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def page_settings(
    settings: Settings, *, api_url: str, listener: int, heartbeat: int
) -> PageSettings:
    """The page's part of the server's settings."""
    server = settings.server
    return PageSettings(
        api_url=api_url,
        listener=listener,
        heartbeat=heartbeat,
        root_path=settings.webui.webui_root_path,
        public_api_url=settings.webui.webui_api_url,
        api_root_path=server.root_path,
        api_keys=server.api_key,
        api_key_file=server.api_key_file,
        admin_keys=server.admin_key,
        admin_key_file=server.admin_key_file,
        preset_dir=server.preset_dir,
        log_level=settings.observability.log_level,
    )
