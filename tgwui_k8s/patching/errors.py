"""What can go wrong while patching; every message names the file and what to do."""

from __future__ import annotations

from tgwui_k8s.errors import TgwuiError


class PatchingError(TgwuiError):
    """A checkout cannot be patched or taken back (exit code 1)."""


class SeamGoneError(PatchingError):
    """The code that an edit belongs to is not there, or not as it was."""


class ConflictError(PatchingError):
    """Some abilities do not fit this checkout; nothing was written."""

    def __init__(self, reasons: dict[str, tuple[str, ...]]) -> None:
        lines = [f"{name}: {reason}" for name, every in reasons.items() for reason in every]
        super().__init__(
            "does not fit this checkout, nothing was written:\n  " + "\n  ".join(lines)
        )
        self.reasons = reasons
