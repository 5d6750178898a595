"""`tgwui-k8s gateway` as a process of its own, on a free port."""

from __future__ import annotations

from collections.abc import Mapping

from tests.helpers.server_process import PYTHON, ServerProcess


class GatewayProcess(ServerProcess):
    """A gateway; `flags` name its endpoints."""

    @staticmethod
    def command_line(*flags: str, options: Mapping[str, object] | None = None) -> list[str]:
        """The command that serves them on a free port."""
        return [PYTHON, "-m", "tgwui_k8s", "gateway", "--port", "0", *flags]
